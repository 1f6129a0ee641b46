"""Statistics of a sweep: intervals over repeats, a line through points, where a curve flattens, which points are best.

Pure. Shapes: one-dimensional sequences of floats. May not know: runs, files, what a figure means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

CONFIDENCE = 0.95
PLATEAU = 0.02


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over repeats and its 95 % confidence interval (Student's t); low and high None below two repeats."""

    n: int
    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """The mean and its interval. values: at least one."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Interval(n, mean, None, None)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(values) / n**0.5
    return Interval(n, mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Line:
    """Least squares y = intercept + slope * x. r2 None where y does not vary; at least two different x."""

    slope: float
    intercept: float
    r2: float | None
    n: int


def line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The line through points; None where x takes fewer than two values."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) < 2 or np.ptp(xs) == 0:
        return None
    dx = xs - xs.mean()
    slope = float(dx @ (ys - ys.mean()) / (dx @ dx))
    intercept = float(ys.mean() - slope * xs.mean())
    total = float(((ys - ys.mean()) ** 2).sum())
    rest = float(((ys - intercept - slope * xs) ** 2).sum())
    return Line(slope, intercept, None if total == 0 else 1 - rest / total, len(xs))


def plateau(x: Sequence[float], y: Sequence[float], tolerance: float = PLATEAU) -> float | None:
    """The smallest x from which on y never rises above its value at the largest x by more than `tolerance` (a share).

    For time against power cap: raising the cap beyond it gains nothing. None with fewer than two values of x, or where
    only the largest qualifies (no plateau in the range).
    """
    pairs = sorted(zip(x, y, strict=True))
    if len({a for a, _ in pairs}) < 2:
        return None
    bound = pairs[-1][1] * (1 + tolerance)
    at = None
    for value, height in reversed(pairs):
        if height > bound:
            break
        at = value
    return None if at == pairs[-1][0] else at


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats in both coordinates (less is better), by the first coordinate."""
    chosen: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            best = points[index][1]
            chosen.append(index)
    return chosen


def covered_ns(starts: Sequence[int], ends: Sequence[int]) -> int:
    """Length of the union of intervals [start, end)."""
    total, until = 0, None
    for start, end in sorted(zip(starts, ends, strict=True)):
        if end <= start:
            continue
        if until is None or start > until:
            total += end - start
            until = end
        elif end > until:
            total += end - until
            until = end
    return total
