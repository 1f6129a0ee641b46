"""Widths learned on some runs hold the truth of others whose errors grow alike, at both kinds of level."""

from __future__ import annotations

import numpy as np
import pytest

from energy.uncertainty import TERMS
from joulegraph.validation.intervals import covered, learn
from joulegraph.validation.score import Score


def scored(seed: int, *, told: bool, n: int = 400) -> Score:
    """Errors that grow as size to the power of 0.7, and are half as large where steps are told."""
    rng = np.random.default_rng(seed)
    active = rng.uniform(1e6, 1e8, n)
    terms = np.zeros((n, len(TERMS)))
    terms[:, 0], terms[:, -1] = 1.0, told
    terms[:, 1], terms[:, 2], terms[:, 3] = rng.normal(-3, 1, n), rng.normal(-2, 1, n), rng.normal(-3, 0.5)
    error = active * 0.05 * np.exp(0.7 * terms[:, 1]) * np.abs(rng.normal(size=n)) * (0.5 if told else 1.0)
    none = np.zeros(n)
    return Score(error / active, none, 0.0, 0, error, none, terms, active, none, none)


@pytest.mark.parametrize("told", [False, True])
def test_learned_widths_hold_nine_of_ten_in_runs_not_seen(told: bool) -> None:
    scale = learn([scored(k, told=bool(k % 2)) for k in range(12)])
    assert scale.exponents[1] == pytest.approx(0.7, abs=0.15)
    share = np.mean([covered(scored(100 + k, told=told), scale).mean() for k in range(6)])
    assert 0.86 < share < 0.94
