"""Drives the probe: work in a square wave, drifting and locked bursts, while every sensor is polled finely.

The work runs in processes of its own (CPU: one spinner per core; GPU: matrix products through torch or CuPy) and
reports when it really ran. Judgement is probe's. May not know: tables, the run directory.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from threading import Event, Thread
from typing import Any

import numpy as np
import orjson

from energy.edges import unlocked
from energy.probe import Duty, Ints, Response, Updates, Wave, duty, response, series, updates
from energy.sampler import Sampler
from energy.sampling import SamplerThread
from energy.source import Found, Polled, Source
from traces.child import Child, on_lifeline_end, spawn
from traces.errors import UserError

_MS = 1_000_000
_SECOND = 1_000_000_000
SQUARE = (500 * _MS, 1037 * _MS, 11 * 1037 * _MS)  # no multiple of an update period: each cycle is seen at other phases
_DUTY = (
    (25 * _MS, 101 * _MS, 13 * _SECOND),
    (25 * _MS, 100 * _MS, 8 * _SECOND),
    (4 * _SECOND, 4 * _SECOND, 4 * _SECOND),
)
_PAUSE_NS = 2 * _SECOND
POLL_NS = 20 * _MS
_PATIENCE_S = 120
Plan = list[tuple[int, int]]


@dataclass(frozen=True)
class Probed:
    """What the probe found of one sensor."""

    updates: Updates
    response: Response | None
    duty: Duty | None


@dataclass(frozen=True)
class Recording:
    """One probe as it was recorded: journal rows, when the square wave's work ran, and the duty waves."""

    rows: list[dict[str, Any]]
    square: list[tuple[int, int]]
    waves: list[Wave]
    """drifting, locked, full; empty for a probe without them (CPU)"""


def gpu_library() -> str | None:
    """What can drive the GPU here: torch, cupy or nothing."""
    return next((name for name in ("torch", "cupy") if importlib.util.find_spec(name) is not None), None)


def probe_cpu(found: Found, say: Callable[[str], None], workers: int | None = None) -> Recording:
    """Square wave on all cores."""
    count = workers or len(os.sched_getaffinity(0))
    with _workers(count, "cpu") as children:
        return _record(found, children, [SQUARE], say)


def probe_gpu(found: Found, library: str, say: Callable[[str], None]) -> Recording:
    """Square wave, drifting, locked and full work on the first GPU."""
    with _workers(1, library) as children:
        return _record(found, children, [SQUARE, *_DUTY], say)


def judge(recording: Recording) -> dict[str, Probed]:
    """Every sensor's figures from a recorded probe."""
    shown = series(recording.rows)
    edges: Ints = np.array(recording.square, np.int64).reshape(-1, 2)
    domains = {row["source"]: row["domain"] for row in recording.rows if row.get("kind") == "sensor"}
    ledger = next((name for name in shown if shown[name].counter), None)
    peers = {name: one for name, one in shown.items() if ledger and domains[name] == domains[ledger]}
    rest = {name: one for name, one in shown.items() if name not in peers}
    both = [*duty(peers, recording.waves, ledger), *duty(rest, recording.waves, None)] if recording.waves else []
    verdicts = {verdict.source: verdict for verdict in both}
    judged = {}
    for name, one in shown.items():
        around = one.between(int(edges[0, 0]) - _SECOND, int(edges[-1, 1]) + _SECOND) if len(edges) else one
        fitted = response(around, edges) if len(edges) > 1 else None
        judged[name] = Probed(updates(one), fitted, verdicts.get(name))
    return judged


def plan(start_ns: int, shapes: list[tuple[int, int, int]]) -> tuple[Plan, list[Wave]]:
    """Bursts of work (start, end) for shapes (on, period, length), each after a pause; and the waves they form."""
    bursts: Plan = []
    waves: list[Wave] = []
    at = start_ns
    for on, period, length in shapes:
        at += _PAUSE_NS
        ons = [(t, t + on) for t in range(at, at + length, period)]
        bursts += ons
        waves.append(Wave(at, at + length, on, period, on / period))
        at += length
    return bursts, waves


