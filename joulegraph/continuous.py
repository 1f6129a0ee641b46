"""Joules while a run goes on: a process that tails the journals and attributes a sliding window every second.

Files are the interface: it reads requests.*, dispatch.* and power.*, attributes the window with the same code as
`joulegraph attribute`, and replaces `live.json`. A request is recorded when it ends, so what is still in flight is not
seen and figures are `provisional` while their request lies in the window; the final ones come from `joulegraph finish`.
Runs beside the data workers, never inside one. May not know: sockets, terminals.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import orjson

from traces.child import on_lifeline_end
from traces.errors import UserError
from traces.rundir import RunDir

WINDOW_NS = 60_000_000_000
EVERY_S = 0.5
LEAST_NS, MANY = 10_000_000_000, 1_000
"""the window is cut down to so many requests, but not below this: a step's work then hardly grows with the rate"""
RENEW_NS, RETRY_NS = 300_000_000_000, 15_000_000_000
MAX_WORKFLOWS = 10_000
if TYPE_CHECKING:
    from energy.align import Lag
    from energy.device import Device

_TIME = {"requests": "t_end_ns", "dispatch": "t_end_ns", "power": "t0_ns"}
_POINTS = ("process", "reset", "gap")
"""rows of a power journal that bear on the split, with an instant of their own: without the CPU times of processes all
CPU joules would go to requests"""


@dataclass
class Tail:
    """The whole lines appended to one journal since the last look."""

    path: Path
    offset: int = 0
    file: int = 0
    """inode; another one means that the journal was rotated"""

    def lines(self) -> list[bytes]:
        """New whole lines; a torn last one waits for its end. A journal that was rotated is read from its start, behind
        what came to the old file after the last look, where that still lies beside it."""
        try:
            state = self.path.stat()
        except FileNotFoundError:  # renamed, and not yet opened anew
            return []
        old: list[bytes] = []
        if state.st_ino != self.file:
            old = self._read(renamed) if (renamed := self._renamed()) is not None else []
            self.offset, self.file = 0, state.st_ino
        elif state.st_size < self.offset:
            self.offset = 0
        return old + self._read(self.path)

    def _renamed(self) -> Path | None:
        for path in self.path.parent.glob(f"{self.path.name}?*") if self.file else ():
            if path.stat().st_ino == self.file:
                return path
        return None

    def _read(self, path: Path) -> list[bytes]:
        with path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self.offset += end
        return data[:end].splitlines(keepends=True)


@dataclass
class Window:
    """The rows of one journal kind that lie in the window; what is told once (sensors, whose descendant a process is)
    stays for good."""

    kind: str
    tails: dict[Path, Tail] = field(default_factory=dict)
    kept: list[bytes] = field(default_factory=list)
    timed: deque[tuple[int, bytes]] = field(default_factory=deque)

    def look(self, run: RunDir) -> int | None:
        """Take up what was appended; the latest instant seen in this look."""
        latest: int | None = None
        for path in run.journals(self.kind):
            for line in self.tails.setdefault(path, Tail(path)).lines():
                row = orjson.loads(line)
                t_ns, kind = row.get(_TIME[self.kind]), row.get("kind")
                if kind == "sensor" or (kind == "process" and row.get("role") and row.get("cpu_ns") is None):
                    self.kept.append(line)
                    continue
                if kind in _POINTS:
                    t_ns = row.get("t_ns")
                if t_ns is None:
                    continue
                self.timed.append((t_ns, line))
                latest = t_ns if latest is None else max(latest, t_ns)
        return latest

    def begin(self, now_ns: int, window_ns: int) -> int:
        """Where a window that ends now begins: so long, or shorter where it would hold too many rows."""
        begin = now_ns - window_ns
        if len(self.timed) > MANY:
            begin = max(begin, min(self.timed[-MANY][0], now_ns - LEAST_NS))
        return begin

    def drop_before(self, t_ns: int) -> None:
        """Forget what has left the window (rows are nearly in order of time; stragglers go a look later)."""
        while self.timed and self.timed[0][0] < t_ns:
            self.timed.popleft()

    def write(self, path: Path) -> None:
        """The window as a journal."""
        with path.open("wb") as file:
            file.writelines(self.kept)
            file.writelines(line for _, line in self.timed)


@dataclass
class Books:
    """Joules so far: settled ones for good, provisional ones of the present window."""

    settled: dict[str, tuple[str, str | None, int]] = field(default_factory=dict)
    """request -> (class, workflow, active uJ), while in the window"""
    classes: dict[str, int] = field(default_factory=dict)
    workflows: dict[str, int] = field(default_factory=dict)

    def take(self, now: dict[str, tuple[str, str | None, int]]) -> dict[str, Any]:
        """Requests that left the window are settled at their last figure; the state for live.json."""
        for request in [r for r in self.settled if r not in now]:
            self._settle(*self.settled.pop(request))
        self.settled = now
        classes, workflows = dict(self.classes), {w: [uj, False] for w, uj in self.workflows.items()}
        for label, workflow, uj in now.values():
            classes[label] = classes.get(label, 0) + uj
            if workflow is not None:
                so_far = workflows.setdefault(workflow, [0, True])
                so_far[0] += uj
                so_far[1] = True
        return {
            "classes": classes,
            "workflows": {w: {"active_uj": uj, "provisional": open_} for w, (uj, open_) in workflows.items()},
        }

    def _settle(self, label: str, workflow: str | None, uj: int) -> None:
        self.classes[label] = self.classes.get(label, 0) + uj
        if workflow is not None:
            self.workflows[workflow] = self.workflows.get(workflow, 0) + uj
            if len(self.workflows) > MAX_WORKFLOWS:
                del self.workflows[next(iter(self.workflows))]


