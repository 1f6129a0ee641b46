"""Looks at each sensor on the spot: what a call costs, how often the value changes, by what step. For doctor.

A thin shell: it polls one source at a time for about a second; the figures come from probe.updates.
May not know: tables, the sampler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from energy.edges import unlocked
from energy.probe import Series, Updates, make_series, updates
from energy.source import Source
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

_MS = 1_000_000
_ENOUGH_UPDATES = 12


@dataclass(frozen=True)
class Examined:
    """One sensor as found here. watts: mean while it was looked at; why: the last failure."""

    info: SensorInfo
    updates: Updates
    calls: int
    call_p50_ns: int
    call_p99_ns: int
    busy: float
    """share of one core's time that reading it at its sampling period costs (calls that wait count as busy)"""
    watts: float | None
    value: int | None
    why: str | None


def examine(
    source: Source,
    *,
    seconds: float = 1.5,
    now_ns: NowNs = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Examined]:
    """Poll one source until its updates are known or the time is up."""
    source = unlocked(source)
    samples: dict[str, list[PowerSample]] = {info.source: [] for info in source.infos}
    calls: list[int] = []
    began = now_ns()
    pause_ns = _MS // 5
    while (spent := now_ns() - began) < seconds * 1e9:
        t0 = now_ns()
        readings = source.read(now_ns)
        calls.append(now_ns() - t0)
        for reading in readings:
            if isinstance(reading, PowerSample):
                samples[reading.source].append(reading)
        if spent > 0.2e9:
            if all(_updates_seen(series) >= _ENOUGH_UPDATES for series in samples.values()):
                break
            pause_ns = 3 * _MS
        sleep(pause_ns / 1e9)
    p50, p99 = (int(q) for q in np.quantile(calls, [0.5, 0.99]))
    return [_report(source, info, samples[info.source], len(calls), p50, p99) for info in source.infos]


def _updates_seen(samples: list[PowerSample]) -> int:
    return sum(a.value != b.value for a, b in pairwise(samples))


def _report(source: Source, info: SensorInfo, samples: list[PowerSample], calls: int, p50: int, p99: int) -> Examined:
    good = [s for s in samples if s.value is not None]
    failed = [s.why for s in samples if s.value is None]
    found, watts = Updates(None, None, None), None
    if len(good) >= 2:
        points = np.array([((s.t0_ns + s.t1_ns) // 2, s.value) for s in good], np.int64).T
        shown = make_series(info.source, info.reading == "counter", points, info.wraps_at)
        found, watts = updates(shown), _watts(shown)
    return Examined(
        info=info,
        updates=found,
        calls=calls,
        call_p50_ns=p50,
        call_p99_ns=p99,
        busy=p50 / source.poll_ns,
        watts=watts,
        value=good[-1].value if good else None,
        why=failed[-1] if failed else None,
    )


def _watts(shown: Series) -> float | None:
    if not shown.counter:
        return float(shown.value.mean()) / 1000
    moved = shown.updates()
    if len(moved.t_ns) < 2:
        return None
    return float(moved.value[-1] - moved.value[0]) * 1000 / float(moved.t_ns[-1] - moved.t_ns[0])
