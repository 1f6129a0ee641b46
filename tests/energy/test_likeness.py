"""What ran near a phase's states says most of it: a board whose costs bend is known better where it was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from energy.fit import Fit, Spans, fit_again, fit_energy
from energy.likeness import REST, trusted

SECONDS = np.array([0.005, 0.0, 0.0, 1e-4, 0.0])


def _board(rates: list[float]) -> Spans:
    """Half seconds of decodes at these rates (tokens a second, 0: idle) on a board whose power grows with the square
    root of them."""
    terms = np.zeros((len(rates), 8))
    rate = np.array(rates)
    terms[:, 0], terms[:, 2] = 0.5 * (rate == 0), 0.5 * (rate > 0)
    terms[:, 3], terms[:, 6] = 0.5 * 100.0 * (rate > 0), 0.5 * rate
    joules = 0.5 * (100 + (rate > 0) * (100 + 4 * np.sqrt(rate)))
    half = np.full(len(rates), 0.5)
    return Spans(terms, half, np.arange(len(rates)), joules, half, 0.5 * np.arange(len(rates)))


def test_costs_that_bend_are_fitted_where_the_phase_is() -> None:
    before = _board([0.0] * 20 + [100.0, 400, 900, 1600, 2500, 3600, 4900, 6400] * 10)
    phase = _board([2000.0] * 8)
    straight = fit_energy(before, SECONDS)
    assert isinstance(straight, Fit)
    weight = trusted(before, straight, phase.terms, phase.cell_s)
    assert weight.max() == pytest.approx(1.0)
    assert weight[:20].max() < 1.0
    assert np.all(weight >= REST)
    near = fit_again(replace(before, trust=weight), straight)
    off = [abs(f.energy(phase).sum() / phase.joules.sum() - 1) for f in (straight, near)]
    assert off[1] < 0.7 * off[0]


def test_a_phase_without_work_trusts_all_alike() -> None:
    before = _board([0.0] * 20 + [100.0, 400.0] * 20)
    straight = fit_energy(before, SECONDS)
    assert isinstance(straight, Fit)
    idle = _board([0.0] * 4)
    assert np.all(trusted(before, straight, idle.terms, idle.cell_s) == 1.0)
