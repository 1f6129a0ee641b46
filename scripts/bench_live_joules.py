#!/usr/bin/env python3
"""How soon joules appear: from a workflow's last reply to the first GET /workflows/ID that shows them, under load.

Starts the embedded engine in real time, `joulegraph proxy --sample` on its simulated sensors, and tagged chat streams,
one workflow each, at a steady rate. Of every workflow the control port is asked ten times a second from the end of its
reply on. One line of JSON: how many were watched, and the delays in seconds (p50, p95, p99, max).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

ASK_EVERY_S = 0.1
GIVE_UP_S = 15.0


async def command(*args: str) -> tuple[asyncio.subprocess.Process, dict[str, object]]:
    """A joulegraph command with --json: its process and the line it says when it is ready."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "joulegraph", *args, "--json", stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    return child, json.loads(await child.stdout.readline())


async def workflow(session: aiohttp.ClientSession, data: str, control: str, name: str, tokens: int) -> float | None:
    """One tagged stream, then the seconds until its joules show; None when they never do."""
    body = {
        "model": "m",
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"{name} " * 50}],
    }
    async with session.post(f"http://{data}/v1/chat/completions", json=body, headers={"X-Workflow-Id": name}) as reply:
        reply.raise_for_status()
        await reply.read()
    ended = time.monotonic()
    while time.monotonic() - ended < GIVE_UP_S:
        async with session.get(f"http://{control}/workflows/{name}") as shown:
            if shown.status == 200 and ((await shown.json()).get("energy") or {}).get("active_uj"):
                return time.monotonic() - ended
        await asyncio.sleep(ASK_EVERY_S)
    return None


async def measure(count: int, rate: float, tokens: int, port: int) -> dict[str, object]:
    """Everything, once."""
    with tempfile.TemporaryDirectory() as folder:
        page, run = Path(folder) / "engine.status", Path(folder) / "run"
        engine, told = await command("engine", "--port", str(port), "--status", str(page), "--served-model-name", "m")
        proxy, said = await command(
            "proxy", "--upstream", str(told.get("url", f"http://127.0.0.1:{port}")), "--listen", "127.0.0.1:0",
            "--control", "0", "--record", str(run), "--sample", "--source", f"simulated:{page}",
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                tasks = []
                start = time.monotonic()
                for k in range(count):
                    await asyncio.sleep(max(0.0, start + k / rate - time.monotonic()))
                    watch = workflow(session, str(said["listen"]), str(said["control"]), f"w{k}", tokens)
                    tasks.append(asyncio.create_task(watch))
                delays = await asyncio.gather(*tasks)
        finally:
            for child in (proxy, engine):
                child.terminate()
                await child.wait()
    shown = sorted(d for d in delays if d is not None)

    def at(q: float) -> float | None:
        return round(shown[int(q * (len(shown) - 1))], 3) if shown else None

    return {
        "workflows": count,
        "rate_s": rate,
        "tokens": tokens,
        "shown": len(shown),
        "delay_s_p50": at(0.5),
        "delay_s_p95": at(0.95),
        "delay_s_p99": at(0.99),
        "delay_s_max": at(1.0),
    }


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="workflows (default %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="started per second (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each reply (default %(default)s)")
    parser.add_argument("--port", type=int, default=18_400, help="of the engine (default %(default)s)")
    args = parser.parse_args()
    result = asyncio.run(measure(args.count, args.rate, args.tokens, args.port))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["shown"] == args.count else 1


if __name__ == "__main__":
    raise SystemExit(main())
