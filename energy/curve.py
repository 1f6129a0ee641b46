"""Cumulative joules of one device: what a sensor's samples say about energy between any two instants.

A counter is the ledger: unwrapped, cut where it was reset, with nodes at its update edges (bracketed between the last
read of the old value and the first read of the new one). A gauge is integrated, and says so. Between nodes energy is
known exactly, its shape is not: `between` interpolates and bounds the error. May not know: requests, files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.tables import Floats, Ints, Mask, Series

GAP_PERIODS = 3
GAP_NS = 500_000_000
"""a longer pause between nodes than both is a gap: a gauge's energy there is a guess, a counter's shape unknown"""
EVERY_READ = 0.7
"""share of reads with a new value above which the sensor updates faster than it is read: each read is a node"""


@dataclass(frozen=True, slots=True)
class Window:
    """Energy of an interval. uj: joules known x 1e6; covered: share of the interval inside the measured span;
    error_uj: bound of |uj - truth| from edges and quantisation over the covered part."""

    uj: float
    covered: float
    error_uj: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Nodes (t_ns, uj) of cumulative energy. Both ascending; uj integer, starting at 0.

    broken[k] is true where the energy between node k and k + 1 is not known: a reset, where uj does not move, or a
    gap in a gauge's readings, where a straight line stands in.
    """

    device: str
    domain: str
    source: str
    t_ns: Ints
    uj: Ints
    bracket_ns: Ints
    """half width of each node's uncertainty in time"""
    broken: Mask
    quantum_uj: int
    period_ns: int
    """median spacing of nodes"""
    integrated: bool = False
    simulated: bool = False
    resets: int = 0
    estimated: bool = False
    """no measurement behind it"""

    @property
    def total_uj(self) -> int:
        """Energy of the whole measured span (resets left out)."""
        return int(self.uj[-1] - self.uj[0])

    def at(self, t_ns: Ints | Floats | int) -> Floats:
        """Cumulative uJ at instants, linear between nodes, held flat outside."""
        return np.asarray(np.interp(np.asarray(t_ns, np.float64), self.t_ns, self.uj), np.float64)

    def between(self, t0_ns: int, t1_ns: int) -> Window:
        """Energy of [t0, t1], its coverage and error bound."""
        if t1_ns <= t0_ns:
            return Window(0.0, 1.0, 0.0)
        low, high = max(t0_ns, int(self.t_ns[0])), min(t1_ns, int(self.t_ns[-1]))
        if high <= low:
            return Window(0.0, 0.0, 0.0)
        ends = self.at(np.array([low, high], np.int64))
        unknown = self._broken_ns(low, high)
        error = self._slack(low) + self._slack(high) + 2 * self.quantum_uj
        return Window(float(ends[1] - ends[0]), (high - low - unknown) / (t1_ns - t0_ns), error)

    def resolved(self, t_ns: int) -> bool:
        """Whether nodes lie close enough around an instant to say what had been drawn by then."""
        k = int(np.clip(np.searchsorted(self.t_ns, t_ns, "right") - 1, 0, len(self.t_ns) - 2))
        return int(self.t_ns[k + 1] - self.t_ns[k]) <= _gap_ns(self.period_ns)

    def _broken_ns(self, low: int, high: int) -> int:
        k = np.flatnonzero(self.broken)
        return int(np.sum(np.maximum(0, np.minimum(self.t_ns[k + 1], high) - np.maximum(self.t_ns[k], low))))

    def _slack(self, t_ns: int) -> float:
        """Bound of the error of `at` from unknown shape inside the span of nodes that the instant may lie in."""
        k = int(np.clip(np.searchsorted(self.t_ns, t_ns, "right") - 1, 0, len(self.t_ns) - 2))
        low = max(0, k - 1) if t_ns - self.t_ns[k] < self.bracket_ns[k] else k
        near = t_ns > self.t_ns[k + 1] - self.bracket_ns[k + 1]
        high = min(len(self.t_ns) - 1, k + 2 if near else k + 1)
        here = float(self.at(t_ns))
        return max(here - float(self.uj[low]), float(self.uj[high]) - here)


