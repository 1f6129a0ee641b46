"""Widths learned on some runs hold the truth of others whose errors grow alike, at both kinds of level, and a run that
shows more misfit is never given a narrower interval."""

from __future__ import annotations

import numpy as np
import pytest

from energy.uncertainty import LEAST, SHIPPED, TERMS, Scale
from joulegraph.validation.intervals import FREE, covered, learn
from joulegraph.validation.left_out import LEFT_OUT
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.roofline.boards import CARDS
from joulegraph.validation.score import Score
from joulegraph.validation.tuning import TUNING, sources
from joulegraph.validation.validate import EVALUATION

GROWS = [TERMS.index(name) for name in TERMS[1:] if name not in FREE]


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


def test_what_errors_do_not_grow_with_gets_no_negative_exponent() -> None:
    """Errors that shrink with a term still give widths that do not."""
    runs = [scored(k, told=bool(k % 2)) for k in range(12)]
    for run in runs:
        run.error_uj[:] = run.error_uj * np.exp(-0.5 * run.terms[:, 2])
    assert learn(runs).exponents[2] == 0.0


@pytest.mark.parametrize("scale", [SHIPPED, *LEFT_OUT.values()])
def test_more_misfit_is_never_narrower(scale: Scale) -> None:
    rng = np.random.default_rng(3)
    logs = np.log(rng.uniform(LEAST, 0.5, (len(TERMS) - 2, 200)))
    terms = np.column_stack([np.ones(200), *logs, rng.integers(0, 2, 200)])
    before = scale.half(terms)
    assert all(scale.exponents[k] >= 0 for k in GROWS)
    assert any(scale.exponents[k] > 0 for k in GROWS)
    for k in GROWS:
        more = terms.copy()
        more[:, k] += 1.0
        assert np.all(scale.half(more) >= before)


def test_every_mix_and_card_was_left_out_once() -> None:
    assert set(LEFT_OUT) == {*MIXES, *CARDS}
    assert all(scale != SHIPPED for scale in LEFT_OUT.values())


def test_no_tuning_run_is_an_evaluation_run() -> None:
    names = [s.name for s in sources()]
    assert len(names) == len(set(names)) == len(TUNING) * len(MIXES) * (2 + len(CARDS))
    assert not set(TUNING) & set(EVALUATION)
