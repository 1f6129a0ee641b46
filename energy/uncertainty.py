"""How far a request's figure may be off: what the model, the sensor, the lag and the stamps leave open.

Components of the half width, in quadrature: misfit, the geometric mean of how far modelled blocks lie from measured
ones (the spread of their ratio over this run's busy blocks) and of the method band (how far the fitted split lies from
splitting time equally; where all policies agree a misfit is common to all and cancels); sensor edges and lag against
the time the request ran; stamps against short windows; a floor. The shares of the components are a least-squares fit
to errors on tuning seeds of both engines of truth; the sum is stretched by a factor found there by split-conformal
(coverage is tested on other seeds, leaving one mix out: joulegraph validate), so on real runs it is `calibrated in
simulation`. May not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.align import Lag
from energy.model import Blocks, Shares
from energy.policies import Split
from energy.tables import Floats

STRETCH = 2.2
"""90 % quantile of |error| / half width, the mean over the tuning runs of every mix and both engines of truth (L1)"""
MISFIT, SENSOR, STAMPS, FLOOR = 0.27, 0.13, 0.3, 0.002
STAMP_S = 0.01
"""what a client's stamps may be late by"""
GAIN = 0.05
"""a board's sensor gain, common to all its requests: stated once per run, never in a request's width"""
UNRESOLVED = 0.5
"""a request whose half width exceeds this share of its figure is not resolved by the sensors"""


@dataclass(frozen=True, slots=True)
class Widths:
    """Half width in uJ of each (window, phase) cell, index 2 * window + phase."""

    half_uj: Floats


def misfit(blocks: Blocks, ratio: Floats) -> float:
    """Half the spread (10th to 90th percentile) of measured over modelled energy of blocks in which something ran."""
    busy = (blocks.busy > 0.2 * blocks.seconds) & ~np.isnan(ratio)
    if np.count_nonzero(busy) < 5:
        return 0.1
    low, high = np.quantile(ratio[busy], [0.1, 0.9])
    return float(high - low) / 2


def widths(
    rows: Shares, blocks: Blocks, split: Split, other: Split, lag: Lag, edge_s: float, ratio: Floats, n: int
) -> Widths:
    """Half widths of the 90 % interval of `active` of n windows by phase. other: the equal-time split; ratio: measured
    over modelled energy per block."""
    cell = rows.window.astype(np.int64) * 2 + rows.phase
    active = np.bincount(cell, split.active, 2 * n)
    band = np.abs(active - np.bincount(cell, other.active, 2 * n))
    seconds = np.bincount(cell, rows.seconds, 2 * n)
    blur = active * (lag.spread_s + edge_s) / (seconds + 1.0)
    stamps = active * np.minimum(STAMP_S / (seconds + 1e-3), 1.0)
    parts = (MISFIT * np.sqrt(misfit(blocks, ratio) * active * band), SENSOR * blur, STAMPS * stamps, FLOOR * active)
    return Widths(STRETCH * np.sqrt(sum(p**2 for p in parts)))
