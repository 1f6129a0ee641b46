"""The pure driver: requests at instants in, everything the engine did out; no HTTP, no loop, no clock.

validate and the study use it, and it is checked against the HTTP path on a point. Time jumps from step to step.
May not know: sockets, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.embedded.core import EngineCore
from engines.embedded.profiles import COMPONENTS
from engines.embedded.sensors import SimulatedSensors
from engines.embedded.types import EngineRequest, FinishReason, RequestStats
from traces.errors import UserError
from traces.records import StepRecord, TruthRecord, TruthTotals

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(slots=True)
class Served:
    """One request's way through the engine."""

    stats: RequestStats
    finish_reason: FinishReason | None
    """None: refused, see why"""
    token_ns: I64
    """instant of each output token"""
    truth: list[TruthRecord]
    why: str | None = None


@dataclass(slots=True)
class Series:
    """What one simulated sensor showed at each read."""

    t_ns: I64
    values: I64


@dataclass(slots=True)
class DriveResult:
    """Everything of a run, by request id; steps in order, step i ran in [step_start_ns[i], step_end_ns[i]]."""

    t0_ns: int
    t1_ns: int
    served: dict[str, Served] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    step_start_ns: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    step_end_ns: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    energy_start_j: F64 = field(default_factory=lambda: np.zeros((0, len(COMPONENTS))))
    """cumulative true energy at the start of each step, J, shape (steps, components)"""
    energy_end_j: F64 = field(default_factory=lambda: np.zeros((0, len(COMPONENTS))))
    clocks: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    totals: list[TruthTotals] = field(default_factory=list)
    sensors: dict[str, Series] = field(default_factory=dict)
    tokens_out: int = 0

    def energy_j(self, t_ns: I64) -> F64:
        """True cumulative energy at any instants within the run's steps, J, shape (len(t_ns), components)."""
        t = np.stack((self.step_start_ns, self.step_end_ns), axis=1).reshape(-1)
        e = np.stack((self.energy_start_j, self.energy_end_j), axis=1).reshape(-1, len(COMPONENTS))
        return np.stack([np.interp(t_ns, t, e[:, i]) for i in range(len(COMPONENTS))], axis=1)


def run(
    core: EngineCore,
    requests: Iterable[tuple[int, EngineRequest]],
    *,
    sensors: SimulatedSensors | None = None,
    poll_ns: int = 20_000_000,
    lead_ns: int = 0,
    tail_ns: int = 0,
    aborts: Sequence[tuple[int, str]] = (),
    keep_steps: bool = True,
    on_end: Callable[[str, int], Iterable[tuple[int, EngineRequest]]] | None = None,
) -> DriveResult:
    """Drive one replica through requests in order of time, to the end of the last one.

    requests: (instant ns, request), sorted. sensors are read every poll_ns, from lead_ns before the first request to
    tail_ns after the last end. aborts: (instant, request id). on_end(request_id, t_ns) may give follow-up requests
    (closed loops, workflows).
    """
    driver = _Driver(core, sensors, poll_ns, keep_steps)
    return driver.run(list(requests), sorted(aborts), lead_ns, tail_ns, on_end)


