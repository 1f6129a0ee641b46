"""Closed-form Shapley values against the definition: the mean gain over all orders of arrival."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.embedded.shapley import EXACT_SMALL, TokenGame


def by_definition(h: np.ndarray, sizes: list[int]) -> np.ndarray:
    cap = h.shape[1] - 1
    phi = np.zeros((len(h), len(sizes)))
    orders = list(permutations(range(len(sizes))))
    for order in orders:
        met = 0
        for player in order:
            after = min(met + sizes[player], cap)
            phi[:, player] += h[:, after] - h[:, min(met, cap)]
            met = after
    return phi / len(orders)


@st.composite
def games(draw: st.DrawFn) -> np.ndarray:
    cap = draw(st.integers(2, 12))
    row = st.lists(st.floats(-5, 5), min_size=cap - 1, max_size=cap - 1)
    return np.array([[0.0, *draw(row), 0.0] for _ in range(2)])


@settings(max_examples=150, deadline=None)
@given(games(), st.integers(0, 4), st.lists(st.integers(1, 16), max_size=3), st.sampled_from([1, 1, 2, 3, 5, 13]))
def test_equals_the_mean_over_all_orders(h: np.ndarray, units: int, chunks: list[int], size: int) -> None:
    if units + len(chunks) == 0:
        return
    unit, each = TokenGame(h).shapley(units, chunks, size)
    expected = by_definition(h, [size] * units + chunks)
    got = np.array([unit] * units + each).T
    assert got == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300),
    st.lists(st.integers(1, 600), max_size=EXACT_SMALL + 10),
    st.integers(2, 400),
)
def test_shares_add_up_and_equal_players_get_equal_shares(units: int, chunks: list[int], roof: int) -> None:
    x = np.arange(roof + 2)
    h = np.maximum(roof - x, 0.0)[None, :]
    h[:, 0] = 0
    game = TokenGame(h)
    unit, each = game.shapley(units, chunks)
    total = float(units * unit[0] + sum(e[0] for e in each))
    everyone = units + sum(chunks)
    assert total == pytest.approx(float(game.at(everyone)[0]) if everyone else 0.0, abs=1e-6 * roof)
    by_size: dict[int, set[float]] = {}
    for n, e in zip(chunks, each):
        by_size.setdefault(n if n < game.cap else game.cap, set()).add(round(float(e[0]), 9))
    assert all(len(values) == 1 for values in by_size.values())


def test_one_large_prefill_among_decodes_is_the_known_formula() -> None:
    """max(n0, N): each of k decodes pays 1/2 + n0/(k+1), the prefill the rest."""
    n0, k, p = 250, 40, 2048
    x = np.arange(n0 + 2)
    h = np.maximum(n0 - x, 0.0)[None, :]
    h[:, 0] = 0
    unit, each = TokenGame(h).shapley(k, [p])
    assert 1 + unit[0] == pytest.approx(0.5 + n0 / (k + 1))
    assert p + each[0][0] == pytest.approx(p + k / 2 - n0 * k / (k + 1))
