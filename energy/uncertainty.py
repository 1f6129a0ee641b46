"""How far a request's figure may be off: what the model, the sensor, the lag and the stamps leave open.

First a plain size, in quadrature: misfit, the geometric mean of how far modelled blocks lie from measured ones (the
spread of their ratio over this run's busy blocks) and of the method band (how far the fitted split lies from splitting
time equally; where all policies agree a misfit is common to all and cancels); sensor edges and lag against the time the
request ran; stamps against short windows; a floor. Errors on synthetic truth grow with it, but not in proportion, and
more where prompts have much of the energy around a request, and less where the engine told its steps. So the half width
is a power law in these (conditional split-conformal: exponents by least squares on tuning seeds of both engines of
truth, height by the 90 % quantile there). On real runs it is `calibrated in simulation`. May not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.align import Lag
from energy.model import PREFILL, Blocks, Shares
from energy.policies import Split
from energy.tables import Floats

MISFIT, SENSOR, STAMPS, FLOOR = 0.27, 0.13, 0.3, 0.002
STAMP_S = 0.01
"""what a client's stamps may be late by"""
GAIN = 0.05
"""a board's sensor gain, common to all its requests: stated once per run, never in a request's width"""
UNRESOLVED = 0.5
"""a request whose half width exceeds this share of its figure is not resolved by the sensors"""
LEAST = 1e-4
TERMS = ("constant", "size", "prefill_around", "misfit", "told")
"""logarithms (but for constant and told): plain size as a share of the figure; share of prompts in the energy of the
blocks in which the request ran; misfit of the run; 1 where the engine told its steps"""


@dataclass(frozen=True, slots=True)
class Widths:
    """Half width in uJ of each (window, phase) cell, index 2 * window + phase; terms: (windows, TERMS)."""

    half_uj: Floats
    terms: Floats


@dataclass(frozen=True, slots=True)
class Scale:
    """Half width as a share of the figure = exp(terms @ exponents), its constant such that 90 % of errors lie within,
    for runs without (first) and with (second) steps told."""

    exponents: tuple[float, ...]
    height: tuple[float, float]

    def half(self, terms: Floats) -> Floats:
        """Shares, one per row of terms."""
        out: Floats = np.exp(terms @ np.array(self.exponents)) * np.where(
            terms[:, -1] > 0, self.height[1], self.height[0]
        )
        return out


SHIPPED = Scale((0.000, 0.660, 0.038, 0.449, -0.516), (3.341, 2.881))
"""found on the tuning seeds by scripts/fit_intervals.py, which prints this line"""


def misfit(blocks: Blocks, ratio: Floats) -> float:
    """Half the spread (10th to 90th percentile) of measured over modelled energy of blocks in which something ran."""
    busy = (blocks.busy > 0.2 * blocks.seconds) & ~np.isnan(ratio)
    if np.count_nonzero(busy) < 5:
        return 0.1
    low, high = np.quantile(ratio[busy], [0.1, 0.9])
    return float(high - low) / 2


def widths(
    rows: Shares,
    blocks: Blocks,
    split: Split,
    other: Split,
    lag: Lag,
    edge_s: float,
    ratio: Floats,
    n: int,
    *,
    told: bool,
) -> Widths:
    """Half widths of the 90 % interval of `active` of n windows by phase. other: the equal-time split; ratio: measured
    over modelled energy per block; told: whether the engine told its steps."""
    cell = rows.window.astype(np.int64) * 2 + rows.phase
    active = np.bincount(cell, split.active, 2 * n)
    band = np.abs(active - np.bincount(cell, other.active, 2 * n))
    seconds = np.bincount(cell, rows.seconds, 2 * n)
    blur = active * (lag.spread_s + edge_s) / (seconds + 1.0)
    stamps = active * np.minimum(STAMP_S / (seconds + 1e-3), 1.0)
    spread = misfit(blocks, ratio)
    parts = (MISFIT * np.sqrt(spread * active * band), SENSOR * blur, STAMPS * stamps, FLOOR * active)
    plain = np.sqrt(sum(p**2 for p in parts))
    whole, sizes = active.reshape(n, 2).sum(1), plain.reshape(n, 2).sum(1)
    around = _around(rows, blocks, split, n)
    size = sizes / np.maximum(whole, 1e-9)
    logs = [np.log(np.maximum(x, LEAST)) for x in (size, around + 1e-3, np.full(n, spread))]
    terms = np.stack([np.ones(n), *logs, np.full(n, float(told))], 1)
    half = SHIPPED.half(terms) * whole
    share = plain.reshape(n, 2) / np.maximum(sizes, 1e-30)[:, None]
    return Widths((half[:, None] * share).ravel(), terms)


def _around(rows: Shares, blocks: Blocks, split: Split, n: int) -> Floats:
    """Share of prompts in the energy of the blocks in which each window ran, by its seconds in them."""
    prompts = np.bincount(rows.block, split.active * (rows.phase == PREFILL), len(blocks))
    share = prompts / np.maximum(np.bincount(rows.block, split.active, len(blocks)), 1e-9)
    seconds = np.bincount(rows.window, rows.seconds, n)
    out: Floats = np.bincount(rows.window, rows.seconds * share[rows.block], n) / np.maximum(seconds, 1e-9)
    return out
