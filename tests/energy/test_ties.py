"""What one request at a time cannot tell apart: a decoded token and its step, a prompt token and its context; and first
tokens of one step that were read apart."""

from __future__ import annotations

import numpy as np
import pytest

from energy.timefit import fit_time, from_cells
from energy.windows import _fifo, _steps
from energy.work import FEATURES, Told, WorkCurve


@pytest.mark.parametrize("token_s", [1e-5, 1e-4])
def test_a_decode_alone_costs_its_step_not_its_token(token_s: float) -> None:
    """Solo prompts of one length, then solo decodes: steps and decoded tokens are the same numbers."""
    t = np.arange(0, 40.25, 0.25)
    busy = np.diff(t)
    half = len(busy) // 2
    x = np.zeros((len(busy), 5))
    x[:half, 0] = 0.25 / (0.02 + 2000 * token_s)
    x[:half, 1] = 2000 * x[:half, 0]
    x[:half, 2] = x[:half, 1] * 500
    x[half:, 0] = x[half:, 3] = 0.25 / 0.02
    x[half:, 4] = x[half:, 3] * np.linspace(100, 600, len(busy) - half)
    features = np.vstack([np.zeros(5), np.cumsum(x, 0)])
    none = np.zeros(len(t))
    found = from_cells(
        WorkCurve(t, features, np.concatenate([[0.0], np.cumsum(busy)]), none, np.zeros((len(t), 2)), none[1:])
    )
    cost = dict(zip(FEATURES, found.tolist(), strict=True))
    assert cost["decode"] < 4 * token_s
    assert cost["steps"] > 0.8 * 0.02 - 4 * token_s
    assert cost["prefill_context"] * 500 < 0.2 * token_s


def test_first_tokens_of_one_step_read_apart_are_one_group() -> None:
    """Eight prompts of 2,000 tokens in a step of 1.6 s, read 5 ms apart; eight more in the next."""
    first = np.concatenate([1.6 + 0.005 * np.arange(8), 3.2 + 0.005 * np.arange(8)])
    computed = np.full(16, 2000.0)
    assert np.flatnonzero(_steps(first, computed, 1e-4, 0.002)).tolist() == [0, 8]
    start = _fifo(np.full(16, 0.0), first, first, computed, np.zeros(16), 1e-4)
    assert start[8:] == pytest.approx(np.full(8, 1.6), abs=0.01)


def test_steps_stamped_too_close_together_do_not_outweigh_the_rest() -> None:
    """1,000 decode steps of 5 ms, 40 steps of 4,000 prompt tokens at 0.2 ms, three of which the stamps give 2 ms."""
    work = np.zeros((1040, 5))
    work[:, 0] = 1.0
    work[:1000, 3] = 1 + np.arange(1000) % 16
    work[1000:, 1] = 4000 * np.linspace(0.5, 1.5, 40)
    seconds = 0.005 + 2e-4 * work[:, 1]
    seconds[[1005, 1020, 1035]] = 0.002
    t = np.array([0.0, 1.0])
    none = np.zeros(2)
    told = Told(np.cumsum(seconds), seconds, work)
    found = fit_time(WorkCurve(t, np.zeros((2, 5)), none, none, np.zeros((2, 2)), none[1:], told=told))
    assert found[1] == pytest.approx(2e-4, rel=0.15)
    assert found[0] == pytest.approx(0.005, rel=0.2)


def cells(rng: np.random.Generator, decode_s: float, noise: float) -> WorkCurve:
    """A saturated run: as many contexts per decoded token everywhere, batches of 4 to 40."""
    batch = np.repeat(rng.uniform(4, 40, 60), 25)
    prompts, context = rng.poisson(20, 1500), batch * rng.normal(900, 90, 1500)
    per_step = np.stack([np.ones(1500), prompts, np.zeros(1500), batch, context], 1)
    took = per_step @ np.array([8e-3, 8e-6, 0.0, decode_s, 3e-8])
    t = np.concatenate([[0.0], np.cumsum(took)])
    seen = per_step * rng.normal(1, noise, per_step.shape)
    done = np.concatenate([np.zeros((1, 5)), np.cumsum(seen, 0)])
    return WorkCurve(t, done, t.copy(), np.zeros(len(t)), np.zeros((len(t), 2)), np.zeros(len(t) - 1))


@pytest.mark.parametrize("decode_s", [2.5e-4, 1e-5])
def test_cells_tell_a_dear_token_from_its_context(decode_s: float) -> None:
    """Experts: a decoded token costs thirty prompt tokens; else about one. Its context must not stand for it."""
    found = from_cells(cells(np.random.default_rng(4), decode_s, 0.01))
    decode, context = found[FEATURES.index("decode")], found[FEATURES.index("context")]
    assert decode + 900 * context == pytest.approx(decode_s + 900 * 3e-8, rel=0.25)
    assert 900 * context < 0.5 * decode_s + 2 * 900 * 3e-8
