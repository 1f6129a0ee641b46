"""Knobs of a GPU: power limit and locked SM clock, turned only when asked for and always put back.

Order of every turn: leftovers of an earlier crash put back, previous value read, written to a journal on disk, set,
the enforced value read back. Put back on exit, exception and signal; after a SIGKILL by a guardian process that holds
a pipe from us, and failing that by the next start (the journal knows). Without permission nothing is touched: the
reason and the command are data. May not know: what runs while a knob is turned.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from energy import nvml as nvml_sensors
from energy.knob_bench import MW, Bench, Kind, Turn, alive, pending
from energy.source import Missing
from traces.child import Child, on_lifeline_end, spawn
from traces.errors import UserError
from traces.records import DeviceState, from_row

SW_POWER_CAP = 0x4
CAP_SYS_ADMIN = 1 << 21
SETTLE_NS = 5_000_000_000
"""left out after a turn before its effect is judged"""


@dataclass
class Turned:
    """What a `with turned(...)` block got: applied turns, or why nothing was touched."""

    turns: list[Turn] = field(default_factory=list)
    skipped: Missing | None = None
    restored: list[str] = field(default_factory=list)
    """after the block: what was put back, or why it could not be (the next start tries again)"""

    @property
    def applied(self) -> bool:
        """Whether any knob stands where it was asked to."""
        return bool(self.turns)


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether a knob showed in the device's own state while work ran."""

    verdict: Literal["bit", "no effect", "not applied", "unknown"]
    why: str
    sm_mhz: float | None = None
    capped_share: float | None = None
    """share of state readings with the software power cap among the throttle reasons"""


