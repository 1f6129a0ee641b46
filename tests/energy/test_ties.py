"""What one request at a time cannot tell apart: a decoded token and its step, a prompt token and its context; and first
tokens of one step that were read apart."""

from __future__ import annotations

import numpy as np
import pytest

from energy.timefit import from_cells
from energy.windows import _fifo, _steps
from energy.work import FEATURES, WorkCurve


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
    found = from_cells(WorkCurve(t, features, np.concatenate([[0.0], np.cumsum(busy)]), none, np.zeros((len(t), 2))))
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
