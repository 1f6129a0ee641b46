"""What a sensor really shows, told from known work: its update period, step, lag and averaging window, and whether it
watches all the time or only a part of it (duty cycle).

Pure: series and phases in, figures out. A square wave gives lag and window; work that drifts through the sampling grid
gives the duty verdict. May not know: sensors, clocks, how the work was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.records import PowerSample, SensorInfo, from_row

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_MS = 1_000_000
_SECOND = 1_000_000_000
_LAGS_MS = range(-20, 501, 5)
_WINDOWS_MS = (0, 10, 25, 50, 100, 200, 300, 500, 750, 1000, 1500)
BEAT_LIMIT = 0.2
RATIO_LIMIT = 0.05
LEAST_STEP = 1.1
"""full over idle power, below which a wave is not seen"""


@dataclass(frozen=True)
class Series:
    """Good readings of one sensor in order: instants (middle of the call), values in uJ (unwrapped) or mW."""

    source: str
    counter: bool
    t_ns: Ints
    value: Ints

    def between(self, t0_ns: int, t1_ns: int) -> Series:
        """The readings inside a window."""
        keep = (self.t_ns >= t0_ns) & (self.t_ns <= t1_ns)
        return Series(self.source, self.counter, self.t_ns[keep], self.value[keep])

    def updates(self) -> Series:
        """Only the readings at which the value changed (the first sight of each update)."""
        keep = np.flatnonzero(np.diff(self.value)) + 1
        return Series(self.source, self.counter, self.t_ns[keep], self.value[keep])

    def mean_w(self, t0_ns: int, t1_ns: int) -> float | None:
        """Mean power in a window: counter between interpolated ends, gauge over its samples. None without data."""
        if self.counter:
            moved = self.updates()
            if len(moved.t_ns) < 2 or t0_ns < moved.t_ns[0] or t1_ns > moved.t_ns[-1]:
                return None
            ends = np.interp([t0_ns, t1_ns], moved.t_ns, moved.value)
            return float(ends[1] - ends[0]) * 1000 / (t1_ns - t0_ns)
        inside = self.between(t0_ns, t1_ns).value
        return float(inside.mean()) / 1000 if len(inside) else None


@dataclass(frozen=True)
class Updates:
    """How a sensor updates: median period and its 5th percentile, smallest common step of its values."""

    period_ns: int | None
    period_p5_ns: int | None
    resolution: int | None


@dataclass(frozen=True)
class Response:
    """How a sensor answers a step: delay, averaging window, the two plateaus it shows, misfit in watts."""

    lag_ns: int
    lag_low_ns: int
    lag_high_ns: int
    window_ns: int
    low_w: float
    high_w: float
    rms_w: float


@dataclass(frozen=True)
class Wave:
    """Periodic work: on_ns of every period_ns between t0 and t1 (on_share measured)."""

    t0_ns: int
    t1_ns: int
    on_ns: int
    period_ns: int
    on_share: float


@dataclass(frozen=True)
class Duty:
    """Verdict of the duty-cycle probe for one sensor."""

    source: str
    beat: float | None
    """swing of its one-second means under drifting work, as a share of the step from idle to full"""
    drifting: float | None
    """its mean under drifting work over the counter's (None for the counter itself)"""
    locked: float | None
    """the same under work locked to the sampling grid"""
    continuous: bool | None

    def sentence(self) -> str:
        """One line for people."""
        if self.continuous is None:
            return "no verdict: too few readings, or no step between idle and work to see"
        if self.continuous:
            return f"continuous (one-second means swing by {100 * (self.beat or 0):.0f} % of the step)"
        off = [
            f"{100 * abs(1 - r):.0f} % {'low' if r < 1 else 'high'} when {name}"
            for name, r in (("drifting", self.drifting), ("locked", self.locked))
            if r is not None
        ]
        return f"sees only part of the time: swing {100 * (self.beat or 0):.0f} % of the step; " + ", ".join(off)


