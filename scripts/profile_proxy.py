#!/usr/bin/env python3
"""What one request and one chunk cost in the proxy's own Python, without the kernel: transports are swallowed, CPU ns.

32 clients on kept-alive connections, each request with its own prompt and trace id as in bench_proxy.py. Least of many
short runs, so that what else runs on the machine hardly matters; compare two checkouts with --beside PATH, whose runs
take turns with ours. --functions shows the share of each function (sampled by cProfile: shares, not costs).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIENTS = 32
CHUNKS = 64
ROOT = Path(__file__).resolve().parent.parent


class Swallow:
    """A transport that writes nowhere, at next to no cost."""

    def __init__(self) -> None:
        self.write = deque[bytes](maxlen=1).append
        self.is_closing = bool  # a C callable that says False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known."""
        return default

    def close(self) -> None:
        """Never needed."""

    abort = pause_reading = resume_reading = close


class Turns:
    """The part of a loop that the hot path uses: callbacks run when told."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Run at the end of the turn."""
        self.ready.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Any:
        """Never: no timer of the proxy is due within a run."""

    def run(self) -> None:
        """The end of a turn."""
        ready = self.ready
        while ready:
            callback, args = ready.popleft()
            callback(*args)


def request(number: int, stream: bool) -> bytes:
    """What an OpenAI SDK sends, with a prompt, a workflow and a trace id of its own."""
    fill = f"{number:08d}" + "x" * 292
    more = ',"stream":true,"stream_options":{"include_usage":true}' if stream else ""
    body = (
        '{"model":"fake-64-0","messages":[{"role":"system","content":"You are a helpful assistant."},'
        f'{{"role":"user","content":"{fill}"}}],"max_tokens":64{more}}}'
    )
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8001\r\nAccept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
        "User-Agent: OpenAI/Python 3.0.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.0.0\r\n"
        "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
        "X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer sk-test-0123456789abcdef\r\n"
        f"X-Workflow-Id: wf-{number // 8:08d}\r\n"
        f"traceparent: 00-0af7651916cd43dd8448eb21{number:08d}-b7ad6b7169203331-01\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


_BODY = (
    '{"id":"chatcmpl-bench","object":"chat.completion","created":1790000000,"model":"fake","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog and then goes home."},'
    '"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":37,"total_tokens":57,"completion_tokens":20}}'
)
REPLY = (
    "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
    f"content-length: {len(_BODY)}\r\n\r\n{_BODY}"
).encode()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT = '"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1790000000,"model":"fake",'


def chunk(event: str) -> bytes:
    """One event as one HTTP chunk."""
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def token(number: int) -> bytes:
    """One token's chunk."""
    text = f"~T{1_000_000_000_000 + number}~"
    return chunk(
        f'{{{_EVENT}"choices":[{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null}}]}}'
    )


END = (
    chunk(f'{{{_EVENT}"choices":[],"usage":{{"prompt_tokens":37,"total_tokens":101,"completion_tokens":64}}}}')
    + chunk("[DONE]")
    + b"0\r\n\r\n"
)


