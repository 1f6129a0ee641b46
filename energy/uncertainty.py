"""How far a request's figure may be off: what the fit, the sensor, the lag and the choice of method leave open.

Components of the relative width, in quadrature: coefficients (their covariance through the request's own features),
sensor edges and lag against the request's length, and the method band (how far the fitted split lies from splitting
steps and time equally). The sum is stretched by a factor calibrated by split-conformal on synthetic truth
(joulegraph validate); on real runs that makes it `calibrated in simulation`. May not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.align import Lag
from energy.fit import Fit
from energy.model import Blocks, Shares
from energy.policies import Split, caused
from energy.tables import Floats

STRETCH = 1.0
"""multiplies every width; set from the split-conformal quantile over mixes and seeds (docs/attribution.md)"""
BAND = 0.1
"""share of the distance between policies that the method band covers"""
GAIN = 0.05
"""a board's sensor gain, common to all its requests; reported once, never in a request's width"""


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
    features = np.column_stack([base, rows.work])
    summed = np.stack([np.bincount(cell, features[:, k], 2 * n) for k in range(6)], 1)
    covariance = fit.covariance[2:, 2:]
    coefficient = 1.645e6 * np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", summed, covariance, summed), 0))
    active = np.bincount(cell, split.active, 2 * n)
    band = BAND * np.abs(active - np.bincount(cell, other.active, 2 * n))
    seconds = np.bincount(cell, rows.seconds, 2 * n)
    blur = (lag.spread_s if lag.known else 0.1) + edge_s
    sensor = active * np.minimum(0.5, 0.5 * blur / np.maximum(seconds + 1.0, 1e-9))
    return Widths(STRETCH * np.sqrt(coefficient**2 + band**2 + sensor**2))