def series(rows: Iterable[dict[str, Any]]) -> dict[str, Series]:
    """Every sensor of a power journal as a series; counters unwrapped, failed reads left out."""
    infos: dict[str, SensorInfo] = {}
    points: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        if row.get("kind") == "sensor":
            infos[str(row["source"])] = from_row(SensorInfo, row)
        elif row.get("kind") == "sample" and row.get("value") is not None:
            sample = from_row(PowerSample, row)
            points.setdefault(sample.source, []).append(((sample.t0_ns + sample.t1_ns) // 2, sample.value or 0))
    return {
        name: make_series(name, infos[name].reading == "counter", np.array(got, np.int64).T, infos[name].wraps_at)
        for name, got in points.items()
        if name in infos
    }


def make_series(source: str, counter: bool, points: Ints, wraps_at: int | None = None) -> Series:
    """A series from rows (instants, values); counters with a range are unwrapped."""
    order = np.argsort(points[0], kind="stable")
    t_ns, value = points[0][order], points[1][order]
    if counter and wraps_at:
        value = value + np.concatenate([[0], np.cumsum(np.diff(value) < 0)]) * wraps_at
    return Series(source, counter, t_ns, value)


def updates(of: Series) -> Updates:
    """Update period and step from densely polled readings; None where the value never changed twice."""
    moved = of.updates()
    steps = np.diff(moved.t_ns)
    if len(steps) < 2:
        return Updates(None, None, None)
    low, mid = (int(q) for q in np.quantile(steps, [0.05, 0.5]))
    changes = np.abs(np.diff(moved.value))
    return Updates(mid, low, gcd(*(int(c) for c in changes[:1000])) or None)


def on_time(edges_ns: Ints, at_ns: Floats) -> Floats:
    """Cumulative work time at each instant; edges_ns: (n, 2) starts and ends of work, in order."""
    flat = edges_ns.reshape(-1).astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(edges_ns[:, 1] - edges_ns[:, 0])])
    known = np.stack([total[:-1], total[1:]], axis=1).reshape(-1)
    total_at: Floats = np.interp(at_ns, flat, known)
    return total_at


def response(of: Series, edges_ns: Ints) -> Response | None:
    """Fit lag and averaging window to a square wave. None with fewer than 20 readings or no step to see."""
    readings = of.updates() if of.counter else _at_updates(of)
    if len(readings.t_ns) < 20 or len(edges_ns) < 2:
        return None
    watts, begins, ends = _as_watts(readings)
    fits = {
        (lag, window): _fit(watts, begins, ends, edges_ns, lag * _MS, window * _MS)
        for lag in _LAGS_MS
        for window in ((0,) if of.counter else _WINDOWS_MS)
    }
    (lag, window), (rms, low, high) = min(fits.items(), key=lambda item: item[1][0])
    if high - low <= rms:
        return None  # no step to see: idle sensor, or other work on the machine drowns ours
    each = [_cycle_lag(watts, begins, ends, edges_ns, k, window) for k in range(len(edges_ns))]
    lags = sorted(value for value in each if value is not None) or [lag]
    return Response(lag * _MS, lags[0] * _MS, lags[-1] * _MS, window * _MS, low, high, rms)


def _at_updates(of: Series) -> Series:
    """A gauge's readings just after each update (also where the new value equals the old), so that none is stale."""
    period_ns = updates(of).period_p5_ns or 0
    keep, last = [], -period_ns
    for i, (t, changed) in enumerate(zip(of.t_ns.tolist(), np.diff(of.value, prepend=-1) != 0, strict=True)):
        if changed or t - last >= period_ns:
            keep.append(i)
            last = t
    return Series(of.source, False, of.t_ns[keep], of.value[keep])


def _as_watts(readings: Series) -> tuple[Floats, Floats, Floats]:
    """Power and the span each value covers: a counter's step between updates, a gauge's instant."""
    t = readings.t_ns.astype(np.float64)
    if readings.counter:
        return np.diff(readings.value) * 1000 / np.diff(t), t[:-1], t[1:]
    return readings.value / 1000, t, t


