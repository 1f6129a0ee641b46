"""What one request costs the load generator in Python alone, whole and stage by stage: no socket, no kernel, no server.

    python scripts/profile_loadgen.py [--requests N] [--stages]

The real client replays a closed loop of 64 users over transports in memory that answer each request in one read with a
stream of 16 chunks (bytes as of scripts/bench/sse_server.c, another id each time). Microseconds of CPU per request.
With --stages each function is wrapped alone in a run of its own, so that only its own wrapper is in its figure; figures
include what the function calls. A sampling profiler or cProfile misleads at this scale: both cost more than the stages.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadgen.pacing import Pacer
from loadgen.replay import ReplayOptions, replay
from loadgen.tally import slot_names
from loadgen.target import Target
from loadgen.totals import Bounds
from traces.journal import JournalWriter
from traces.status import StatusPage
from traces.workflow import Node, Workflow

S = 1_000_000_000
USERS, CHUNKS, PROMPT = 64, 16, 32
STAGES = (
    "loadgen.shell:Shell._begin", "loadgen.shell:Shell._send", "loadgen.bodies:Bodies.render",
    "loadgen.heads:Heads.request", "loadgen.outbox:Outbox._write", "engines.http1:Connection.send",
    "engines.http1:Connection.data_received", "engines.replies:ReplyParser.feed",
    "engines.eventstream:StreamObserver.__init__", "engines.eventstream:StreamObserver.feed",
    "loadgen.shell:Shell._conclude", "engines.pool:Pool.release", "loadgen.client:Exchange.record",
    "loadgen.tally:Tally.ended", "traces.journal:JournalWriter.write", "loadgen.shell:Shell._ended",
)  # fmt: skip


def reply(number: int) -> bytes:
    """One whole reply on the wire."""
    common = f'"id":"cmpl-{number:016x}","object":"text_completion","created":1700000000,"model":"bench"'
    choice = '{{"index":0,"text":"{}","logprobs":null,"finish_reason":{}}}'
    events = [f'{{{common},"choices":[{choice.format(f" tok{i}", "null")}]}}' for i in range(CHUNKS)]
    events.append(f'{{{common},"choices":[{choice.format("", chr(34) + "length" + chr(34))}]}}')
    usage = f'{{"prompt_tokens":{PROMPT},"total_tokens":{PROMPT + CHUNKS},"completion_tokens":{CHUNKS}}}'
    events += [f'{{{common},"choices":[],"usage":{usage}}}', "[DONE]"]
    framed = [b"data: %s\n\n" % event.encode() for event in events]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in framed) + b"0\r\n\r\n"


class Wire(asyncio.Transport):
    """Takes a request, has it answered in the next turn."""

    def __init__(self, protocol: asyncio.Protocol, waiting: list[asyncio.Protocol], wake: Callable[[], None]) -> None:
        super().__init__()
        self._protocol, self._waiting, self._wake = protocol, waiting, wake

    def write(self, data: Any) -> None:
        """A whole request."""
        if not self._waiting:
            self._wake()
        self._waiting.append(self._protocol)

    def get_write_buffer_size(self) -> int:
        """Nothing stays."""
        return 0

    def is_closing(self) -> bool:
        """Never."""
        return False

    def close(self) -> None:
        """Nothing to close."""


async def load(requests: int) -> float:
    """CPU us per request."""
    loop = asyncio.get_running_loop()
    replies, waiting = [reply(i) for i in range(1024)], list[asyncio.Protocol]()
    at = 0

    def answer() -> None:
        nonlocal at
        ready = waiting[:]
        waiting.clear()
        for protocol in ready:
            at = (at + 1) % len(replies)
            protocol.data_received(replies[at])

    async def connect(factory: Callable[[], Any], host: str, port: int, ssl: Any = None) -> Any:
        protocol = factory()
        wire = Wire(protocol, waiting, lambda: loop.call_soon(answer))
        protocol.connection_made(wire)
        return wire, protocol

    planned = [Workflow(f"w{i}", (Node(f"w{i}", "n", 0, PROMPT, CHUNKS, hash_ids=(i % 64,)),)) for i in range(requests)]
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    with tempfile.TemporaryDirectory() as folder, Pacer(loop, time.monotonic_ns) as pacer:
        journal = JournalWriter(Path(folder) / "dispatch.0.jsonl", "dispatch", mono_ns=0, wall_ns=0)
        began = time.process_time()
        totals = await replay(
            planned, Target("127.0.0.1", 80), now_ns=time.monotonic_ns, sleep_until=pacer.sleep_until,
            t0_ns=time.monotonic_ns(), connect=connect, write=journal.write,
            status=StatusPage(slot_names(), Path(folder) / "status"),
            options=ReplayOptions(closed_loop_users=USERS, bounds=Bounds(10 * S, 10 * S, 1.0, 1.0)),
        )  # fmt: skip
        took = time.process_time() - began
        journal.close()
    assert (totals.outcomes, totals.token_events) == ({"ok": requests}, CHUNKS * requests), totals
    return took * 1e6 / requests


def wrapped(stage: str, spent: list[int]) -> Callable[[], None]:
    """Have a function's time added to `spent`; the answer puts it back."""
    module, path = stage.split(":")
    kind, name = path.split(".")
    owner = getattr(importlib.import_module(module), kind)
    function, clock = getattr(owner, name), time.perf_counter_ns

    def timed(*args: Any, **options: Any) -> Any:
        began = clock()
        result = function(*args, **options)
        spent[0] += clock() - began
        return result

    setattr(owner, name, timed)
    return lambda: setattr(owner, name, function)


def main() -> int:
    """Measure and print."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--stages", action="store_true", help="also each stage alone")
    args = parser.parse_args()
    print(f"{'whole request':48} {min(uvloop.run(load(args.requests)) for _ in range(3)):6.2f} us")
    for stage in STAGES if args.stages else ():
        spent = [0]
        back = wrapped(stage, spent)
        uvloop.run(load(args.requests))
        back()
        print(f"{stage:48} {spent[0] / args.requests / 1000:6.2f} us", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
