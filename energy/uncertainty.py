"""How far a request's figure may be off: what the model, the sensor, the lag and the stamps leave open.

Three things are measured on the run itself, as shares of a figure. A plain size, in quadrature: misfit, the geometric
mean of how far modelled blocks lie from measured ones (the spread of their ratio over this run's busy blocks) and of
the method band (how far the fitted split lies from splitting time equally; where all policies agree a misfit is common
to all and cancels); sensor edges and lag against the time the request ran; stamps against short windows; a floor. The
standard error that the coefficients leave, correlated as they are, after each block is scaled to its measurement. And
how far the time that the work should take lies from the time it took, block by block: where costs are not linear
(experts, a roofline's bend, what was computed unseen) it shows there, though energy that hardly varies hides it. Beside
them: how much of its prompts the engine computed twice (after a preemption, which is seen late and in part), and how
long a request ran, over which errors of single blocks cancel.

Errors on known truth grow with each but the last, not in proportion, and less where the engine told its steps. So the
half width is a power law in these (conditional split-conformal: exponents, none of what a run shows of its own misfit
below zero, by regression of the 90 % quantile on runs of many boards, models, engines and sensors, height by the
quantile there): a run that fits badly is given wider intervals, never narrower ones. On real runs it is `calibrated in
simulation`. May not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.align import Lag
from energy.fit import Fit
from energy.model import Blocks, Shares
from energy.policies import Split, caused
from energy.tables import Floats, Mask

MISFIT, SENSOR, STAMPS, FLOOR = 0.27, 0.13, 0.3, 0.002
STAMP_S = 0.01
"""what a client's stamps may be late by"""
GAIN = 0.05
"""a board's sensor gain, common to all its requests: stated once per run, never in a request's width"""
UNRESOLVED = 0.5
"""a request whose half width exceeds this share of its figure is not resolved by the sensors"""
LEAST = 1e-4
FEWEST, UNKNOWN = 5, 0.1
"""busy blocks below which a run cannot tell its misfit, and what is taken for it then"""
BASE = 2
"""first of the fit's coefficients that requests share in (busy seconds); idle and tail come before"""
TERMS = ("constant", "size", "coefficients", "times", "again", "seconds", "told")
"""logarithms (but for constant and told): plain size as a share of the figure; standard error from the coefficients as
a share of it; misfit of times in the run; share of the run's prompt tokens that were computed again; seconds scheduled;
1 where the engine told its steps"""


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


SHIPPED = Scale((0.000, 0.178, 0.396, 0.483, 0.105, -0.190, 0.003), (14.062, 14.127))
"""found by scripts/fit_intervals.py, which prints this line"""


def _busy(blocks: Blocks) -> Mask:
    return blocks.busy > 0.2 * blocks.seconds


def _spread(values: Floats) -> float:
    """Half the distance of the 10th and 90th percentile."""
    if len(values) < FEWEST:
        return UNKNOWN
    low, high = np.quantile(values, [0.1, 0.9])
    return float(high - low) / 2


def misfit(blocks: Blocks, ratio: Floats) -> float:
    """Half the spread of measured over modelled energy of blocks in which something ran."""
    return _spread(ratio[_busy(blocks) & ~np.isnan(ratio)])


def time_misfit(blocks: Blocks, fit: Fit) -> float:
    """Half the spread of the logarithm of the time that the work of a block should take over the time it took."""
    should = blocks.work @ fit.seconds
    some = _busy(blocks) & (should > 0)
    return _spread(np.log(should[some] / blocks.busy[some]))


def coefficient_errors(rows: Shares, blocks: Blocks, split: Split, fit: Fit, n: int) -> Floats:
    """Standard error (uJ) of each window that the fit's covariance leaves: of what it has of each term beyond its share
    of its blocks, whose sums are measured."""
    every = len(blocks)
    modelled = np.bincount(rows.block, split.active, every) + split.idle + split.tail
    share = split.active / np.where(modelled > 0, modelled, 1.0)[rows.block]
    beyond = np.empty((n, len(fit.joules) - BASE))
    for k in range(beyond.shape[1]):
        term = caused(rows, blocks, fit.seconds) if k == 0 else rows.work[:, k - 1]
        total = np.bincount(rows.block, term, every)
        beyond[:, k] = np.bincount(rows.window, term - share * total[rows.block], n)
    variance = np.einsum("ij,jk,ik->i", beyond, fit.covariance[BASE:, BASE:], beyond)
    return np.asarray(1e6 * np.sqrt(np.maximum(variance, 0.0)))


def widths(
    rows: Shares,
    blocks: Blocks,
    fit: Fit,
    split: Split,
    other: Split,
    lag: Lag,
    edge_s: float,
    ratio: Floats,
    n: int,
    *,
    again: float,
    told: bool,
) -> Widths:
    """Half widths of the 90 % interval of `active` of n windows by phase. other: the equal-time split; ratio: measured
    over modelled energy per block; again: share of prompt tokens computed again; told: whether the engine told its
    steps."""
    cell = rows.window.astype(np.int64) * 2 + rows.phase
    active = np.bincount(cell, split.active, 2 * n)
    band = np.abs(active - np.bincount(cell, other.active, 2 * n))
    seconds = np.bincount(cell, rows.seconds, 2 * n)
    blur = active * (lag.spread_s + edge_s) / (seconds + 1.0)
    stamps = active * np.minimum(STAMP_S / (seconds + 1e-3), 1.0)
    parts = (MISFIT * np.sqrt(misfit(blocks, ratio) * active * band), SENSOR * blur, STAMPS * stamps, FLOOR * active)
    plain = np.sqrt(sum(p**2 for p in parts))
    whole, sizes = active.reshape(n, 2).sum(1), plain.reshape(n, 2).sum(1)
    errors = coefficient_errors(rows, blocks, split, fit, n)
    shares = (x / np.maximum(whole, 1e-9) for x in (sizes, errors))
    found = (*shares, np.full(n, time_misfit(blocks, fit)), np.full(n, again), seconds.reshape(n, 2).sum(1))
    logs = [np.log(np.maximum(x, LEAST)) for x in found]
    terms = np.stack([np.ones(n), *logs, np.full(n, float(told))], 1)
    half = SHIPPED.half(terms) * whole
    share = plain.reshape(n, 2) / np.maximum(sizes, 1e-30)[:, None]
    return Widths((half[:, None] * share).ravel(), terms)
