"""Sensor lag: how much later than the work the counter shows it, found where the energy fits the work best.

Energy between counter nodes is regressed (non-negative) on the work between the same nodes shifted back by each lag
tried; the best lag wins and a block bootstrap gives its spread. A run with no change in load cannot tell: it says so.
May not know: files, requests one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from energy.curve import Curve
from energy.tables import Floats, Ints, Mask
from energy.work import WorkCurve

GRID_S = np.arange(-0.30, 1.51, 0.01)
CHUNK_S = 5.0
WORST_SPREAD_S = 0.1


@dataclass(frozen=True, slots=True)
class Lag:
    """lag_s is used; spread_s is the bootstrap's 90 % half width. known False: the run cannot tell, 0.06 s is assumed
    (what the energy counter of a current card shows) with the spread that says so."""

    lag_s: float
    spread_s: float
    known: bool


ASSUMED = Lag(0.06, 0.1, False)


def estimate_lag(curve: Curve, work: WorkCurve, origin_ns: int, *, grid: Floats = GRID_S) -> Lag:
    """The lag of one curve behind the work, from the nodes inside the work's span."""
    t = (curve.t_ns - origin_ns) / 1e9
    inside = np.flatnonzero((t > work.t[0] + 1.6) & (t < work.t[-1] - 0.4))
    if len(inside) > 6000:  # a long run tells no more than its busiest 10 minutes
        inside = inside[:: len(inside) // 6000 + 1]
    if len(inside) < 30:
        return ASSUMED
    at = t[inside]
    energy = np.diff(curve.uj[inside]) / 1e6
    inside_reset = np.add.reduceat(curve.broken, inside[:-1]) > 0
    wide = (np.diff(at) > 3 * np.median(np.diff(at))) | inside_reset
    chunks = ((at[:-1] - at[0]) / CHUNK_S).astype(np.int64)
    stats = [_normal(work, at, energy, lag, chunks, wide) for lag in grid]
    best = _best(stats, grid, np.ones(chunks.max() + 1))
    if best is None:
        return ASSUMED
    rng = np.random.default_rng(1)
    picks = []
    for _ in range(24):
        weight = np.bincount(rng.integers(0, chunks.max() + 1, chunks.max() + 1), minlength=chunks.max() + 1)
        lag = _best(stats, grid, weight.astype(float))
        if lag is not None:
            picks.append(lag)
    spread = float(np.quantile(np.abs(np.array(picks) - best), 0.9)) if picks else WORST_SPREAD_S
    spread = max(spread, float(grid[1] - grid[0]) / 2)
    return Lag(best, spread, True) if spread <= WORST_SPREAD_S else Lag(ASSUMED.lag_s, max(spread, 0.1), False)


def _normal(
    work: WorkCurve,
    at: Floats,
    energy: Floats,
    lag: float,
    chunks: Ints,
    wide: Mask,
) -> tuple[Floats, Floats, Floats]:
    """Normal equations per chunk at one lag: (X'X, X'y, y'y)."""
    features, busy, _ = work.at(at - lag)
    x = np.column_stack([np.diff(at), np.diff(busy), np.diff(features, axis=0)])
    x[wide] = 0
    y = np.where(wide, 0, energy)
    n = chunks.max() + 1
    xx = np.zeros((n, x.shape[1], x.shape[1]))
    np.add.at(xx, chunks, x[:, :, None] * x[:, None, :])
    xy = np.zeros((n, x.shape[1]))
    np.add.at(xy, chunks, x * y[:, None])
    return xx, xy, np.bincount(chunks, y * y, n).astype(float)


def _best(stats: list[tuple[Floats, Floats, Floats]], grid: Floats, weight: Floats) -> float | None:
    """The lag of the least squared error, refined by a parabola; None where the error hardly depends on it."""
    errors = np.array([_error(s, weight) for s in stats])
    k = int(np.argmin(errors))
    flat = np.median(errors) <= errors[k] * 1.02 + 1e-12
    if flat or k in (0, len(grid) - 1):
        return None
    a, b, c = errors[k - 1 : k + 2]
    bend = a - 2 * b + c
    return float(grid[k] + (0.5 * (a - c) / bend if bend > 0 else 0.0) * (grid[1] - grid[0]))


def _error(stats: tuple[Floats, Floats, Floats], weight: Floats) -> float:
    xx, xy, yy = (np.tensordot(weight, s, 1) for s in stats)
    scale = np.sqrt(np.maximum(np.diag(xx), 1e-30))
    a = xx / scale[:, None] / scale[None, :] + 1e-9 * np.eye(len(scale))
    b = xy / scale
    root = np.linalg.cholesky(a + 1e-9 * np.eye(len(scale))).T
    coefficient, _ = nnls(root, np.linalg.solve(root.T, b))
    return float(yy - 2 * coefficient @ b + coefficient @ a @ coefficient)
