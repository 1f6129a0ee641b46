"""Intervals follow what a run shows of its own misfit: no more of it makes any of them narrower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from energy.align import Lag
from energy.fit import TERMS as COSTS
from energy.fit import Fit
from energy.model import DECODE, PREFILL, Blocks, Shares
from energy.policies import equal, fitted
from energy.tables import Floats
from energy.uncertainty import UNKNOWN, UNRESOLVED, coefficient_errors, misfit, time_misfit, widths

N, BLOCKS = 12, 40


def _fit() -> Fit:
    joules = np.array([60.0, 60.0, 90.0, 0.4, 0.02, 1e-6, 0.3, 1e-5])
    seconds = np.array([4e-3, 4e-5, 1e-9, 1e-4, 1e-8])
    sd = 0.05 * joules
    return Fit(joules, sd, seconds, 100.0, 5.0, 2 * BLOCKS, "test", np.diag(sd**2))


def _rows(seed: int) -> Shares:
    """Every request in some blocks, both phases."""
    rng = np.random.default_rng(seed)
    window = np.repeat(np.arange(N), 20)
    block = rng.integers(0, BLOCKS, len(window))
    phase = np.where(rng.random(len(window)) < 0.3, PREFILL, DECODE)
    tokens = rng.integers(1, 400, len(window)) * (phase == PREFILL)
    made = rng.integers(1, 40, len(window)) * (phase == DECODE)
    work = np.column_stack([rng.uniform(1, 9, len(window)), tokens, 500.0 * tokens, made, 900.0 * made])
    seconds = rng.uniform(0.1, 0.9, len(window))
    return Shares(
        window.astype(np.int32), block.astype(np.int32), phase.astype(np.int8), work, seconds, np.zeros(len(window))
    )


def _blocks(rows: Shares, fit: Fit, noise: float = 0.0) -> Blocks:
    """Blocks of a second, busy for as long as their work takes, or nearly so."""
    work = np.stack([np.bincount(rows.block, rows.work[:, k], BLOCKS) for k in range(5)], 1)
    busy = work @ fit.seconds * np.exp(noise * np.linspace(-1, 1, BLOCKS))
    busy = np.minimum(0.9 * busy / busy.max(), 0.95)
    return Blocks(
        np.arange(BLOCKS + 1.0), np.full(BLOCKS, 200_000_000), busy, np.zeros(BLOCKS), work, np.ones(BLOCKS, bool)
    )


def _half(rows: Shares, blocks: Blocks, fit: Fit, ratio: Floats, spread_s: float = 0.01, again: float = 0.0) -> Floats:
    """Half width as a share of each request's figure."""
    split = fitted(rows, blocks, fit)
    lag = Lag(0.06, spread_s, True)
    found = widths(rows, blocks, fit, split, equal(rows, blocks, fit), lag, 0.1, ratio, N, again=again, told=True)
    return np.asarray(found.half_uj.reshape(N, 2).sum(1) / np.bincount(rows.window, split.active, N))


@pytest.mark.parametrize("seed", range(5))
def test_more_misfit_never_narrows(seed: int) -> None:
    rows, fit = _rows(seed), _fit()
    quiet = np.exp(0.02 * np.random.default_rng(seed).normal(size=BLOCKS))
    calm = _half(rows, _blocks(rows, fit, 0.02), fit, quiet)
    loose = replace(fit, covariance=9 * fit.covariance)
    for wider in (
        _half(rows, _blocks(rows, fit, 0.02), fit, quiet**4),
        _half(rows, _blocks(rows, fit, 0.02), loose, quiet),
        _half(rows, _blocks(rows, fit, 0.02), fit, quiet, spread_s=0.3),
        _half(rows, _blocks(rows, fit, 0.02), fit, quiet, again=0.1),
    ):
        assert np.all(wider > calm)


def test_time_misfit_is_nothing_where_work_explains_the_time() -> None:
    rows, fit = _rows(1), _fit()
    exact, off, more = (time_misfit(_blocks(rows, fit, noise), fit) for noise in (0.0, 0.1, 0.4))
    assert exact == pytest.approx(0.0, abs=1e-9)
    assert exact < off < more


def test_a_run_too_short_to_tell_is_not_called_a_good_fit() -> None:
    rows, fit = _rows(1), _fit()
    blocks = _blocks(rows, fit)
    idle = replace(blocks, busy=np.zeros(BLOCKS))
    assert time_misfit(idle, fit) == misfit(idle, np.ones(BLOCKS)) == UNKNOWN


def test_who_is_alone_in_a_busy_block_owes_nothing_to_coefficients() -> None:
    """Its joules are the block's, whatever the coefficients; of two alike each has half of them."""
    rows, fit = _rows(2), _fit()
    alone = replace(rows, block=(rows.window % BLOCKS).astype(np.int32))
    blocks = _blocks(alone, fit)
    blocks = replace(blocks, busy=np.ones(BLOCKS))
    assert coefficient_errors(alone, blocks, fitted(alone, blocks, fit), fit, N).max() < 1.0
    shared = _blocks(rows, fit)
    errors = coefficient_errors(rows, shared, fitted(rows, shared, fit), fit, N)
    assert errors.min() > 1000.0
    twice = replace(fit, covariance=4 * fit.covariance)
    assert coefficient_errors(rows, shared, fitted(rows, shared, fit), twice, N) == pytest.approx(2 * errors)


def test_a_request_that_no_sensor_resolves_says_so() -> None:
    """Coefficients that say nothing, blocks that fit badly, times that no work explains."""
    rows, fit = _rows(3), _fit()
    lost = replace(fit, covariance=1e6 * fit.covariance)
    wild = np.exp(np.random.default_rng(3).normal(size=BLOCKS))
    assert np.median(_half(rows, _blocks(rows, fit, 3.0), lost, wild)) > UNRESOLVED
    assert len(COSTS) == len(fit.joules)
