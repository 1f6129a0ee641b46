"""How far a request's figure may be off: what the fit, the sensor, the lag and the choice of method leave open.

Components of the half width, in quadrature: coefficients (their covariance through the request's own features); sensor
edges and lag against the time the request ran; the method band (how far the fitted split lies from splitting time
equally); the placement of prefill in time; a floor. The sum is stretched by a factor found by split-conformal on
synthetic truth (tuning seeds; coverage is tested on others, leaving one mix out: joulegraph validate), so on real runs
it is `calibrated in simulation`. May not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.align import Lag
from energy.fit import Fit
from energy.model import PREFILL, Blocks, Shares
from energy.policies import Split, caused
from energy.tables import Floats

STRETCH = 1.9
"""90 % quantile of |error| / half width over the tuning seeds of every mix and both engines of truth (L1)"""
COEFFICIENTS, BAND, SENSOR, PLACEMENT, FLOOR = 0.3, 0.03, 0.02, 0.1, 0.001
GAIN = 0.05
"""a board's sensor gain, common to all its requests: stated once per run, never in a request's width"""
UNRESOLVED = 0.5
"""a request whose half width exceeds this share of its figure is not resolved by the sensors"""


@dataclass(frozen=True, slots=True)
class Widths:
    """Half width in uJ of each (window, phase) cell, index 2 * window + phase."""

    half_uj: Floats


def widths(
    rows: Shares, blocks: Blocks, fit: Fit, split: Split, other: Split, lag: Lag, edge_s: float, n: int
) -> Widths:
    """Half widths of the 90 % interval of `active` of n windows by phase."""
    cell = rows.window.astype(np.int64) * 2 + rows.phase
    base = caused(rows, blocks, fit.seconds)
    columns = [np.bincount(cell, base, 2 * n), *(np.bincount(cell, rows.work[:, k], 2 * n) for k in range(5))]
    summed = np.stack(columns, 1)
    coefficient = 1e6 * np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", summed, fit.covariance[2:, 2:], summed), 0))
    active = np.bincount(cell, split.active, 2 * n)
    band = np.abs(active - np.bincount(cell, other.active, 2 * n))
    seconds = np.bincount(cell, rows.seconds, 2 * n)
    blur = active * (lag.spread_s + edge_s) / (seconds + 1.0)
    prefill = np.where(np.arange(2 * n) % 2 == PREFILL, active, 0.0)
    parts = (
        COEFFICIENTS * 1.645 * coefficient,
        BAND * band,
        SENSOR * blur,
        PLACEMENT * prefill,
        FLOOR * active,
    )
    return Widths(STRETCH * np.sqrt(sum(p**2 for p in parts)))
