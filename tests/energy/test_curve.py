"""Energy between two instants: exact at edges, bounded between, honest across wraps, resets and gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.curve import Curve, borders, curve_of, unwrap
from energy.tables import Series
from traces.records import SensorInfo

MS = 1_000_000
S = 1000 * MS


def _counter(
    poll_ms: int = 20, update_ms: int = 100, watts: float = 500.0, seconds: int = 10, wraps: int | None = None
) -> Curve:
    t = np.arange(0, seconds * S, poll_ms * MS, dtype=np.int64)
    value = (t // (update_ms * MS) * update_ms * watts * 1000).astype(np.int64)
    if wraps:
        value %= wraps
    info = SensorInfo("c", "gpu", "gpu0", "counter", "uJ", update_ms * MS, 1000, wraps_at=wraps)
    made = curve_of(Series(info, t, t + MS, value))
    assert isinstance(made, Curve)
    return made


@pytest.mark.parametrize("wraps", [None, 1_000_000_000])
@pytest.mark.parametrize(("poll", "update"), [(20, 100), (100, 100), (20, 1)])
def test_constant_power_between_any_instants(poll: int, update: int, wraps: int | None) -> None:
    curve = _counter(poll, update, wraps=wraps)
    for t0, t1 in ((1 * S, 2 * S), (1_234 * MS, 5_678 * MS), (3 * S, 3_100 * MS)):
        window = curve.between(t0, t1)
        truth = 500.0 * (t1 - t0) / 1000
        assert window.covered == pytest.approx(1)
        assert abs(window.uj - truth) <= window.error_uj + 2000
        assert window.error_uj < 500_000 * 2 * (max(poll, update) * 2 + 5)


def test_edges_are_bracketed_between_reads() -> None:
    curve = _counter(20, 100)
    inner = curve.t_ns[1:-1]
    assert np.all(np.abs(inner - np.round(inner / (100 * MS)) * 100 * MS) <= 20 * MS)
    assert curve.period_ns == pytest.approx(100 * MS, abs=20 * MS)


def test_outside_the_measured_span_is_not_covered() -> None:
    curve = _counter(seconds=2)
    assert curve.between(5 * S, 6 * S).covered == 0
    assert 0.3 < curve.between(1 * S, 3 * S).covered < 0.6


def test_reset_is_not_energy_and_not_covered() -> None:
    t = np.arange(0, 4 * S, 100 * MS, dtype=np.int64)
    value = np.arange(len(t), dtype=np.int64) * 50_000_000
    value[20:] -= value[20]
    info = SensorInfo("c", "gpu", "gpu0", "counter", "uJ", 100 * MS, 1)
    curve = curve_of(Series(info, t, t, value))
    assert isinstance(curve, Curve)
    assert curve.resets == 1
    assert curve.total_uj == (len(t) - 2) * 50_000_000
    assert curve.between(1 * S, 3 * S).covered == pytest.approx(0.95)


@given(st.lists(st.integers(0, 10_000_000), min_size=2, max_size=200), st.integers(20_000_000, 300_000_000))
def test_unwrap_any_start(steps: list[int], wraps_at: int) -> None:
    total = np.cumsum([wraps_at // 2, *steps]).astype(np.int64)
    t = np.arange(len(total), dtype=np.int64) * S
    cumulative, broken = unwrap(total % wraps_at, t, wraps_at)
    assert not broken.any()
    assert np.array_equal(cumulative, total - total[0])


def test_no_curve_says_why() -> None:
    info = SensorInfo("c", "gpu", "gpu0", "counter", "uJ", 100 * MS, 1)
    t = np.arange(5, dtype=np.int64) * S
    assert curve_of(Series(info, t, t, np.full(5, 7, np.int64))) == "c: the counter never moved"
    assert curve_of(Series(info, t[:1], t[:1], t[:1])) == "c: fewer than two readings"


def test_equal_gauge_samples_count() -> None:
    """A constant reading is a measurement: 5 s at 60 W is 300 J."""
    info = SensorInfo("p", "gpu", "gpu0", "gauge", "mW", 20 * MS, 1)
    t = np.arange(0, 5 * S + 1, 20 * MS, dtype=np.int64)
    curve = curve_of(Series(info, t, t, np.full(len(t), 60_000, np.int64)))
    assert isinstance(curve, Curve)
    assert curve.total_uj == 300_000_000
    assert curve.integrated


@given(st.integers(1, 400), st.integers(5, 300))
def test_borders_partition_the_nodes(count: int, period_ms: int) -> None:
    t = np.arange(count + 1, dtype=np.int64) * period_ms * MS
    curve = Curve("g", "gpu", "s", t, t, t * 0, np.zeros(count, bool), 1, period_ms * MS)
    cut = borders(curve, S)
    assert cut[0] == 0
    assert cut[-1] == count
    assert np.all(np.diff(cut) > 0)


def test_a_read_between_two_updates_is_no_node() -> None:
    """A sampler that reads just after each update and looks in between once a second: power stays what it was."""
    each = np.arange(5 * MS, 10 * S, 100 * MS, dtype=np.int64)
    between = np.arange(1 * S - 26 * MS, 10 * S, 1 * S, dtype=np.int64)
    t = np.sort(np.concatenate([each, between]))
    value = (t // (100 * MS) * 50_000_000).astype(np.int64)
    made = curve_of(Series(SensorInfo("c", "gpu", "gpu0", "counter", "uJ", 100 * MS, 1000), t, t + MS, value))
    assert isinstance(made, Curve)
    watts = np.diff(made.uj) / np.diff(made.t_ns) * 1000
    assert np.all(np.abs(watts - 500) < 1)
