"""The sampler's shell: which sources to look for, the thread that ticks, the watchdog, and the process around both.

The thread sleeps to absolute deadlines in a process of its own, because a saturated event loop starves a thread beside
it for seconds. The watchdog (main thread) leaves a driver call that hangs behind and goes on with a new thread.
May not know: what readings mean.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from typing import Any

import orjson

from energy import amd, node, nvml, perf, powercap, procs, pyrapl, tdp
from energy.recorded import recorded_file
from energy.sampler import Sampler, Superseded, status_names
from energy.simulated import simulated_sources
from energy.source import Found, Missing
from traces.child import Child, on_lifeline_end, spawn
from traces.errors import UserError
from traces.journal import JournalWriter, QueuedWriter
from traces.records import SensorInfo, from_row
from traces.seams import NowNs
from traces.status import StatusPage, StatusReader

HANG_NS = 500_000_000
SETTLE_NS = 500_000_000
"""as old as the live view's figures may be"""
_WATCH_S = 0.5
_CHUNK_S = 0.25
_READY_S = 30.0
_NICE = -5


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """What one sampler process does. sources: names of FINDERS, with what they need after a colon:
    "nvml", "rapl", "proc:12,34", "simulated:PAGE", "recorded:JOURNAL", "redfish:URL" ..."""

    journal: str
    """path of power.<host>.jsonl"""
    sources: tuple[str, ...] = ("nvml", "rapl")
    status: str | None = None
    """path of the status page to create"""
    poll_ns: int = 20_000_000
    """instantaneous power and RAPL; counters and rings have their own periods"""


@dataclass(frozen=True, slots=True)
class Ready:
    """What the process says once it samples."""

    sensors: list[SensorInfo]
    missing: list[Missing]
    nice: int


def find_sources(names: tuple[str, ...], poll_ns: int = 20_000_000, now_ns: NowNs = time.monotonic_ns) -> Found:
    """Look for the named sources. UserError for a name that is none; what is not there is in `missing`."""
    found = Found()
    for name in names:
        kind, _, where = name.partition(":")
        finder = FINDERS.get(kind)
        if finder is None:
            raise UserError(f"--sources {name!r}: no such source; choose from {', '.join(FINDERS)}")
        found.extend(finder(where, poll_ns, now_ns))
    return found


def _rapl(where: str, poll_ns: int, now_ns: NowNs) -> Found:
    """Powercap; where it is closed, perf_event is tried as well."""
    root = Path(where) if where else powercap.ROOT
    found = powercap.find(settle=lambda: time.sleep(0.02), root=root, poll_ns=poll_ns)
    if not found.sources and not where and perf.ROOT.is_dir():
        found.extend(perf.find(poll_ns=poll_ns))
    return found


def _simulated(where: str, poll_ns: int, now_ns: NowNs) -> Found:
    sources = simulated_sources(StatusReader(Path(where)))
    return Found(sources) if sources else Found(missing=[Missing("simulated", f"{where} shows no sensor", None)])


def _pyrapl(where: str, poll_ns: int, now_ns: NowNs) -> Found:
    module, missing = pyrapl.load()
    return pyrapl.find(module, poll_ns=poll_ns) if missing is None else Found(missing=[missing])


def _amd(where: str, poll_ns: int, now_ns: NowNs) -> Found:
    module, missing = amd.load()
    if missing is not None:
        return Found(missing=[missing])
    return amd.find(module, now_ns, settle=lambda: time.sleep(0.2), poll_ns=poll_ns)


Finder = Callable[[str, int, NowNs], Found]
FINDERS: dict[str, Finder] = {
    "nvml": lambda where, poll_ns, now_ns: nvml.find(now_ns, poll_ns=poll_ns),
    "rapl": _rapl,
    "perf": lambda where, poll_ns, now_ns: perf.find(poll_ns=poll_ns),
    "pyrapl": _pyrapl,
    "amd": _amd,
    "ipmi": lambda where, poll_ns, now_ns: node.find_ipmi(now_ns),
    "redfish": lambda where, poll_ns, now_ns: node.find_redfish(where, now_ns),
    "tdp": lambda where, poll_ns, now_ns: tdp.find(where),
    "proc": lambda where, poll_ns, now_ns: procs.find(where),
    "simulated": _simulated,
    "recorded": lambda where, poll_ns, now_ns: Found(recorded_file(Path(where))),
}
"""Each takes what stands after the colon of its name, the polling period and the clock."""


