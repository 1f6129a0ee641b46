"""What a running embedded engine leaves behind: truth and step journals, its lag, its status page with the sensors.

May not know: loops, requests on the wire, how steps are formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.embedded.core import EngineCore
from engines.embedded.sensors import SimulatedSensors
from traces.journal import JournalWriter
from traces.records import EngineRecord, StepRecord, TruthRecord
from traces.status import StatusPage

SLOTS = ("running", "waiting", "kv_usage_ppm", "steps", "tokens_out", "lag_ns")
FLUSH_NS = 500_000_000
_BATCH = 512


@dataclass(slots=True)
class Lag:
    """How far steps ended behind the model since the last flush."""

    max_ns: int = 0
    sum_ns: int = 0
    steps: int = 0

    def add(self, lag_ns: int) -> None:
        """One step's lag."""
        self.sum_ns += lag_ns
        self.steps += 1
        if lag_ns > self.max_ns:
            self.max_ns = lag_ns

    def clear(self) -> None:
        """Begin anew."""
        self.max_ns = self.sum_ns = self.steps = 0


class Recorder:
    """Writes for all replicas. Every journal and the page are optional."""

    def __init__(
        self,
        cores: Sequence[EngineCore],
        *,
        truth: JournalWriter | None,
        steps: JournalWriter | None,
        status: StatusPage | None,
        sensors: SimulatedSensors | None,
    ) -> None:
        self._cores = cores
        self._truth, self._steps, self._status, self._sensors = truth, steps, status, sensors
        self._pending: list[StepRecord] = []
        self._parts: dict[str, tuple[int, list[TruthRecord]]] = {}
        self._sensors_shown = False

    @property
    def wanted(self) -> bool:
        """Anything to do regularly."""
        return self._status is not None or self._truth is not None or self._steps is not None

    def expect(self, wire_id: str, parts: int) -> None:
        """A request of several sequences: one truth record for all."""
        if parts > 1 and wire_id not in self._parts:
            self._parts[wire_id] = (parts, [])

    def settled(self, wire_id: str, records: list[TruthRecord]) -> None:
        """The truth of one sequence is final."""
        records = [replace(record, request_id=wire_id) for record in records]
        waiting = self._parts.get(wire_id)
        if waiting is not None:
            left, sums = waiting[0] - 1, _merged(waiting[1], records)
            if left:
                self._parts[wire_id] = (left, sums)
                return
            del self._parts[wire_id]
            records = sums
        if self._truth is not None:
            for record in records:
                self._truth.write(record)

    def step(self, record: StepRecord) -> None:
        """One step, written in batches."""
        if self._steps is not None:
            self._pending.append(record)
            if len(self._pending) >= _BATCH:
                self._write_steps()

    def _write_steps(self) -> None:
        if self._steps is not None:
            for record in self._pending:
                self._steps.write(record)
        self._pending.clear()

    def publish(self, now_ns: int, values: dict[str, int]) -> None:
        """Counters and sensors on the status page, as one state."""
        if self._status is None:
            return
        sensors = self._sensors
        if sensors is not None:
            changed = sensors.update(now_ns, *self._cores)
            if not self._sensors_shown:
                self._sensors_shown = True
                values |= sensors.slots()
            elif changed:
                values |= sensors.readings()
        self._status.set_group(values)

    def flush(self, now_ns: int, lags: Sequence[Lag]) -> None:
        """Journals to the system, with the lag of the steps since the last time."""
        self._write_steps()
        if self._steps is not None:
            for i, lag in enumerate(lags):
                if lag.steps:
                    values = {
                        "engine": float(i),
                        "steps": float(lag.steps),
                        "lag_ns_mean": lag.sum_ns / lag.steps,
                        "lag_ns_max": float(lag.max_ns),
                    }
                    self._steps.write(EngineRecord("lag", now_ns, values))
            self._steps.flush()
        for lag in lags:
            lag.clear()
        if self._truth is not None:
            self._truth.flush()

    def totals(self, now_ns: int) -> None:
        """The last lines of the truth: what each replica drew in all."""
        if self._truth is not None:
            for core in self._cores:
                for total in core.totals(now_ns):
                    self._truth.write(total)
            self._truth.flush()


def _merged(sums: list[TruthRecord], records: list[TruthRecord]) -> list[TruthRecord]:
    """Truth of two parts of one request, added by component."""
    if not sums:
        return records
    more = {record.component: record for record in records}
    return [
        replace(
            a,
            own_uj=a.own_uj + more[a.component].own_uj,
            active_uj=a.active_uj + more[a.component].active_uj,
            prefill_uj=a.prefill_uj + more[a.component].prefill_uj,
            decode_uj=a.decode_uj + more[a.component].decode_uj,
        )
        for a in sums
    ]