def _fit(
    watts: Floats, begins: Floats, ends: Floats, edges_ns: Ints, lag_ns: int, window_ns: int
) -> tuple[float, float, float]:
    """Least squares of watts on the share of work each value should have seen: (rms, low, high)."""
    start, end = begins - lag_ns - window_ns, ends - lag_ns
    span = np.maximum(end - start, 1.0)
    share = (on_time(edges_ns, end) - on_time(edges_ns, np.minimum(start, end - 1))) / span
    design = np.stack([1 - share, share], axis=1)
    levels, *_ = np.linalg.lstsq(design, watts, rcond=None)
    rms = float(np.sqrt(np.mean((design @ levels - watts) ** 2)))
    return rms, float(levels[0]), float(levels[1])


def _cycle_lag(watts: Floats, begins: Floats, ends: Floats, edges_ns: Ints, cycle: int, window_ms: int) -> int | None:
    """Best lag of one cycle alone: the spread over cycles is the honest interval."""
    since = edges_ns[cycle, 0] - 200 * _MS
    until = edges_ns[cycle + 1, 0] if cycle + 1 < len(edges_ns) else edges_ns[cycle, 1] + _SECOND
    keep = (ends >= since) & (ends <= until)
    if keep.sum() < 6:
        return None
    return min(
        _LAGS_MS,
        key=lambda lag: _fit(watts[keep], begins[keep], ends[keep], edges_ns, lag * _MS, window_ms * _MS)[0],
    )


def duty(all_series: dict[str, Series], waves: list[Wave], ledger: str | None) -> list[Duty]:
    """Does each sensor watch all the time? waves: drifting, locked and full work, with idle between them.

    ledger: the counter that the others are compared with (None: beats only).
    """
    drifting = next((w for w in waves if _drifts(w)), None)
    locked = next((w for w in waves if w.on_share < 0.9 and not _drifts(w)), None)
    full = next((w for w in waves if w.on_share >= 0.9), None)
    return [_duty(s, drifting, locked, full, waves, all_series.get(ledger or "")) for s in all_series.values()]


def _drifts(wave: Wave, grid_ns: int = 100 * _MS) -> bool:
    """Whether the work slides through a 100 ms grid within the wave."""
    off = wave.period_ns % grid_ns
    slide = min(off, grid_ns - off)
    return wave.on_share < 0.9 and slide * (wave.t1_ns - wave.t0_ns) // wave.period_ns >= grid_ns


def _duty(
    of: Series, drifting: Wave | None, locked: Wave | None, full: Wave | None, waves: list[Wave], ledger: Series | None
) -> Duty:
    beat = None
    step = _step_w(of, full, waves)
    if drifting is not None and step:
        seconds = range(drifting.t0_ns + _SECOND, drifting.t1_ns - 2 * _SECOND, _SECOND)
        means = [m for t in seconds if (m := of.mean_w(t, t + _SECOND)) is not None]
        if len(means) >= 5:
            beat = float(np.quantile(means, 0.95) - np.quantile(means, 0.05)) / step
    others = None if ledger is of else ledger
    ratios = [_ratio(of, others, wave) for wave in (drifting, locked)]
    known = [beat, *ratios]
    if beat is None and all(r is None for r in ratios):
        return Duty(of.source, None, None, None, None)
    continuous = (beat is None or beat < BEAT_LIMIT) and all(r is None or abs(r - 1) < RATIO_LIMIT for r in known[1:])
    return Duty(of.source, beat, ratios[0], ratios[1], continuous)


def _ratio(of: Series, ledger: Series | None, wave: Wave | None) -> float | None:
    if ledger is None or wave is None:
        return None
    window = (wave.t0_ns + _SECOND // 2, wave.t1_ns)
    own, true = of.mean_w(*window), ledger.mean_w(*window)
    return own / true if own is not None and true else None


def _step_w(of: Series, full: Wave | None, waves: list[Wave]) -> float | None:
    """From idle to full power as this sensor shows it once settled."""
    if full is None:
        return None
    high = of.mean_w(full.t0_ns + 2 * _SECOND, full.t1_ns - _SECOND // 2)
    pauses = [(a.t1_ns + _SECOND, b.t0_ns) for a, b in pairwise(waves)]
    lows = [w for t0, t1 in pauses if t1 - t0 >= _SECOND // 2 and (w := of.mean_w(t0, t1)) is not None]
    if high is None or not lows or high < LEAST_STEP * min(lows):
        return None
    return high - min(lows)
