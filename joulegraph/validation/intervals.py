"""Widths of intervals learned from runs with known truth: exponents by least squares, height by split-conformal.

Every run weighs the same, whatever its length. May not know: how runs came about.
"""

from __future__ import annotations

import numpy as np

from energy.tables import Floats
from energy.uncertainty import TERMS, Scale
from joulegraph.validation.score import Score

RIDGE = 0.1
"""of exponents of standardised terms: a mix that is left out may lie outside of what was seen"""
LEAST_ERROR = 2e-4
COVERAGE = 0.9


def learn(scores: list[Score]) -> Scale:
    """Scale of half widths from the errors of these runs."""
    x = np.concatenate([s.terms for s in scores])
    y = np.log(np.maximum(np.concatenate([_relative(s) for s in scores]), LEAST_ERROR))
    weight = np.concatenate([np.full(len(s.error_uj), 1 / len(s.error_uj)) for s in scores])
    mean = np.average(x, axis=0, weights=weight)
    sd = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    sd[sd < 1e-9] = 1.0
    z = (x - mean) / sd
    z[:, 0] = 1.0
    normal = (z * weight[:, None]).T @ z / weight.sum() + RIDGE * np.diag([0.0] + [1.0] * (len(TERMS) - 1))
    found = np.linalg.solve(normal, (z * weight[:, None]).T @ y / weight.sum()) / sd
    exponents = (0.0, *found[1:].tolist())
    flat = Scale(exponents, (1.0, 1.0))
    return Scale(exponents, (_height(scores, flat, told=False), _height(scores, flat, told=True)))


def _height(scores: list[Score], flat: Scale, *, told: bool) -> float:
    """90 % quantile of error over width, of a request drawn from a run drawn from these."""
    mine = [s for s in scores if (s.terms[0, -1] > 0) == told]
    ratio = np.concatenate([_relative(s) / flat.half(s.terms) for s in mine])
    weight = np.concatenate([np.full(len(s.error_uj), 1 / len(s.error_uj)) for s in mine])
    order = np.argsort(ratio)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(ratio[order][np.searchsorted(reached, COVERAGE)])


def _relative(s: Score) -> Floats:
    return np.asarray(s.error_uj / np.maximum(s.active_uj, 1.0))


def covered(s: Score, scale: Scale) -> Floats:
    """1 where the interval of this scale holds the truth."""
    return (s.error_uj <= scale.half(s.terms) * s.active_uj).astype(float)
