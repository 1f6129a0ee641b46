"""Clients that scripts/bench_loadgen.py measures, each run in a process of its own: ours, a bare aiohttp one, a timer.

    python load_workers.py ours|aiohttp|timer burst|paced|rate PORT COUNT USERS RATE

Prints one JSON line: cpu_us (of the load itself, imports left out), rss_mb, lateness_ms_p99, and what it saw.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

MS = 1_000_000
S = 1_000_000_000
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 16


def p99_ms(values: list[int]) -> float:
    """Exact 99th percentile of ns values, in ms."""
    return sorted(values)[int(len(values) * 0.99)] / 1e6


def quiet_gc() -> float:
    """Collect rarely, as the load processes do; the CPU time so far, from which the load itself is counted."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    return time.process_time()


async def ours(mode: str, port: int, count: int, users: int, rate: int) -> tuple[float, dict[str, Any]]:
    """The load generator as it is used: every read stamped, every request in the journal, a status page."""
    from loadgen.pacing import Pacer
    from loadgen.replay import ReplayOptions, replay
    from loadgen.tally import slot_names
    from loadgen.target import Target
    from loadgen.totals import Bounds
    from traces.journal import JournalReader, JournalWriter
    from traces.status import StatusPage
    from traces.workflow import Node, Workflow

    def workflows() -> Iterator[Workflow]:
        for i in range(count):
            name = f"w{i}"
            at = i * S // rate if mode == "rate" else 0
            yield Workflow(name, (Node(name, "n", at, PROMPT_TOKENS, OUTPUT_TOKENS, hash_ids=(i % 64,)),))

    loop = asyncio.get_running_loop()
    planned = list(workflows())  # as the other client has its body beforehand; a trace is read while it plays
    began = quiet_gc()
    with tempfile.TemporaryDirectory() as folder, Pacer(loop, time.monotonic_ns) as pacer:
        journal = JournalWriter(Path(folder) / "dispatch.0.jsonl", "dispatch", mono_ns=0, wall_ns=0)
        totals = await replay(
            planned, Target("127.0.0.1", port), now_ns=time.monotonic_ns, sleep_until=pacer.sleep_until,
            t0_ns=time.monotonic_ns() + (200 * MS if mode == "rate" else 0), connect=loop.create_connection,
            write=journal.write, status=StatusPage(slot_names(), Path(folder) / "status"), options=ReplayOptions(
                prewarm=64 if mode == "rate" else 0, closed_loop_users=None if mode == "rate" else users,
                bounds=Bounds(10 * S, 10 * S, 1.0, 1.0),
            ),
        )  # fmt: skip
        journal.close()
        cpu_s = time.process_time() - began
        out: dict[str, Any] = {"outcomes": totals.outcomes, "merged_share": totals.merged_events / totals.token_events}
        if mode == "rate":
            rows = JournalReader(journal.path)
            out["lateness_ms_p99"] = p99_ms([r["t_sent_ns"] - r["due_ns"] for r in rows if r["t_sent_ns"]])
        return cpu_s, out


async def bare_aiohttp(mode: str, port: int, count: int, users: int, rate: int) -> tuple[float, dict[str, Any]]:
    """A bare aiohttp client, as quick as it gets: one body for all, no cookies, limits or timers; each read stamped,
    each event parsed."""
    import aiohttp
    import orjson
    from yarl import URL

    body = orjson.dumps(
        {"prompt": list(range(1000, 1000 + PROMPT_TOKENS)), "max_tokens": OUTPUT_TOKENS, "stream": True}
    )
    url = URL(f"http://127.0.0.1:{port}/v1/completions")
    began = quiet_gc()
    late: list[int] = []
    stamps: list[list[int]] = []

    async def one(session: aiohttp.ClientSession) -> None:
        async with session.post(url, data=body, headers={"content-type": "application/json"}) as reply:
            rest, seen = b"", []
            async for data in reply.content.iter_any():
                seen.append(time.monotonic_ns())
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    if event != b"data: [DONE]":
                        orjson.loads(event[6:])
            stamps.append(seen)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:
        if mode != "rate":
            left = iter(range(count))

            async def user() -> None:
                for _ in left:
                    await one(session)

            await asyncio.gather(*(user() for _ in range(users)))
            return time.process_time() - began, {}
        loop, tasks = asyncio.get_running_loop(), set()
        start_ns = time.monotonic_ns() + 200 * MS
        for i in range(count):
            due = start_ns + i * S // rate
            while (wait := due - time.monotonic_ns()) > 0:
                await asyncio.sleep(wait / 1e9)
            late.append(time.monotonic_ns() - due)
            tasks.add(loop.create_task(one(session)))
        await asyncio.gather(*tasks)
    return time.process_time() - began, {"lateness_ms_p99": p99_ms(late)}


async def timer(mode: str, port: int, count: int, users: int, rate: int) -> tuple[float, dict[str, Any]]:
    """Wake-ups at the rate and nothing else: what the machine allows."""
    from loadgen.pacing import Pacer

    late: list[int] = []
    began = quiet_gc()
    with Pacer(asyncio.get_running_loop(), time.monotonic_ns) as pacer:
        start_ns = time.monotonic_ns() + 200 * MS
        for i in range(count):
            due = start_ns + i * S // rate
            await pacer.sleep_until(due)
            late.append(time.monotonic_ns() - due)
    return time.process_time() - began, {"lateness_ms_p99": p99_ms(late)}


def main() -> None:
    """Run one worker and print its figures."""
    import uvloop

    name, mode, *numbers = sys.argv[1:]
    port, count, users, rate = map(int, numbers)
    work = {"ours": ours, "aiohttp": bare_aiohttp, "timer": timer}[name]
    cpu_s, out = uvloop.run(work(mode, port, count, users, rate))
    out["cpu_us"] = cpu_s * 1e6 / count
    out["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(out))


if __name__ == "__main__":
    main()
