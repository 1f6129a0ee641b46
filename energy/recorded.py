"""Replays a power journal as sources: what was recorded is the fixture, and a rehearsal needs no hardware.

A sensor shows at every instant the last sample recorded before it (shifted so that the recording starts at `start_ns`);
recorded failures are failures again. May not know: how the journal was made.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from energy.source import Reading, Source
from traces.errors import UserError
from traces.journal import JournalReader
from traces.records import PowerSample, SensorInfo, from_row
from traces.seams import NowNs


class RecordedSource:
    """One recorded sensor. start_ns: the instant that stands for the recording's first sample (None: first read)."""

    def __init__(
        self, info: SensorInfo, samples: list[PowerSample], first_ns: int, start_ns: int | None = None
    ) -> None:
        self.name = info.source
        self.infos: tuple[SensorInfo, ...] = (info,)
        self._samples = samples
        self._times = [s.t1_ns for s in samples]
        self._first_ns = first_ns
        self._start_ns = start_ns
        steps = [b - a for a, b in zip(self._times, self._times[1:], strict=False)]
        self.poll_ns = max(1_000_000, int(median(steps))) if steps else 100_000_000

    def read(self, now_ns: NowNs) -> list[Reading]:
        """The sample recorded last before now; None before the first and after the last."""
        t0 = now_ns()
        if self._start_ns is None:
            self._start_ns = t0
        at = bisect_right(self._times, t0 - self._start_ns + self._first_ns) - 1
        t1 = now_ns()
        if at < 0:
            return [PowerSample(self.name, t0, t1, None, "the recording of this sensor starts later")]
        if at == len(self._times) - 1 and t0 - self._start_ns + self._first_ns > self._times[-1] + 3 * self.poll_ns:
            return [PowerSample(self.name, t0, t1, None, "the recording has ended")]
        sample = self._samples[at]
        return [PowerSample(self.name, t0, t1, sample.value, sample.why)]

    def close(self) -> None:
        """Nothing is open."""


def recorded_sources(rows: Iterable[dict[str, Any]], start_ns: int | None = None) -> list[Source]:
    """Sources for every sensor described in the rows of a power journal (dicts as JournalReader yields them)."""
    infos: dict[str, SensorInfo] = {}
    samples: dict[str, list[PowerSample]] = {}
    for row in rows:
        if row.get("kind") == "sensor":
            info = from_row(SensorInfo, row)
            infos.setdefault(info.source, info)
        elif row.get("kind") == "sample":
            samples.setdefault(str(row["source"]), []).append(from_row(PowerSample, row))
    for series in samples.values():
        series.sort(key=lambda s: s.t1_ns)
    known = {name: series for name, series in samples.items() if name in infos}
    first_ns = min((series[0].t1_ns for series in known.values()), default=0)
    return [RecordedSource(infos[name], series, first_ns, start_ns) for name, series in known.items()]


def recorded_file(path: Path, start_ns: int | None = None) -> list[Source]:
    """Sources from one power journal. UserError when there is no recorded sensor in it."""
    sources = recorded_sources(JournalReader(path), start_ns)
    if not sources:
        raise UserError(f"{path}: no recorded sensor in it; give a power.<host>.jsonl of a run")
    return sources
