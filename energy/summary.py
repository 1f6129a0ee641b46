"""What a power journal holds, in one pass: joules and mean watts per sensor, gaps, resets, the sampler's own cost.

Plain sums for the end of `joulegraph sample` and for benchmarks; windows, edges and error bounds are the curve's.
May not know: files, other commands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from energy.judging import unjoinable
from traces.records import PowerEvent, PowerSample, SensorInfo, from_row


@dataclass
class SensorSummary:
    """One sensor over the journal. energy_uj: counters only, unwrapped; None when it never moved between two reads."""

    info: SensorInfo
    samples: int = 0
    failed: int = 0
    gaps: int = 0
    resets: int = 0
    energy_uj: int | None = None
    span_ns: int = 0
    """time covered by energy_uj (a reset's step is left out)"""
    call_ns: list[int] = field(default_factory=list)
    gauge_sum: int = 0
    why: str | None = None
    last: PowerSample | None = None

    @property
    def mean_mw(self) -> float | None:
        """Mean power in mW: by energy for counters, by samples for gauges."""
        if self.info.reading == "counter":
            return self.energy_uj * 1e6 / self.span_ns if self.energy_uj is not None and self.span_ns else None
        good = self.samples - self.failed
        return self.gauge_sum / good if good else None

    def add(self, sample: PowerSample) -> None:
        """Take one sample in order of time."""
        self.samples += 1
        if sample.t1_ns > sample.t0_ns:
            self.call_ns.append(sample.t1_ns - sample.t0_ns)
        if sample.value is None:
            self.failed += 1
            self.why = sample.why
            return
        if self.info.reading == "gauge":
            self.gauge_sum += sample.value
        elif self.last is not None and self.last.value is not None and not unjoinable(self.last, sample, self.info):
            step = sample.value - self.last.value
            if step < 0:
                step += self.info.wraps_at or 0
            self.energy_uj = (self.energy_uj or 0) + step
            self.span_ns += sample.t0_ns - self.last.t0_ns
        self.last = sample


@dataclass
class Summary:
    """The whole journal."""

    sensors: dict[str, SensorSummary] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """sensors that were never there or left, with the reason"""
    first_beat: PowerEvent | None = None
    last_beat: PowerEvent | None = None
    late_p99_ns: int = 0
    """worst p99 of any second"""
    anchors: list[PowerEvent] = field(default_factory=list)

    @property
    def cpu_share(self) -> float | None:
        """The sampler process's CPU time per wall time between its first and last heartbeat."""
        first, last = self.first_beat, self.last_beat
        if first is None or last is None or first.cpu_ns is None or last.cpu_ns is None or last.t_ns == first.t_ns:
            return None
        return (last.cpu_ns - first.cpu_ns) / (last.t_ns - first.t_ns)

    @property
    def call_shares(self) -> dict[str, float]:
        """Wall time inside each source's calls per wall time, between the first and the last heartbeat."""
        first, last = self.first_beat, self.last_beat
        if first is None or last is None or not last.call_ns or last.t_ns == first.t_ns:
            return {}
        before = first.call_ns or {}
        return {name: (ns - before.get(name, 0)) / (last.t_ns - first.t_ns) for name, ns in last.call_ns.items()}


def summarise(rows: Iterable[dict[str, Any]]) -> Summary:
    """Sum up the rows of one power journal, in their order."""
    summary = Summary()
    for row in rows:
        match row.get("kind"):
            case "sensor":
                info = from_row(SensorInfo, row)
                summary.sensors.setdefault(info.source, SensorSummary(info))
            case "sample":
                sample = from_row(PowerSample, row)
                if sample.source in summary.sensors:
                    summary.sensors[sample.source].add(sample)
            case "heartbeat" | "gap" | "reset" | "lost" | "anchor":
                _event(summary, from_row(PowerEvent, row))
    return summary


def _event(summary: Summary, event: PowerEvent) -> None:
    sensor = summary.sensors.get(event.source or "")
    match event.kind:
        case "heartbeat":
            summary.first_beat = summary.first_beat or event
            summary.last_beat = event
            summary.late_p99_ns = max(summary.late_p99_ns, event.late_p99_ns or 0)
        case "anchor":
            summary.anchors.append(event)
        case "lost":
            summary.lost[event.source or ""] = event.why or ""
        case "gap" if sensor is not None:
            sensor.gaps += 1
        case "reset" if sensor is not None:
            sensor.resets += 1
        case _:
            pass