class SamplerThread:
    """A sampler ticking in a thread, and the watchdog that replaces the thread when a driver call hangs."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        now_ns: NowNs = time.monotonic_ns,
        hang_ns: int = HANG_NS,
        watch_s: float = _WATCH_S,
    ) -> None:
        self.sampler = sampler
        self.error: BaseException | None = None
        """a bug that ended the thread"""
        self._now_ns = now_ns
        self._hang_ns = hang_ns
        self._watch_s = watch_s
        self._stop = Event()
        self._thread = self._spawn()

    def _spawn(self) -> Thread:
        thread = Thread(target=self._run, args=(self.sampler.tick,), name="sampler", daemon=True)
        thread.start()
        return thread

    def _run(self, tick: Callable[[int], int]) -> None:
        try:
            while not self._stop.is_set():
                due_ns = tick(self._now_ns())
                # time.sleep, not Event.wait: half the CPU per wake, and no wake is further off than the chunk.
                while (left := due_ns - self._now_ns()) > 0 and not self._stop.is_set():
                    time.sleep(min(left / 1e9, _CHUNK_S))
        except Superseded as superseded:
            plan = superseded.plan
            self._run(lambda now_ns: self.sampler.tick_alone(plan, now_ns))
        except BaseException as error:  # noqa: BLE001  kept for the owner, who raises it in its own thread
            self.error = error
            self._stop.set()

    def watch(self, stop: Event) -> None:
        """Block until `stop`, replacing the thread whenever a call hangs. Raises what ended the thread."""
        while not stop.wait(self._watch_s) and not self._stop.is_set():
            self.check()
        self.close()

    def check(self) -> bool:
        """One look of the watchdog: whether the ticking thread hung and was replaced."""
        replace = self.sampler.give_up(self._now_ns(), self._hang_ns)
        if replace:
            self._thread = self._spawn()
        return replace

    def close(self) -> None:
        """Stop ticking (a hung call is left behind), write the last heartbeat."""
        self._stop.set()
        self._thread.join(timeout=self._hang_ns / 1e9 + 0.5)
        if self.error is not None:
            raise self.error
        self.sampler.stop(self._now_ns())


def sampler_process(lifeline: Connection, config: SamplerConfig) -> None:
    """Entry of the sampler's own process (for traces.child.spawn). Ends when the lifeline does, or at SIGTERM.

    Sends one JSON message once it samples ({"sensors", "missing", "nice"}), or {"error"} when it cannot.
    """
    stop = Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    on_lifeline_end(lifeline, stop.set)
    nice = _be_nice()
    gc.disable()  # a tick makes no cycles, and a collection in the middle of it costs more than the tick
    try:
        found = find_sources(config.sources, config.poll_ns)
        now = time.monotonic_ns()
        journal = JournalWriter(Path(config.journal), "power", mono_ns=now, wall_ns=time.time_ns())
        infos = found.infos()
        page = StatusPage(status_names(infos), Path(config.status)) if config.status else None
    except UserError as error:
        _say(lifeline, {"error": str(error)})
        return
    writer = QueuedWriter(journal, every_s=0.5)
    sampler = make_sampler(found, writer.put, page)
    thread = SamplerThread(sampler)
    _say(lifeline, {"sensors": infos, "missing": found.missing, "nice": nice})
    try:
        thread.watch(stop)
    finally:
        writer.close()
    if writer.error is not None:
        sys.stderr.write(
            f"sampler: {writer.dropped} records lost, {config.journal} cannot be written: {writer.error}\n"
        )
        sys.stderr.flush()
    os._exit(0 if writer.error is None else 1)  # a thread that hangs in a driver call must not hold the process


def make_sampler(
    found: Found,
    write: Callable[[Any], None],
    page: StatusPage | None = None,
    clock: NowNs = time.monotonic_ns,
) -> Sampler:
    """A sampler on the real clocks (or on a node's clock that is wrong on purpose)."""
    return Sampler(
        found.sources,
        write,
        clock=clock,
        cpu_clock=time.process_time_ns,
        wall_clock=time.time_ns,
        status=page,
        missing=found.missing,
        settle_ns=SETTLE_NS,
    )


def start_sampler(config: SamplerConfig, *, timeout_s: float = _READY_S) -> tuple[Child, Ready]:
    """Spawn the process and wait until it samples. UserError with its sentence when it cannot."""
    child = spawn(sampler_process, config, name="sampler")
    try:
        if not child.lifeline.poll(timeout_s):
            raise UserError(f"the sampler did not start within {timeout_s:.0f} s; try joulegraph doctor")
        said = orjson.loads(child.lifeline.recv_bytes())
    except EOFError:
        child.stop()
        raise UserError("the sampler ended before it began; try joulegraph doctor") from None
    except BaseException:
        child.stop(1.0)
        raise
    if "error" in said:
        child.stop()
        raise UserError(said["error"])
    sensors = [from_row(SensorInfo, row) for row in said["sensors"]]
    return child, Ready(sensors, [Missing(**row) for row in said["missing"]], said["nice"])


def _say(lifeline: Connection, message: dict[str, Any]) -> None:
    try:
        lifeline.send_bytes(orjson.dumps(message))
    except OSError:
        pass  # the parent is gone; the lifeline's end stops us


def _be_nice() -> int:
    """Ask for a little priority; without permission stay as we are."""
    try:
        return os.nice(_NICE)
    except PermissionError:
        return os.nice(0)