class _Driver:
    def __init__(self, core: EngineCore, sensors: SimulatedSensors | None, poll_ns: int, keep_steps: bool) -> None:
        self.core, self.sensors, self.poll_ns, self.keep_steps = core, sensors, poll_ns, keep_steps
        self.t_polled: list[int] = []
        self.shown: list[list[int]] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.clocks: list[float] = []
        self.before: list[F64] = []
        self.after: list[F64] = []
        self.next_poll = 0
        self.result = DriveResult(0, 0)
        self.segments: dict[str, list[tuple[int, int, int]]] = {}

    def run(
        self,
        todo: list[tuple[int, EngineRequest]],
        aborts: list[tuple[int, str]],
        lead_ns: int,
        tail_ns: int,
        on_end: Callable[[str, int], Iterable[tuple[int, EngineRequest]]] | None,
    ) -> DriveResult:
        core, result = self.core, self.result
        first_step = core.step_index
        now = self.next_poll = result.t0_ns = (todo[0][0] if todo else 0) - lead_ns
        core.energy.idle_until(now)
        todo.reverse()
        aborts.reverse()
        while True:
            while todo and todo[-1][0] <= now:
                t_ns, request = todo.pop()
                self._add(request, max(t_ns, result.t0_ns))
            while aborts and aborts[-1][0] <= now:
                self._abort(*aborts.pop())
            step = core.schedule(now)
            if step is None:
                due = [queue[-1][0] for queue in (todo, aborts) if queue]
                if not due:
                    break
                self._poll(min(due))
                now = min(due)
                continue
            end = now + step.duration_ns
            self._poll(end)
            self.before.append(core.energy.energy_j(now))
            emitted = core.advance(step, now, end)
            self.starts.append(now)
            self.ends.append(end)
            self.clocks.append(step.clock)
            self.after.append(core.energy.energy_j(end))
            if self.keep_steps:
                result.steps.append(core.step_record(end))
            for seq, index in emitted.first:
                self.segments.setdefault(seq.request_id, []).append((step.index - first_step, index, seq.pace))
            more: list[tuple[int, EngineRequest]] = []
            for seq, reason in emitted.finished:
                self._serve(seq.request_id, reason)
                if on_end is not None:
                    more += on_end(seq.request_id, end)
            if more:
                todo = sorted([*todo, *more], key=lambda item: item[0], reverse=True)
            now = end
        result.t1_ns = now + tail_ns
        self._poll(result.t1_ns)
        return self._finish()

    def _add(self, request: EngineRequest, now_ns: int) -> None:
        try:
            self.core.add(request, now_ns)
        except UserError as error:
            self.result.refused[request.request_id] = str(error)

    def _abort(self, now_ns: int, request_id: str) -> None:
        if request_id in self.result.refused or request_id in self.result.served:
            return
        self.core.abort(request_id, now_ns)
        self._serve(request_id, "abort")

    def _serve(self, request_id: str, reason: FinishReason) -> None:
        core = self.core
        stats = core.stats(request_id)
        times = [(max(0, step), index, pace) for step, index, pace in self.segments.pop(request_id, [])]
        ends = self.ends
        tokens: list[int] = []
        for i, (step, index, pace) in enumerate(times):
            until = times[i + 1][1] if i + 1 < len(times) else stats.output_tokens
            tokens += ends[step : step + 1]
            later = ends[step + 1 : step + 1 + -(-(until - index - 1) // pace)]
            tokens += [t for t in later for _ in range(pace)][: until - index - 1]
        self.result.served[request_id] = Served(stats, reason, np.array(tokens, np.int64), core.truth(request_id))
        core.forget(request_id)

    def _poll(self, until_ns: int) -> None:
        """Read the sensors at every poll instant up to until_ns."""
        sensors = self.sensors
        if sensors is None:
            return
        while self.next_poll <= until_ns:
            sensors.advance(self.next_poll, self.core)
            self.t_polled.append(self.next_poll)
            self.shown.append(sensors.values())
            self.next_poll += self.poll_ns

    def _finish(self) -> DriveResult:
        result = self.result
        result.step_start_ns = np.array(self.starts, np.int64)
        result.step_end_ns = np.array(self.ends, np.int64)
        result.energy_start_j = np.array(self.before).reshape(-1, len(COMPONENTS))
        result.energy_end_j = np.array(self.after).reshape(-1, len(COMPONENTS))
        result.clocks = np.array(self.clocks, np.float32)
        result.totals = self.core.totals(result.t1_ns)
        result.tokens_out = self.core.tokens_out
        if self.sensors is not None:
            t_ns = np.array(self.t_polled, np.int64)
            table = np.array(self.shown, np.int64).reshape(len(t_ns), -1)
            result.sensors = {name: Series(t_ns, table[:, i]) for i, name in enumerate(self.sensors.names)}
        return result