def curve_of(series: Series) -> Curve | str:
    """The energy curve of a sensor, or the reason why there is none."""
    if len(series.value) < 2:
        return f"{series.info.source}: fewer than two readings"
    return _from_counter(series) if series.info.reading == "counter" else _from_gauge(series)


def unwrap(value: Ints, t_ns: Ints, wraps_at: int | None) -> tuple[Ints, Mask]:
    """(cumulative uJ from 0, broken per step). A step back is a wrap when the range is known and the step it implies is
    plausible (below 20 kW), else a reset, whose energy is unknown."""
    step = np.diff(value)
    back = step < 0
    if wraps_at:
        wrapped = step + wraps_at
        plausible = (wrapped >= 0) & (wrapped * 1000 <= 20_000 * np.maximum(1, np.diff(t_ns)))
        step = np.where(back & plausible, wrapped, step)
        back &= ~plausible
    return np.concatenate([[0], np.cumsum(np.where(back, 0, step))]).astype(np.int64), back


def _gap_ns(period_ns: int) -> int:
    return max(GAP_PERIODS * period_ns, GAP_NS)


def _from_counter(series: Series) -> Curve | str:
    cumulative, back = unwrap(series.value, series.t0_ns, series.info.wraps_at)
    moved = np.flatnonzero((np.diff(cumulative) != 0) | back) + 1
    if not len(moved):
        return f"{series.info.source}: the counter never moved"
    middle = (series.t0_ns + series.t1_ns) // 2
    if len(moved) > EVERY_READ * (len(middle) - 1):
        # Read about once per update: a read that found nothing new is no node, energy flowed before the next update.
        at = np.concatenate([[0], moved])
        t, bracket = middle[at], (series.t1_ns - series.t0_ns)[at] // 2
        broken = back[moved - 1]
    else:
        at = np.concatenate([[0], moved])
        low, high = series.t0_ns[moved - 1], series.t1_ns[moved]
        # after a stretch without reads the value is at most one update old: it did not change in the middle of it
        low = np.maximum(low, high - int(1.5 * np.median(np.diff(high)))) if len(high) > 2 else low
        edge, half = regular((low + high) // 2, (high - low) // 2)
        period = int(np.median(np.diff(edge))) if len(edge) > 2 else int(high[0] - low[0])
        first = min(int(middle[0]), int(edge[0]) - period)  # the first value was set one period before it changed
        t = np.concatenate([[first], edge])
        bracket = np.concatenate([[period // 2], half])
        broken = back[moved - 1]
    t = np.maximum.accumulate(t)
    keep = np.concatenate([[True], np.diff(t) > 0])
    keep[-1] = True
    if not keep[-2] and len(keep) > 2:
        keep[-2] = False
    if t[keep][-1] == t[keep][-2]:
        t = t.copy()
        t[-1] += 1
    broken = np.logical_or.reduceat(broken, np.flatnonzero(keep)[:-1]) if len(broken) else broken
    quantum = series.info.resolution or _quantum(cumulative)
    return Curve(
        series.info.device, series.info.domain, series.info.source, t[keep], cumulative[at][keep], bracket[keep],
        broken, quantum, int(np.median(np.diff(t[keep]))), simulated=series.info.simulated, resets=int(np.sum(back)),
        estimated=series.info.estimated,
    )  # fmt: skip


REACH = 40
"""edges on either side that say where one lies"""


def regular(edge: Ints, half: Ints) -> tuple[Ints, Ints]:
    """Edges of a sensor that updates in step, straightened: each bracket says only that an update fell inside it, but
    all of them lie on one slowly drifting grid. Kept as they are where they do not (an irregular sensor)."""
    if len(edge) < 2 * REACH:
        return edge, half
    k, period = _grid(edge)
    off = edge - edge[0] - k * period
    # a running straight line through the offsets: window sums by prefix sums
    low = np.clip(np.arange(len(edge)) - REACH, 0, None)
    high = np.clip(np.arange(len(edge)) + REACH + 1, None, len(edge))
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (np.ones(len(k)), k, off, k * k, k * off)]
    n, sk, so, skk, sko = (v[high] - v[low] for v in sums)
    slope = (n * sko - sk * so) / np.maximum(n * skk - sk * sk, 1e-9)
    line = so / n + slope * (k - sk / n)
    miss = np.abs(off - line)
    if np.quantile(miss, 0.9) > max(2.2 * float(np.median(half)), 2e6):
        return edge, half
    straight = np.rint(edge[0] + k * period + line).astype(np.int64)
    if np.any(np.diff(straight) <= 0):
        return edge, half
    sure = np.maximum(1_000_000, 3 * miss.mean() / np.sqrt(REACH)).astype(np.int64)
    return straight, np.minimum(half, sure)


def _grid(edge: Ints) -> tuple[Floats, float]:
    """(index of each edge on the grid, period): missed updates are whole periods, as many as keep the edges after a gap
    in line with those before it."""
    step = np.diff(edge)
    typical = float(np.median(step))
    near = np.abs(step - typical) < 0.3 * typical
    period = float(step[near].mean())
    k = np.concatenate([[0.0], np.cumsum(np.maximum(np.floor(step / period + 0.4), 1))])
    for i in np.flatnonzero(step > 1.7 * period).tolist():
        off = edge - edge[0] - k * period
        jump = float(np.median(off[i + 1 : i + 21]) - np.median(off[max(0, i - 19) : i + 1]))
        k[i + 1 :] += np.rint(jump / period)
    return k, float((edge[-1] - edge[0]) / max(k[-1], 1))


def _from_gauge(series: Series) -> Curve:
    """Trapezoid over every read (equal reads too: a constant is a measurement)."""
    t = (series.t0_ns + series.t1_ns) // 2
    keep = np.concatenate([[True], np.diff(t) > 0])
    t, mw = t[keep], series.value[keep].astype(float)
    step = np.diff(t) * (mw[1:] + mw[:-1]) / 2 / 1e6
    uj = np.concatenate([[0], np.rint(np.cumsum(step))]).astype(np.int64)
    period = max(int(np.median(np.diff(t))) if len(t) > 1 else 0, series.info.period_ns or 0)
    return Curve(
        series.info.device, series.info.domain, series.info.source, t, uj, np.full(len(t), period // 2),
        np.diff(t) > _gap_ns(period), 1, period, integrated=True, simulated=series.info.simulated,
        estimated=series.info.estimated,
    )  # fmt: skip


def _quantum(cumulative: Ints) -> int:
    steps = np.diff(np.unique(cumulative))
    return int(np.gcd.reduce(steps)) if len(steps) else 1


def borders(curve: Curve, block_ns: int) -> Ints:
    """Node indices that cut the curve into blocks of about block_ns; every node interval lies in exactly one block,
    and an interval whose energy is unknown (reset) is a block of its own."""
    picked = [0]
    start = int(curve.t_ns[0])
    slack = min(curve.period_ns, block_ns) // 2
    broken = set(np.flatnonzero(curve.broken).tolist())
    forced = broken | {k + 1 for k in broken}
    for k in range(1, len(curve.t_ns)):
        t = int(curve.t_ns[k])
        if t - start >= block_ns - slack or k in forced or k == len(curve.t_ns) - 1:
            picked.append(k)
            start = t
    return np.array(picked, np.int64)


def curves_of(series: dict[str, Series]) -> tuple[list[Curve], list[str]]:
    """The curve of every sensor that has one, and why others have none."""
    made = [curve_of(one) for one in series.values()]
    return [one for one in made if not isinstance(one, str)], [one for one in made if isinstance(one, str)]


def _first(one: Curve) -> int:
    """What a curve's period must be below to come before it: of two counters the first stays."""
    return one.period_ns if one.integrated else 0


def choose(curves: list[Curve]) -> list[Curve]:
    """One curve per (domain, device): a counter before an integrated gauge, of gauges the one renewed most often
    (a driver's 20 ms samples before power that stands for 100 ms), anything measured in a domain before an estimate of
    it."""
    best: dict[tuple[str, str], Curve] = {}
    for one in curves:
        key = (one.domain, one.device)
        if key not in best or (one.integrated, one.period_ns) < (best[key].integrated, _first(best[key])):
            best[key] = one
    measured = {one.domain for one in best.values() if not one.estimated}
    return [one for one in best.values() if not one.estimated or one.domain not in measured]
