"""Cost of the embedded engine's server per streamed token, in virtual time and one process: us of CPU, with its parts.

python scripts/bench_engine.py [--streams 64] [--tokens 400] [--api chat] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engines.embedded.core import EngineCore
from engines.embedded.drive import run as drive
from engines.embedded.profiles import load_profile
from engines.embedded.server import EngineOptions, start
from engines.embedded.types import EngineRequest, Limits
from engines.pool import Pool
from joulegraph.virtual import VirtualLoop, run_virtual


class Count:
    """A Reply that only counts."""

    def __init__(self, over: asyncio.Event) -> None:
        self.reads = self.bytes = 0
        self.over = over

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        if status != 200:
            raise RuntimeError(f"status {status}")

    def body(self, data: bytes, now_ns: int) -> None:
        self.reads += 1
        self.bytes += len(data)

    def done(self, now_ns: int) -> None:
        self.over.set()

    def lost(self, why: str, now_ns: int) -> None:
        raise RuntimeError(why)


def body_of(api: str, tokens: int, number: int) -> tuple[str, dict[str, Any]]:
    """Path and body of one request."""
    exact = {"stream": True, "min_tokens": tokens, "ignore_eos": True}
    prompt = [number + 1, *range(2, 200)]
    text = " ".join(["word"] * 200)
    turns = [{"role": "user", "content": f"{number} {text}"}]
    if api == "completions":
        return "/v1/completions", exact | {"prompt": prompt, "max_tokens": tokens}
    if api == "responses":
        return "/v1/responses", exact | {"input": text, "max_output_tokens": tokens}
    path = "/v1/chat/completions" if api == "chat" else "/v1/messages"
    return path, exact | {"messages": turns, "max_tokens": tokens}


async def load(loop: VirtualLoop, api: str, streams: int, tokens: int) -> dict[str, float]:
    """All streams at once; figures of the whole."""
    running = await start(
        EngineOptions(limits=Limits()), now_ns=loop.now_ns, sleep_until=loop.sleep_until, serve=loop.create_server
    )
    pool = Pool("127.0.0.1", running.port, connect=loop.create_connection, now_ns=loop.now_ns)
    replies = []
    before = time.process_time()
    for number in range(streams):
        path, body = body_of(api, tokens, number)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection, reply = await pool.acquire(fresh=True), Count(asyncio.Event())
        connection.send(head.encode() + data, reply)
        replies.append((connection, reply))
    for _, reply in replies:
        await reply.over.wait()
    spent = time.process_time() - before
    for connection, _ in replies:
        pool.release(connection)
    pool.close()
    await running.close()
    chunks = streams * tokens
    return {"chunks": chunks, "cpu_us_per_chunk": 1e6 * spent / chunks, "reads": sum(r.reads for _, r in replies)}


def core_alone(streams: int, tokens: int) -> float:
    """The pure core on the same work, us per token."""
    core = EngineCore(load_profile("h100-llama8b"), Limits())
    requests = [
        (0, EngineRequest(str(i), [i + 1, *range(2, 200)], tokens, min_tokens=tokens, ignore_eos=True))
        for i in range(streams)
    ]
    before = time.process_time()
    drive(core, requests)
    return 1e6 * (time.process_time() - before) / (streams * tokens)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--api", choices=("chat", "completions", "responses", "messages"), default="chat")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    async def whole(loop: VirtualLoop) -> dict[str, float]:
        return await load(loop, args.api, args.streams, args.tokens)

    figures = run_virtual(whole)
    figures["core_us_per_token"] = core_alone(args.streams, args.tokens)
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:20} {value:.2f}")


if __name__ == "__main__":
    main()
