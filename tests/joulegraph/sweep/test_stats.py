"""Statistics of sweeps against definitions and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from joulegraph.sweep.stats import covered_ns, front, interval, line, plateau

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))


@given(st.lists(numbers, min_size=2, max_size=12))
def test_interval_is_students(values: list[float]) -> None:
    found = interval(values)
    assert found.low is not None and found.high is not None
    assert found.low <= found.mean + 1e-6 and found.mean <= found.high + 1e-6
    if len(set(values)) > 1:
        low, high = scipy_stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy_stats.sem(values))
        assert found.low == pytest.approx(low, rel=1e-6, abs=1e-3)
        assert found.high == pytest.approx(high, rel=1e-6, abs=1e-3)


def test_one_repeat_has_no_interval() -> None:
    assert (interval([3.0]).low, interval([3.0]).high, interval([3.0]).n) == (None, None, 1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    found = [interval(list(rng.normal(5, 2, 4))) for _ in range(2000)]
    inside = sum(f.low < 5 < f.high for f in found if f.low is not None and f.high is not None)
    assert 0.935 < inside / 2000 < 0.965


@given(st.floats(-10, 10), st.floats(-10, 10), st.lists(st.integers(0, 1000), min_size=2, max_size=9, unique=True))
def test_a_line_is_found_again(slope: float, intercept: float, x: list[int]) -> None:
    y = [intercept + slope * v for v in x]
    found = line([float(v) for v in x], y)
    assert found is not None
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.intercept == pytest.approx(intercept, abs=1e-3)
    assert found.r2 is None or found.r2 <= 1 + 1e-9


def test_no_line_through_one_place() -> None:
    assert line([1, 1, 1], [1, 2, 3]) is None
    assert line([], []) is None
    flat = line([0, 1], [2, 2])
    assert flat is not None and flat.r2 is None


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([100, 150, 200, 300, 400], [9, 6, 5.05, 5.0, 5.0], 200),
        ([100, 200, 300], [9, 7, 5], None),
        ([100, 200, 300], [5, 5, 5], 100),
        ([300, 100, 200], [5, 9, 5], 200),
        ([100], [1], None),
    ],
)
def test_plateau(x: list[float], y: list[float], expected: float | None) -> None:
    assert plateau(x, y) == expected


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=20))
def test_front_against_brute_force(points: list[tuple[int, int]]) -> None:
    chosen = front([(float(a), float(b)) for a, b in points])

    def beaten(p: tuple[int, int]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    assert {points[i] for i in chosen} == {p for p in points if not beaten(p)}
    assert [points[i][0] for i in chosen] == sorted(points[i][0] for i in chosen)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=12))
def test_covered_against_counting(spans: list[tuple[int, int]]) -> None:
    held = {t for a, b in spans for t in range(a, b)}
    assert covered_ns([a for a, _ in spans], [b for _, b in spans]) == len(held)


def test_front_of_nothing() -> None:
    assert front([]) == []
    assert math.isclose(interval([1.0, 3.0]).mean, 2.0)