class LiveLags:
    """The lag of each sensor, estimated one sensor per step: it belongs to the sensor, and estimating takes a second.

    An estimate holds for RENEW_NS; one that the window could not give is tried again when RETRY_NS have passed.
    """

    def __init__(self) -> None:
        self._lags: dict[tuple[str, str], tuple[int, Lag]] = {}

    def known(self, now_ns: int) -> dict[tuple[str, str], Lag]:
        """The lags to use now: all but the one that is most overdue."""
        overdue = sorted((due, key) for key, (due, _) in self._lags.items() if due <= now_ns)
        left_out = overdue[0][1] if overdue else None
        return {key: lag for key, (_, lag) in self._lags.items() if key != left_out}

    def take(self, devices: list[Device], given: dict[tuple[str, str], Lag], now_ns: int) -> None:
        """Keep what an attribution estimated; nothing was, at the first, where every lag is assumed."""
        for device in devices:
            key = (device.curve.device, device.curve.domain)
            if not given:
                self._lags[key] = (now_ns, device.lag)
            elif key not in given:
                self._lags[key] = (now_ns + (RENEW_NS if device.lag.known else RETRY_NS), device.lag)


def attribute_window(
    directory: Path, lags: LiveLags, now_ns: int, measured_ns: int
) -> dict[str, tuple[str, str | None, int]]:
    """request -> (class, workflow, active uJ over components that add up) of the journals in a directory; without those
    sent after the last look at power: nothing of them was measured yet, which is not 0 J."""
    from energy.align import ASSUMED
    from energy.attribute import attribute
    from energy.load import load_run
    from energy.rollup import OUTSIDE

    given = lags.known(now_ns)
    result = attribute(load_run(RunDir(directory)), lag=given or ASSUMED)
    lags.take(result.devices, given, now_ns)
    table = result.requests
    active = sum(f.active.sum(1) for f in result.figures if f.component not in OUTSIDE)
    if isinstance(active, int):
        return {}
    return {
        name: (table.classes.at(i) or "untagged", table.workflow.at(i), int(active[i]))
        for i, name in enumerate(table.ids)
        if table.sent_ns[i] < measured_ns
    }


class Continuous:
    """One run's continuous attribution; `step` once a second."""

    def __init__(self, run: RunDir, scratch: Path, *, window_ns: int = WINDOW_NS) -> None:
        self.run = run
        self.scratch = scratch
        self.window_ns = window_ns
        self.windows = [Window("requests"), Window("dispatch"), Window("power")]
        self.books = Books()
        self.lags = LiveLags()

    def step(self, now_ns: int) -> dict[str, Any] | None:
        """Look, attribute, replace live.json; None while there is nothing to attribute."""
        for window in self.windows:
            window.look(self.run)
        begin = max(w.begin(now_ns, self.window_ns) for w in self.windows if w.kind != "power")
        for window in self.windows:
            window.drop_before(begin)
            window.write(self.scratch / f"{window.kind}.jsonl")
        if not self.windows[2].timed or not (self.windows[0].timed or self.windows[1].timed):
            return None
        try:
            figures = attribute_window(self.scratch, self.lags, now_ns, self.windows[2].timed[-1][0])
        except UserError as error:
            state = {"t_ns": now_ns, "why": str(error)}
        else:
            state = {"t_ns": now_ns, "window_ns": now_ns - begin, **self.books.take(figures)}
        self.run.write_json("live.json", state)
        return state


def continuous_process(lifeline: Connection, run: Path, every_s: float = EVERY_S) -> None:
    """Entry of the process: until the lifeline ends. Sends {"started": true} when it looks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    left = Event()
    on_lifeline_end(lifeline, left.set)
    signal.signal(signal.SIGTERM, lambda *_: left.set())
    scratch = Path(tempfile.mkdtemp(prefix="joulegraph-"))
    (scratch / "run.json").write_bytes(b'{"state": "window"}')
    import_module("energy.attribute")  # a second's worth of imports, before anyone waits for the first figures

    lifeline.send({"started": True})
    try:
        job = Continuous(RunDir(run), scratch)
        took = 0.0
        while not left.wait(max(every_s - took, every_s / 4)):
            start = time.monotonic_ns()
            job.step(start)
            took = (time.monotonic_ns() - start) / 1e9
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def class_joules(run: RunDir) -> dict[str, float | None] | None:
    """Joules per class from live.json, for the live view; None before the first."""
    try:
        state = orjson.loads(run.file("live.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return {name: uj / 1e6 for name, uj in state.get("classes", {}).items()} or None
