"""What the load generator can do on one core, beside a bare aiohttp client and wrk.

    python scripts/bench_loadgen.py [--quick] [--json] [--aiperf VENV] [--guidellm VENV] [--inference-perf VENV]

A C server (scripts/bench/sse_server.c) on one core answers with streams of 16 chunks and logs every arrival; the client
has the other core. Interleaved rounds (7, with --quick 3), medians. Rows:

  burst_requests_per_s   closed loop, 64 connections, each reply in one write; from the server's log
  paced_chunks_per_s     closed loop, 512 connections, one chunk per write every 5 ms; token events per second
  paced_reads_per_s      the same, stamped reads only (chunks that waited while the client was busy merge into one)
  paced_chunks_per_cpu_s 64 connections only, so that each chunk is a read of its own: chunks per second of CPU
  cpu_us_per_request     CPU of the client per request of 16 chunks, burst
  lateness_ms_p99        open loop at 1,000/s: sent - due; timer_lateness_ms_p99: a bare timer in the same round
  rss_mb, first_request_s (process start to the first request at the server)

A peer is measured where its virtual environment is given (python -m venv VENV; VENV/bin/pip install aiperf), never in
--quick: burst only, as many requests as we send, figures from the server's log; its CPU includes its start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench import peers

BENCH = Path(__file__).resolve().parent / "bench"
CHUNKS, GAP_US, RATE = 16, 5_000, 1_000
BURST_USERS, PACED_USERS, ALONE_USERS = 64, 512, 64


ABSENT = {
    "wrk": "not installed (apt-get install wrk)",
    "aiperf": "give --aiperf VENV where aiperf is installed; never in --quick",
    "guidellm": "give --guidellm VENV where guidellm is installed; never in --quick",
    "inference-perf": "give --inference-perf VENV (Python 3.12) where it is installed; never in --quick",
}


@dataclass
class Cores:
    """Which core serves and which one drives; the same one where there is no second."""

    server: int
    client: int


def cores() -> Cores:
    """The last two cores this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(server=usable[-1], client=usable[-2] if len(usable) > 1 else usable[-1])


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Children started inside run on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """The C server in one mode; its log of arrivals after it has been stopped."""

    def __init__(self, binary: Path, mode: str, folder: Path, core: int) -> None:
        self._log = folder / "arrivals"
        with pinned(core):
            self._process = subprocess.Popen(
                [binary, str(CHUNKS), mode, str(GAP_US), self._log], stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def arrivals(self) -> list[int]:
        """Stop; CLOCK_MONOTONIC ns of every request's first byte."""
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        raw = self._log.read_bytes()
        return [int(n) for n in struct.unpack(f"<{len(raw) // 8}Q", raw)]


def sustained(arrivals: list[int]) -> float:
    """Requests per second between the first and the last tenth."""
    if len(arrivals) < 20:
        return 0.0
    cut = len(arrivals) // 10
    middle = arrivals[cut:-cut]
    return (len(middle) - 1) * 1e9 / (middle[-1] - middle[0])


@dataclass
class Bench:
    """One machine's set-up; every method measures one client once."""

    binary: Path
    folder: Path
    at: Cores
    quick: bool
    requests: int
    """of a burst round"""

    def worker(self, name: str, mode: str, count: int, users: int) -> tuple[dict[str, Any], list[int], int]:
        """Run one of load_workers.py: its figures, the server's arrivals, when it was started."""
        server = Server(self.binary, "burst" if mode == "rate" else mode, self.folder, self.at.server)
        command = [sys.executable, str(BENCH / "load_workers.py"), name, mode, str(server.port), str(count), str(users)]
        started = time.monotonic_ns()
        with pinned(self.at.client):
            done = subprocess.run([*command, str(RATE)], capture_output=True, text=True, check=False)
        arrivals = server.arrivals()
        if done.returncode:
            raise RuntimeError(f"{name} {mode} failed: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1]), arrivals, started

    def python(self, name: str) -> dict[str, float]:
        """All rows of ours or of the aiohttp client, one round."""
        paced_count = 4_000 if self.quick else 10_000
        burst, arrivals, started = self.worker(name, "burst", self.requests, BURST_USERS)
        paced, paced_arrivals, _ = self.worker(name, "paced", paced_count, PACED_USERS)
        alone, _, _ = self.worker(name, "paced", 600 if self.quick else 1_500, ALONE_USERS)
        rate, _, _ = self.worker(name, "rate", 2_000 if self.quick else 5_000, 0)
        bare, _, _ = self.worker("timer", "rate", 2_000 if self.quick else 5_000, 0)
        chunks = sustained(paced_arrivals) * CHUNKS
        return {
            "burst_requests_per_s": sustained(arrivals),
            "paced_chunks_per_s": chunks,
            **({"paced_reads_per_s": chunks * (1 - paced["merged_share"])} if "merged_share" in paced else {}),
            "paced_chunks_per_cpu_s": CHUNKS * 1e6 / alone["cpu_us"],
            "cpu_us_per_request": burst["cpu_us"],
            "lateness_ms_p99": rate["lateness_ms_p99"],
            "timer_lateness_ms_p99": bare["lateness_ms_p99"],
            "rss_mb": max(burst["rss_mb"], paced["rss_mb"], rate["rss_mb"]),
            "first_request_s": (arrivals[0] - started) / 1e9,
        }

    def wrk(self) -> dict[str, float]:
        """wrk reads and does not parse: the floor of what any client costs."""
        rows: dict[str, float] = {}
        script = self.folder / "post.lua"
        script.write_text(
            'wrk.method = "POST"\nwrk.body = \'{"prompt":"x","max_tokens":16,"stream":true}\'\n'
            'wrk.headers["content-type"] = "application/json"\n'
        )
        for mode, users, row in (("burst", BURST_USERS, "burst"), ("paced", PACED_USERS, "paced")):
            server = Server(self.binary, mode, self.folder, self.at.server)
            seconds = "1" if self.quick else "3"
            with pinned(self.at.client):
                command = ["wrk", "-t1", f"-c{users}", f"-d{seconds}s", "-s", str(script)]
                before = os.times()
                subprocess.run(
                    [*command, f"http://127.0.0.1:{server.port}/v1/completions"], capture_output=True, check=True
                )
                after = os.times()
            arrivals = server.arrivals()
            rate = sustained(arrivals)
            if row == "burst":
                cpu = after.children_user + after.children_system - before.children_user - before.children_system
                rows |= {"burst_requests_per_s": rate, "cpu_us_per_request": cpu * 1e6 / len(arrivals)}
            else:
                rows["paced_chunks_per_s"] = rate * CHUNKS
        return rows

    def peer(self, name: str, venv: Path) -> dict[str, float]:
        """One of peers.COMMANDS, one burst round."""
        server = Server(self.binary, "burst", self.folder, self.at.server)
        url = f"http://127.0.0.1:{server.port}"
        try:
            with pinned(self.at.client):
                started, cpu_s = peers.run(name, peers.Peer(venv, self.folder), url, self.requests)
        finally:
            arrivals = server.arrivals()
        if len(arrivals) < 20:
            raise RuntimeError(f"{name} ended after {len(arrivals)} requests")
        return {
            "burst_requests_per_s": sustained(arrivals),
            "cpu_us_per_request": cpu_s * 1e6 / len(arrivals),
            "first_request_s": (arrivals[0] - started) / 1e9,
        }


def interpreter() -> str:
    """Which Python measured, and how it was built: optimised builds are a tenth faster."""
    given = sysconfig.get_config_var("CONFIG_ARGS") or ""
    built = "configured with --enable-optimizations" if "--enable-optimizations" in given else "no such flag recorded"
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}, {built}"


def compiled(folder: Path) -> Path | None:
    """The server's binary; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    binary = folder / "sse_server"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(BENCH / "sse_server.c")], check=True)
    return binary


def measured(rounds: int, clients: dict[str, Callable[[], dict[str, float]]]) -> list[dict[str, Any]]:
    """Interleaved rounds, medians per figure."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name, measure in clients.items():
            if name in failed:
                continue
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            try:
                seen[name].append(measure())
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed[name] = re.sub(r"\s+", " ", str(error))[:300]
    return [
        {"generator": name, "skipped": failed[name]}
        if name in failed
        else {
            "generator": name,
            "rounds": len(rows),
            **{key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]},
        }
        for name, rows in seen.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """A plain table."""
    for row in rows:
        print(row["generator"])
        for key, value in row.items():
            if key != "generator":
                print(f"  {key:24} {value}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds, no peers")
    parser.add_argument("--rounds", type=int, help="how many rounds (default 7, with --quick 3)")
    parser.add_argument("--json", action="store_true", help="one JSON line on stdout")
    parser.add_argument("--requests", type=int, help="of a burst round (default 10,000, with --quick 8,000)")
    for name in peers.COMMANDS:
        parser.add_argument(f"--{name}", type=Path, metavar="VENV", help=f"virtual environment that has {name}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binary = compiled(folder)
        if binary is None:
            rows: list[dict[str, Any]] = [{"generator": "joulegraph", "skipped": "no C compiler (cc) for the server"}]
        else:
            requests = args.requests or (8_000 if args.quick else 10_000)
            bench = Bench(binary, folder, cores(), args.quick, requests)
            clients: dict[str, Callable[[], dict[str, float]]] = {
                "joulegraph": lambda: bench.python("ours"),
                "aiohttp": lambda: bench.python("aiohttp"),
            }
            if shutil.which("wrk"):
                clients["wrk"] = bench.wrk
            for name in () if args.quick else peers.COMMANDS:
                venv = getattr(args, name.replace("-", "_"))
                if venv is not None:
                    clients[name] = partial(bench.peer, name, venv.absolute())
            rows = measured(args.rounds or (3 if args.quick else 7), clients)
            for row in rows:
                if row["generator"] in ("joulegraph", "aiohttp"):
                    row["interpreter"] = interpreter()
            rows += [{"generator": name, "skipped": why} for name, why in ABSENT.items() if name not in clients]
    print(json.dumps(rows)) if args.json else show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