def _record(
    found: Found, children: list[Child], shapes: list[tuple[int, int, int]], say: Callable[[str], None]
) -> Recording:
    """Let the children work to the plan while the sensors are polled."""
    rows: list[dict[str, Any]] = []
    fine: list[Source] = [Polled(unlocked(s), min(s.poll_ns, POLL_NS)) if s.infos else s for s in found.sources]
    thread = SamplerThread(Sampler(fine, lambda record: rows.append(asdict(record)), clock=time.monotonic_ns))
    stop = Event()
    watchdog = Thread(target=thread.watch, args=(stop,), name="watchdog")
    watchdog.start()
    try:
        bursts, waves = plan(time.monotonic_ns(), shapes)
        say(f"probing for {(bursts[-1][1] + _PAUSE_NS - time.monotonic_ns()) / 1e9:.0f} s ...")
        for child in children:
            child.lifeline.send_bytes(orjson.dumps(bursts))
        done: Plan = [(a, b) for a, b in orjson.loads(_hear(children[0], bursts[-1][1] - time.monotonic_ns()))]
        time.sleep(_PAUSE_NS / 1e9)
    finally:
        stop.set()
        watchdog.join()
    square = [burst for burst in done if burst[0] < waves[0].t1_ns]
    real = [_as_it_ran(wave, done) for wave in waves[1:]]
    return Recording(rows, square, real)


def _as_it_ran(wave: Wave, done: Plan) -> Wave:
    """The wave with the share of work that was really done."""
    inside = [(a, b) for a, b in done if wave.t0_ns <= a < wave.t1_ns]
    if not inside:
        return wave
    t0, t1 = inside[0][0], max(wave.t1_ns, inside[-1][1])
    return Wave(t0, t1, wave.on_ns, wave.period_ns, sum(b - a for a, b in inside) / (t1 - t0))


@contextlib.contextmanager
def _workers(count: int, kind: str) -> Iterator[list[Child]]:
    """Warmed-up worker processes; each says so with one message."""
    children = [spawn(work, kind, name=f"probe-{kind}-{n}") for n in range(count)]
    try:
        for child in children:
            _hear(child, 0)
        yield children
    finally:
        for child in children:
            child.stop()


def _hear(child: Child, work_ns: int) -> bytes:
    """A worker's next message. UserError when it died (its own traceback stands above) or stays silent."""
    try:
        if child.lifeline.poll(work_ns / 1e9 + _PATIENCE_S):
            return child.lifeline.recv_bytes()
    except (EOFError, ConnectionResetError):
        raise UserError(f"{child.process.name}: the probe's worker failed; see above, or leave out --probe") from None
    raise UserError(f"{child.process.name}: the probe's worker is stuck; is the device busy? leave out --probe")


def work(lifeline: Connection, kind: str) -> None:
    """Entry of a worker: warm up, say ready, work to the plan, report when it really worked."""
    burst = {"cpu": _spin, "torch": _torch_burst, "cupy": _cupy_burst}[kind]()
    burst(time.monotonic_ns() + 300 * _MS)
    lifeline.send_bytes(b"ready")
    bursts: Plan = orjson.loads(lifeline.recv_bytes())
    on_lifeline_end(lifeline, lambda: os._exit(0))
    done = []
    for start, end in bursts:
        while (left := start - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)
        began = time.monotonic_ns()
        done.append((began, burst(end)))
    lifeline.send_bytes(orjson.dumps(done))


def _spin() -> Callable[[int], int]:
    def burst(until_ns: int) -> int:
        while (now := time.monotonic_ns()) < until_ns:
            sum(range(2000))
        return now

    return burst


def _torch_burst() -> Callable[[int], int]:
    torch = importlib.import_module("torch")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return _burst(lambda: torch.mm(a, a), torch.cuda.synchronize)


def _cupy_burst() -> Callable[[int], int]:
    cupy = importlib.import_module("cupy")
    a = cupy.random.standard_normal((8192, 8192), dtype=cupy.float32).astype(cupy.float16)
    return _burst(lambda: cupy.matmul(a, a), cupy.cuda.Device().synchronize)


def _burst(launch: Callable[[], Any], wait: Callable[[], Any]) -> Callable[[int], int]:
    def burst(until_ns: int) -> int:
        while time.monotonic_ns() < until_ns:
            launch()
            wait()
        return time.monotonic_ns()

    return burst
