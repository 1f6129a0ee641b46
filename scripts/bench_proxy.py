#!/usr/bin/env python3
"""What the proxy costs, beside nginx, vllm-router, a plain aiohttp proxy and none: CPU, added latency, memory.

All proxies run at once in front of the same fake engine (scripts/bench/stream_engine.c) on one core, engine and load on
another; in every round each load is put on each proxy in turn, so ratios are paired. CPU is read from
/proc/*/task/*/schedstat over the process tree. Requests come as fast as each proxy takes them (cpu_us_per_request), and
at one rate for all (cpu_us_per_request_5k): where the peers of a slower proxy fall asleep between its writes it pays
for waking them.
Rows of joulegraph name their interpreter, its build and the form of the hot modules; --also-python adds one on another
interpreter (whose environment has the dependencies). Needs gcc, and nginx from the distribution (apt install
nginx-light), vllm-router in an environment of its own (python3 -m venv V; V/bin/pip install vllm-router; --vllm-router
V/bin/vllm-router).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "scripts" / "bench"
PROXY_CORE, LOAD_CORE = 0, 1
Rounds = dict[str, list[dict[str, float]]]
RATE = 5000
LATE = 0.01
"""share of late requests that is worth a word: the load was not quite the one asked for"""
METRICS = (
    "cpu_us_per_request",
    "cpu_us_per_request_5k",
    "cpu_us_per_chunk",
    "ttft_added_ms_p50",
    "ttft_added_ms_p99",
    "burst256_cpu_us_per_chunk",
    "burst256_chunk_ms_p50",
    "body200k_ms_p50",
)
NGINX = """daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
worker_rlimit_nofile 65535; events {{ worker_connections 16384; }}
http {{ access_log off; client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 1000000;
client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
scgi_temp_path {dir}/s; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; }}
upstream grid {{ server 127.0.0.1:{grid}; keepalive 512; }}
server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://engine; }} }}
server {{ listen 127.0.0.1:{grid_port} backlog=4096; location / {{ proxy_pass http://grid; }} }} }}
"""


@dataclass
class Peer:
    """One proxy under test: where it listens for the paced and for the step-grid engine, and its process roots."""

    name: str
    port: int = 0
    grid_port: int = 0
    roots: list[int] = field(default_factory=list)
    skipped: str | None = None
    python: str | None = None
    """interpreter and build, where it is one of ours"""


def build_of(python: str) -> str:
    """Version of an interpreter, what it says of its build, and what a method call costs on it (CPU ns, least of 40).

    The call is there because sysconfig need not say it all: a distribution may optimise by other means.
    """
    code = """if True:
        import platform, sys, sysconfig, time, timeit
        class A:
            def f(self, x): return x + 1
        best = min(timeit.repeat("a.f(1)", timer=time.process_time, number=50_000, repeat=40, globals={"a": A()})) * 2e4
        said = sysconfig.get_config_var("CONFIG_ARGS") or ""
        how = "--enable-optimizations" if "--enable-optimizations" in said else "no --enable-optimizations"
        from traces.compiled import FORM
        print(f"{platform.python_implementation()} {platform.python_version()} at {sys.base_prefix}, "
              f"hot modules {FORM}, {sysconfig.get_config_var('OPT') or ''}, {how}, {best:.0f} ns per method call")
    """
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> bool:
    """Until something listens; False when the process died or the time is up."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


@contextmanager
def running(command: list[str], core: int, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A child pinned to one core, ended at the end."""
    child = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **more,  # type: ignore[call-overload]
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(8)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def tree(roots: list[int]) -> set[int]:
    """Process ids of the roots and all their descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), list(roots)
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += parents.get(pid, [])
    return found


def cpu_ns(roots: list[int]) -> int:
    """CPU time of a process tree so far."""
    total = 0
    for pid in tree(roots):
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(path.read_text().split()[0])
            except OSError:
                continue
    return total


def resident_mb(roots: list[int]) -> float:
    """Resident memory of a process tree; pages that its processes share count once (Pss)."""
    total = 0
    for pid in tree(roots):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def first_in_first_out(stack: ExitStack, roots: list[int]) -> None:
    """SCHED_FIFO for process trees, threads included: what else runs on the machine no longer disturbs.

    Taken back before anything is ended: a real-time parent that waits for its child spins in the kernel, on a core that
    it never leaves, as long as a process of usual priority looks at that child in /proc.
    """
    pids = tree(roots)
    stack.callback(lambda: [subprocess.run(["chrt", "-a", "-o", "-p", "0", str(pid)], check=False) for pid in pids])
    for pid in pids:
        subprocess.run(["chrt", "-a", "-f", "-p", "5", str(pid)], check=True)


def load(binary: Path, port: int, *args: object) -> dict[str, float]:
    """One run of the load generator."""
    command = ["taskset", "-c", str(LOAD_CORE), str(binary), str(port), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


def start_peers(
    stack: ExitStack, work: Path, engine: int, grid: int, router: str | None, pythons: list[str]
) -> list[Peer]:
    """Start everything that is there; a missing peer says why."""
    peers = [Peer("none", engine, grid)]
    peers.append(_joulegraph(stack, work, engine, grid, sys.executable, "joulegraph"))
    for python in pythons:
        peers.append(_joulegraph(stack, work, engine, grid, python, f"joulegraph on {python}"))
    peers.append(_nginx(stack, work, engine, grid))
    peers.append(_router(stack, engine, grid, router))
    peers.append(_pair(stack, "aiohttp", engine, grid, _aiohttp))
    return peers


def _aiohttp(port: int, target: int) -> list[str]:
    return [sys.executable, str(BENCH / "aiohttp_proxy.py"), str(port), url(target)]


def url(port: int) -> str:
    """The address of an engine."""
    return f"http://127.0.0.1:{port}"


def _pair(stack: ExitStack, name: str, engine: int, grid: int, command: object) -> Peer:
    """A proxy that takes one upstream: one instance per engine."""
    peer = Peer(name, free_port(), 0)
    for target in (engine, grid):
        port = free_port()
        child = stack.enter_context(running(command(port, target), PROXY_CORE, cwd=ROOT))  # type: ignore[operator]
        if not wait_port(port, child):
            return Peer(name, skipped=f"{name} did not start")
        peer.roots.append(child.pid)
        if target == engine:
            peer.port = port
        else:
            peer.grid_port = port
    return peer


def _joulegraph(stack: ExitStack, work: Path, engine: int, grid: int, python: str, name: str) -> Peer:
    def command(port: int, target: int) -> list[str]:
        return [
            python, "-m", "joulegraph", "proxy", "--upstream", url(target), "--listen", f"127.0.0.1:{port}",
            "--control", "0", "--record", str(work / f"run{port}"),
        ]  # fmt: skip

    peer = _pair(stack, name, engine, grid, command)
    peer.python = build_of(python)
    return peer


def _nginx(stack: ExitStack, work: Path, engine: int, grid: int) -> Peer:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        return Peer("nginx", skipped="nginx is not installed (apt install nginx-light)")
    peer = Peer("nginx", free_port(), free_port())
    config = work / "nginx.conf"
    config.write_text(NGINX.format(dir=work, engine=engine, grid=grid, port=peer.port, grid_port=peer.grid_port))
    child = stack.enter_context(running([binary, "-c", str(config), "-p", str(work)], PROXY_CORE))
    if not wait_port(peer.port, child):
        return Peer("nginx", skipped="nginx did not start")
    peer.roots = [child.pid]
    return peer


def _router(stack: ExitStack, engine: int, grid: int, given: str | None) -> Peer:
    binary = given or shutil.which("vllm-router")
    if binary is None:
        return Peer("vllm-router", skipped="vllm-router is not installed (pip install vllm-router in its own venv)")

    def command(port: int, target: int) -> list[str]:
        return [
            binary, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", url(target), "--policy", "round_robin",
            "--prometheus-port", str(free_port()), "--log-level", "error",
        ]  # fmt: skip

    peer = _pair(stack, "vllm-router", engine, grid, command)
    return peer if peer.skipped or _answers(peer.port) else Peer("vllm-router", skipped="vllm-router does not answer")


def _answers(port: int, seconds: float = 20.0) -> bool:
    body = b'{"model":"fake-1-0","messages":[{"role":"user","content":"x"}]}'
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        request = urllib.request.Request(f"{url(port)}/v1/chat/completions", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=2) as reply:
                return reply.status == 200
        except OSError:
            time.sleep(0.3)
    return False


Found = dict[str, float]
CHUNKS, REPEATS = ("s", 64, 5000), 4
"""a run costs a tenth more or less per chunk, by how its streams lie to each other: the mean of four counts"""
LOADS: list[tuple[bool, int, tuple[object, ...], Callable[[Found, float], Found]]] = [
    (False, 32, ("n", 64, 0), lambda got, used: {"cpu_us_per_request": used / got["all_requests"]}),
    (False, 32, ("n", 64, 0, RATE), lambda got, used: {"cpu_us_per_request_5k": used / got["all_requests"]}),
    (
        False,
        80,
        CHUNKS,
        lambda got, used: {"cpu_us_per_chunk": used / got["all_chunks"], "chunks_s": got["chunks_s"]},
    ),
    (False, 40, ("s", 16, 5000), lambda got, _: {"ttft_p50": got["ttft_p50"], "ttft_p99": got["ttft_p99"]}),
    (
        True,
        256,
        ("s", 50, 20000),
        lambda got, used: {
            "burst256_cpu_us_per_chunk": used / got["all_chunks"],
            "burst256_chunk_ms_p50": got["chunk_p50"],
        },
    ),
    (False, 8, ("n", 64, 0, 50, 200_000), lambda got, _: {"body200k_ms_p50": got["ttft_p50"]}),
]
"""whether on one step grid, connections, what each sends, and the figures that come of what was seen and of CPU time
used (us)"""


def measure(peers: list[Peer], binary: Path, seconds: float) -> dict[str, Found]:
    """One round: every load on one proxy after the other, so that what is compared is seconds apart."""
    seen: dict[str, dict[str, list[float]]] = {peer.name: {} for peer in peers}
    for on_grid, connections, args, figures in LOADS:
        for peer in peers * (REPEATS if args == CHUNKS else 1):
            before = cpu_ns(peer.roots)
            got = load(binary, peer.grid_port if on_grid else peer.port, connections, seconds, *args)
            used = (cpu_ns(peer.roots) - before) / 1e3
            if got["errors"]:
                sys.stderr.write(f"{peer.name}: {got['errors']:.0f} errors in {args}\n")
            if got["late"] > LATE * got["all_requests"]:
                sys.stderr.write(f"{peer.name}: {got['late']:.0f} of {args} went late, for want of a connection\n")
            for name, value in figures(got, used).items():
                seen[peer.name].setdefault(name, []).append(value)
    return {peer: {name: statistics.mean(values) for name, values in found.items()} for peer, found in seen.items()}


def memory(peer: Peer, binary: Path) -> float:
    """Resident memory of the measured instance (parent, workers and helpers) while 1,000 streams run."""
    command = ["taskset", "-c", str(LOAD_CORE), str(binary), str(peer.port), "1000", "6", "s", "40", "100000"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(4.5)
    used = resident_mb(peer.roots[:1])
    child.wait()
    return used


def interval(values: list[float]) -> list[float]:
    """5 %, 50 %, 95 % of a few values."""
    ordered = sorted(values)

    def at(q: float) -> float:
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return [round(at(q), 3) for q in (0.05, 0.5, 0.95)]


def rows(peers: list[Peer], rounds: Rounds, rss: dict[str, float]) -> list[dict[str, object]]:
    """The report: one row per proxy."""
    out: list[dict[str, object]] = []
    for peer in peers:
        row: dict[str, object] = {"proxy": peer.name}
        if peer.skipped:
            out.append({**row, "skipped": peer.skipped})
            continue
        mine, none = rounds[peer.name], rounds["none"]
        for one, base in zip(mine, none, strict=True):
            one["ttft_added_ms_p50"] = one["ttft_p50"] - base["ttft_p50"]
            one["ttft_added_ms_p99"] = one["ttft_p99"] - base["ttft_p99"]
        for name in METRICS:
            value = round(statistics.median(r[name] for r in mine), 3)
            row[name] = None if peer.name == "none" and "cpu" in name else value
        row["rss_mb_1000_streams"] = round(rss[peer.name], 1) if peer.name != "none" else None
        row["rounds"] = len(mine)
        if peer.python is not None:
            row["python"] = peer.python
        for other in ("nginx", "vllm-router"):
            if peer.name not in ("none", other) and other in rounds:
                row[f"ratio_to_{other.replace('-', '_')}"] = {
                    name: interval([a[name] / b[name] for a, b in zip(mine, rounds[other], strict=True) if b[name] > 0])
                    for name in METRICS
                    if not name.startswith("ttft")
                }
        out.append(row)
    return out


def show(table: list[dict[str, object]]) -> None:
    """A plain table on stderr."""
    names = [*METRICS, "rss_mb_1000_streams"]
    sys.stderr.write(f"{'proxy':<12}" + "".join(f"{n:>27}" for n in names) + "\n")
    for row in table:
        cells = "".join(f"{row.get(n) if row.get(n) is not None else '-':>27}" for n in names)
        sys.stderr.write(f"{row['proxy']:<12}{row.get('skipped', cells)}\n")
    for row in table:
        if "python" in row:
            sys.stderr.write(f"{row['proxy']}: {row['python']}\n")
        for other in ("nginx", "vllm_router"):
            for name, ratio in (row.get(f"ratio_to_{other}") or {}).items():  # type: ignore[attr-defined]
                sys.stderr.write(f"{row['proxy']} / {other}, {name}: {ratio[1]} [{ratio[0]}, {ratio[2]}]\n")


def main() -> int:
    """Build, start, measure in rounds, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of short runs instead of 7")
    parser.add_argument("--json", action="store_true", help="the rows as one line of JSON on stdout")
    parser.add_argument("--vllm-router", metavar="BIN", help="path of vllm-router (default: from PATH)")
    parser.add_argument(
        "--also-python", action="append", default=[], metavar="BIN", help="another joulegraph, on this interpreter"
    )
    parser.add_argument("--fifo", action="store_true", help="real-time priority for all of it (root; steadier figures)")
    parser.add_argument("--only", metavar="NAME,...", help="these proxies (none always runs)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by the way that ends what was started, --fifo above all
    count, seconds = (3, 1.5) if args.quick else (7, 3.0)
    if shutil.which("gcc") is None or len(os.sched_getaffinity(0)) < 2:
        sys.stderr.write("bench_proxy: needs gcc and two cores\n")
        return 2
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        for name in ("stream_engine", "stream_load"):
            subprocess.run(["gcc", "-O2", "-o", str(work / name), str(BENCH / f"{name}.c")], check=True)
        engine, grid = free_port(), free_port()
        for port, more in ((engine, []), (grid, ["-a"])):
            child = stack.enter_context(running([str(work / "stream_engine"), str(port), *more], LOAD_CORE))
            wait_port(port, child)
        peers = start_peers(stack, work, engine, grid, args.vllm_router, args.also_python)
        if args.only:
            peers = [p for p in peers if p.name.split(" on ")[0] in ("none", *args.only.split(","))]
        there = [p for p in peers if not p.skipped]
        resident = {p.name: memory(p, work / "stream_load") for p in there}
        if args.fifo:
            first_in_first_out(stack, [os.getpid(), *(pid for peer in there for pid in peer.roots)])
        rounds: dict[str, list[dict[str, float]]] = {p.name: [] for p in there}
        for number in range(count):
            turned = there[number % len(there) :] + there[: number % len(there)]
            for name, found in measure(turned, work / "stream_load", seconds).items():
                rounds[name].append(found)
            sys.stderr.write(f"round {number + 1} of {count} done\n")
        table = rows(peers, rounds, resident)
    show(table)
    if args.json:
        sys.stdout.write(json.dumps(table) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
