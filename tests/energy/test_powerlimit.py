"""A board at its limit: found where it is, passing peaks left aside, kept by work that no other comes near."""

from __future__ import annotations

import numpy as np
import pytest

from energy.fit import Fit, Spans, fit_energy
from energy.powerlimit import sustained_w
from energy.tables import Floats

LIMIT_W, IDLE_W = 300.0, 60.0
JOULES = np.array([IDLE_W, IDLE_W, 180.0, 0.5, 0.012, 0.0, 0.006, 0.0])
SECONDS = np.array([0.006, 5e-5, 0.0, 2e-5, 0.0])
BATCHES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
SPANS = 16
"""half seconds of each batch; as many of prompts, which are at the limit"""


def _world(limit_w: float, seed: int = 5) -> tuple[Spans, Floats]:
    """A ladder of decodes with prompts between them, half idle: (spans, batch of each; 0 where prompts run)."""
    rng = np.random.default_rng(seed)
    terms, joules, batch = [], [], []
    for n in BATCHES:
        rate = np.zeros(8)
        rate[2] = 1.0
        step_s = 0.006 + n * 2e-5
        rate[3], rate[6] = (1 / step_s, n / step_s) if n else (10.0, 0.0)
        for k in range(2 * SPANS):
            work = rate.copy()
            work[4] = 0.0 if n else rng.uniform(4_000, 14_000)
            power = min(float(work @ JOULES), limit_w) if k < SPANS else IDLE_W
            terms.append(0.5 * work if k < SPANS else np.array([0.5, 0, 0, 0, 0, 0, 0, 0]))
            joules.append(0.5 * power * (1 + rng.normal(0, 0.01)))
            batch.append(n if k < SPANS else -1)
    count = len(joules)
    half = np.full(count, 0.5)
    spans = Spans(np.array(terms), half, np.arange(count), np.array(joules), half, 0.5 * np.arange(count))
    return spans, np.array(batch)


@pytest.mark.parametrize("held", [64, 128, 256])
@pytest.mark.parametrize("limit_w", [LIMIT_W, 1e9])
def test_a_batch_that_nothing_else_comes_near(held: int, limit_w: float) -> None:
    spans, batch = _world(limit_w)
    fit = fit_energy(spans.where(batch != held), SECONDS)
    assert isinstance(fit, Fit)
    mine = spans.where(batch == held)
    assert fit.energy(mine).sum() == pytest.approx(mine.joules.sum(), rel=0.05)
    if limit_w == LIMIT_W:
        assert LIMIT_W <= fit.cap_w <= 1.1 * LIMIT_W
    else:
        assert not np.isfinite(fit.cap_w)


def test_one_wrong_reading_is_not_sustained() -> None:
    seconds = np.full(100, 0.5)
    joules = np.full(100, 150.0)
    joules[40] = 5_000
    begin = 0.5 * np.arange(100)
    assert sustained_w(begin, seconds, joules) == pytest.approx(300)
    joules[60:66] = 350  # three seconds at 700 W
    assert sustained_w(begin, seconds, joules) > 500


def test_across_gaps_nothing_is_sustained() -> None:
    """Spans that stand alone: their own powers count, two on either side of a gap do not."""
    seconds, joules = np.full(10, 0.5), np.full(10, 100.0)
    assert sustained_w(10.0 * np.arange(10), seconds, joules) == pytest.approx(200)