def default_journal() -> Path:
    """Where previous values are kept between processes: one file per user and host."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "joulegraph" / f"knobs.{socket.gethostname()}.jsonl"


def prove(turn: Turn, states: list[DeviceState]) -> Proof:
    """Judge a turn by the states sampled under load (settled: leave the first 5 s out)."""
    clocks = [s.sm_mhz for s in states if s.sm_mhz is not None]
    reasons = [s.throttle for s in states if s.throttle is not None]
    if not clocks or not reasons:
        return Proof("unknown", "no clocks or throttle reasons were sampled while it was set")
    mean = sum(clocks) / len(clocks)
    capped = sum(bool(r & SW_POWER_CAP) for r in reasons) / len(reasons)
    if turn.knob == "power_limit":
        if turn.enforced is not None and turn.enforced > turn.wanted:
            return Proof("not applied", f"the driver enforces {turn.enforced // MW} W", mean, capped)
        if capped >= 0.05:
            return Proof("bit", f"the power cap throttled in {100 * capped:.0f} % of the readings", mean, capped)
        return Proof("no effect", "the load stayed below the cap (it is applied, but never throttled)", mean, capped)
    if max(clocks) > turn.wanted:
        return Proof("not applied", f"the SM clock reached {max(clocks)} MHz", mean, capped)
    return Proof("bit", f"the SM clock stayed at or below {turn.wanted} MHz", mean, capped)


def states(rows: Iterable[dict[str, Any]], device: str, t0_ns: int, t1_ns: int) -> list[DeviceState]:
    """The states of one device ("gpu0") in a window of a power journal, for `prove`."""
    found = (from_row(DeviceState, row) for row in rows if row.get("kind") == "state")
    return [s for s in found if s.source.endswith(f".{device}") and t0_ns <= s.t_ns <= t1_ns]


@contextlib.contextmanager
def turned(
    *,
    power_cap_w: int | None = None,
    sm_clock_mhz: int | None = None,
    gpus: list[int] | None = None,
    journal: Path | None = None,
    nvml: Any = None,
    now_ns: Callable[[], int] = time.monotonic_ns,
    guard: bool = True,
) -> Iterator[Turned]:
    """Turn the asked knobs on the given GPUs (None: all) for the length of the block.

    UserError for a value outside the card's range. No permission, no driver, a lock set by someone else: `skipped`.
    """
    if power_cap_w is None and sm_clock_mhz is None:
        yield Turned()
        return
    if nvml is None:
        nvml, missing = nvml_sensors.load()
        if missing is not None:
            yield Turned(skipped=missing)
            return
    bench = Bench(nvml, journal or default_journal(), now_ns)
    bench.restore()
    devices = bench.devices(gpus)
    wants = _wants(bench, devices, power_cap_w, sm_clock_mhz)
    guardian: Child | None = None
    outcome = Turned()
    with _signals_as_exits():
        try:
            guardian = spawn(guardian_process, str(bench.journal), os.getpid(), name="knobs") if guard else None
            if guardian is not None:
                guardian.lifeline.poll(30)
            outcome.turns, outcome.skipped = _turn_all(bench, wants)
            if outcome.skipped is not None:
                bench.restore(os.getpid())
            yield outcome
        finally:
            outcome.restored = bench.restore(os.getpid())
            if guardian is not None:
                guardian.stop()


def restore_left_behind(journal: Path | None = None, nvml: Any = None) -> list[str]:
    """At every start: put back what a killed run left turned. Sentences of what was done (empty: nothing to do).

    What a process that lives has turned is its own.
    """
    path = journal or default_journal()
    gone = (
        sorted({row["pid"] for row in pending(path) if not alive(row["pid"], row["start"])}) if path.is_file() else []
    )
    if not gone:
        return []
    if nvml is None:
        nvml, missing = nvml_sensors.load()
        if missing is not None:
            return [f"{path}: knobs of an earlier run are still turned, but {missing.sentence()}"]
    bench = Bench(nvml, path, time.monotonic_ns)
    return [done for pid in gone for done in bench.restore(pid)]


def guardian_process(lifeline: Connection, journal: str, owner: int) -> None:
    """Waits for its parent to end and puts back what the parent left turned."""
    gone = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    on_lifeline_end(lifeline, gone.set)
    with contextlib.suppress(OSError):
        lifeline.send_bytes(b"ready")
    gone.wait()
    path = Path(journal)
    if pending(path, owner):
        nvml, missing = nvml_sensors.load()
        if missing is None:
            Bench(nvml, path, time.monotonic_ns).restore(owner)


def describe_knobs(nvml: Any = None) -> list[dict[str, str]]:
    """For doctor: each knob of each GPU, its present value and range, and who may set it. Touches nothing."""
    if nvml is None:
        nvml, missing = nvml_sensors.load()
        if missing is not None:
            return []
    bench = Bench(nvml, default_journal(), time.monotonic_ns)
    may = "this process may set it" if _may_administer() else "setting it needs root (in a container, CAP_SYS_ADMIN)"
    rows = []
    for index, handle in bench.devices(None):
        limit, why = bench.read_limit(handle)
        span = bench.constraints(handle)
        text = f"{limit // MW} W" if limit is not None else f"not readable ({why})"
        text += f" of {span[0] // MW}-{span[1] // MW} W; {may}" if span else ""
        rows.append({"knob": "power_limit", "device": f"gpu{index}", "state": text})
    return rows


def _may_administer() -> bool:
    """Root with CAP_SYS_ADMIN, which containers usually take away."""
    try:
        status = Path("/proc/self/status").read_text()
        capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    except (OSError, IndexError, ValueError):
        return os.geteuid() == 0
    return os.geteuid() == 0 and bool(capabilities & CAP_SYS_ADMIN)


def _wants(
    bench: Bench, devices: list[tuple[int, Any]], power_cap_w: int | None, sm_clock_mhz: int | None
) -> list[tuple[Kind, int, Any, int]]:
    """Every (knob, gpu, handle, value), checked against the card's range before anything is touched."""
    wants: list[tuple[Kind, int, Any, int]] = []
    for index, handle in devices:
        if power_cap_w is not None:
            span = bench.constraints(handle)
            if span is not None and not span[0] <= power_cap_w * MW <= span[1]:
                low, high = (value // MW for value in span)
                raise UserError(f"--power-cap {power_cap_w}: gpu{index} takes {low} to {high} W")
            wants.append(("power_limit", index, handle, power_cap_w * MW))
        if sm_clock_mhz is not None:
            most = bench.max_clock(handle)
            if sm_clock_mhz <= 0 or (most is not None and sm_clock_mhz > most):
                raise UserError(f"--sm-clock {sm_clock_mhz}: gpu{index} takes 1 to {most} MHz")
            wants.append(("sm_clock", index, handle, sm_clock_mhz))
    return wants


def _turn_all(bench: Bench, wants: list[tuple[Kind, int, Any, int]]) -> tuple[list[Turn], Missing | None]:
    """All or nothing: the first refusal stops, and the caller puts back what was turned before it."""
    turns: list[Turn] = []
    for kind, index, handle, value in wants:
        got = bench.turn(kind, index, handle, value)
        if isinstance(got, Missing):
            return [], got
        turns.append(got)
    return turns, None


@contextlib.contextmanager
def _signals_as_exits() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack (so that knobs are put back) instead of ending the process on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {name: signal.signal(name, leave) for name in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
