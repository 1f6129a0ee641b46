"""Widths of intervals learned from runs with known truth: exponents by regression of the quantile, height by
split-conformal.

Every run weighs the same, whatever its length. May not know: how runs came about.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from energy.tables import Floats
from energy.uncertainty import TERMS, Scale
from joulegraph.validation.score import Score

RIDGE = 0.005
"""of exponents of standardised terms: a mix that is left out may lie outside of what was seen"""
SMOOTH = 0.1
"""width (of the logarithm) over which the corner of the quantile's loss is rounded"""
FREE = ("seconds", "told")
"""terms whose exponent may be below zero: of the others more never means narrower"""
LEAST_ERROR = 2e-4
COVERAGE = 0.9


def learn(scores: list[Score]) -> Scale:
    """Scale of half widths from the errors of these runs."""
    x = np.concatenate([s.terms for s in scores])[:, 1:]
    y = np.log(np.maximum(np.concatenate([_relative(s) for s in scores]), LEAST_ERROR))
    weight = np.concatenate([np.full(len(s.error_uj), 1 / len(s.error_uj)) for s in scores]) / len(scores)
    mean = weight @ x
    sd = np.sqrt(weight @ (x - mean) ** 2)
    sd[sd < 1e-9] = 1.0
    exponents = (0.0, *(_quantile(np.column_stack([np.ones(len(y)), (x - mean) / sd]), y, weight)[1:] / sd).tolist())
    flat = Scale(exponents, (1.0, 1.0))
    return Scale(exponents, (_height(scores, flat, told=False), _height(scores, flat, told=True)))


def _quantile(z: Floats, y: Floats, weight: Floats) -> Floats:
    """Coefficients of the COVERAGE quantile of y given z."""
    ridge = RIDGE * np.array([0.0] + [1.0] * (z.shape[1] - 1))

    def loss(b: Floats) -> tuple[float, Floats]:
        rest = y - z @ b
        below = 1 / (1 + np.exp(np.clip(rest / SMOOTH, -50, 50)))
        value = float(weight @ (COVERAGE * rest + SMOOTH * np.logaddexp(0, -rest / SMOOTH)) + ridge @ b**2 / 2)
        return value, -z.T @ (weight * (COVERAGE - below)) + ridge * b

    bounds = [(None, None)] + [(None if name in FREE else 0.0, None) for name in TERMS[1:]]
    start = np.zeros(z.shape[1])
    start[0] = weight @ y
    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


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