class Harness:
    """One worker's data path with every connection in memory."""

    def __init__(self) -> None:
        from proxy.config import ProxyConfig
        from proxy.front import Front
        from proxy.hub import Hub
        from proxy.upstream import Upstream

        self.loop = Turns()
        self.lines = 0
        config = ProxyConfig(("http://127.0.0.1:8000",), run_key=b"k" * 32, upstream_idle_ns=1 << 62)
        asyncio_get, asyncio.get_running_loop = asyncio.get_running_loop, lambda: self.loop  # type: ignore[assignment,return-value]
        try:
            self.hub = Hub(
                config,
                now_ns=time.monotonic_ns,
                connect=None,  # type: ignore[arg-type]
                write=lambda row: None,
                write_line=deque[bytes](maxlen=1).append,
                status=None,
                tls=None,
            )
        finally:
            asyncio.get_running_loop = asyncio_get
        pool = self.hub.pools[0]
        self.fronts, self.upstreams = [], []
        for _ in range(CLIENTS):
            front = Front(self.hub)
            front.connection_made(Swallow())  # type: ignore[arg-type]
            self.fronts.append(front)
            upstream = Upstream(pool)
            upstream.connection_made(Swallow())  # type: ignore[arg-type]
            pool.give(upstream, time.monotonic_ns())
            self.upstreams.append(upstream)
        self.number = 0

    def requests(self, stream: bool) -> list[bytes]:
        """One per client."""
        self.number += CLIENTS
        return [request(self.number + k, stream) for k in range(CLIENTS)]

    def round(self, requests: list[bytes]) -> int:
        """All clients ask once and are answered; CPU ns."""
        busy = [bytes(bytearray(REPLY)) for _ in range(CLIENTS)]
        before = time.thread_time_ns()
        for front, data in zip(self.fronts, requests, strict=True):
            front.data_received(data)
        self.loop.run()
        for upstream, data in zip(self.upstreams, busy, strict=True):
            upstream.data_received(data)
        self.loop.run()
        return time.thread_time_ns() - before

    def open_streams(self, requests: list[bytes]) -> None:
        """All clients ask for a stream and get its head and first token."""
        for front, data in zip(self.fronts, requests, strict=True):
            front.data_received(data)
        self.loop.run()
        for upstream in self.upstreams:
            upstream.data_received(STREAM_HEAD)
        self.loop.run()

    def chunks(self, together: int) -> int:
        """CHUNKS tokens for each, `together` streams per turn of the loop; CPU ns, without the streams' ends."""
        reads = [[token(64 * k + n) for k in range(CLIENTS)] for n in range(CHUNKS)]
        before = time.thread_time_ns()
        upstreams, run = self.upstreams, self.loop.run
        for row in reads:
            for at in range(0, CLIENTS, together):
                for upstream, data in zip(upstreams[at : at + together], row[at : at + together], strict=True):
                    upstream.data_received(data)
                run()
        spent = time.thread_time_ns() - before
        for upstream in upstreams:
            upstream.data_received(END)
        run()
        return spent


def measure(seconds: float) -> dict[str, float]:
    """ns per request, per chunk alone in its turn, per chunk of 32 in one turn."""
    harness = Harness()
    for _ in range(20):
        harness.round(harness.requests(False))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    out: dict[str, list[float]] = {"request": [], "chunk": [], "chunk_of_32": []}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sets = [harness.requests(False) for _ in range(4)]
        out["request"] += [harness.round(requests) / CLIENTS for requests in sets]
        for name, together in (("chunk", 1), ("chunk_of_32", CLIENTS)):
            harness.open_streams(harness.requests(True))
            out[name].append(harness.chunks(together) / CLIENTS / CHUNKS)
    return {name: statistics.quantiles(values, n=10)[0] for name, values in out.items()}


def functions(seconds: float) -> None:
    """Shares of functions in the request path."""
    import cProfile
    import pstats

    harness = Harness()
    for _ in range(20):
        harness.round(harness.requests(False))
    profile = cProfile.Profile()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        requests = harness.requests(False)
        profile.enable()
        harness.round(requests)
        profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


def main() -> int:
    """Measure, alone or in turns with another checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", metavar="PATH", help="another checkout to compare with")
    parser.add_argument("--functions", action="store_true")
    parser.add_argument("--tree", default=str(ROOT), help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, args.tree)
    if args.functions:
        functions(args.seconds)
        return 0
    if args.once:
        print(" ".join(f"{value:.0f}" for value in measure(args.seconds).values()))
        return 0
    trees = [args.tree, *([args.beside] if args.beside else [])]
    runs: dict[str, list[list[float]]] = {tree: [] for tree in trees}
    for _ in range(args.rounds):
        for tree in trees:
            command = [sys.executable, "-P", __file__, "--once", "--tree", tree, "--seconds", str(args.seconds)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[tree].append([float(word) for word in said.split()])
    print(f"{'ns of CPU':<40}{'request':>10}{'chunk':>10}{'chunk of 32':>14}")
    for tree in trees:
        best = [min(column) for column in zip(*runs[tree], strict=True)]
        print(f"{tree:<40}{best[0]:>10.0f}{best[1]:>10.0f}{best[2]:>14.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
