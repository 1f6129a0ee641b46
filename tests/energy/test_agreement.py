"""Sensors of one device set against the one that is used: by how much, over which seconds, and when not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.agreement import agreement
from energy.curve import Curve

S = 1_000_000_000


def _curve(source: str, watts: list[float], begin_s: int = 0, **more: Any) -> Curve:
    t = (begin_s + np.arange(len(watts) + 1, dtype=np.int64)) * S
    uj = np.concatenate([[0], np.rint(np.cumsum(watts) * 1e6)]).astype(np.int64)
    known = np.zeros(len(watts), bool)
    return Curve("gpu0", "gpu", source, t, uj, 0 * t, known, 1, S, **more)


COUNTER = _curve("counter", [100, 300, 100, 300])


@pytest.mark.parametrize(
    ("other", "seconds", "percent", "window_percent"),
    [
        (_curve("ring", [100, 300, 100, 300]), 4, 0, 0),
        (_curve("instant", [50, 150, 50, 150]), 4, -50, 50),
        (_curve("average", [200, 200, 200, 200]), 4, 0, (100 + 100 / 3) / 2),
        (_curve("late", [150, 300], begin_s=2), 2, 12.5, 25),
        (_curve("never together", [100], begin_s=9), None, None, None),
        (_curve("counter", [1, 1, 1, 1]), None, None, None),
        (_curve("tdp", [1, 1, 1, 1], estimated=True), None, None, None),
        (replace(_curve("elsewhere", [1, 1, 1, 1]), device="gpu1"), None, None, None),
    ],
)
def test_agreement(other: Curve, seconds: int | None, percent: float | None, window_percent: float | None) -> None:
    found = agreement([COUNTER], [COUNTER, other])
    if seconds is None:
        assert found == []
        return
    [row] = found
    assert (row["source"], row["against"], row["seconds"]) == (other.source, "counter", seconds)
    assert row["percent"] == pytest.approx(percent)
    assert row["window_percent"] == pytest.approx(window_percent)


def test_seconds_whose_energy_is_unknown_are_left_out() -> None:
    broken = np.array([False, True, False, False])
    [row] = agreement([replace(COUNTER, broken=broken)], [_curve("ring", [100, 9000, 100, 300])])
    assert (row["seconds"], row["percent"]) == (3, 0)


def _without(curve: Curve, begin_s: float, end_s: float) -> Curve:
    """The curve as it is where nothing was read from begin to end: a straight line over it."""
    keep = (curve.t_ns <= begin_s * S) | (curve.t_ns >= end_s * S)
    t, uj = curve.t_ns[keep], curve.uj[keep]
    if curve.integrated:  # the trapezoid between the readings on both sides
        watts = np.diff(curve.uj) / np.diff(curve.t_ns)
        k = int(np.flatnonzero(np.diff(keep.astype(int)) == -1)[0])
        made = (watts[k] + watts[np.flatnonzero(keep)[k + 1] - 1]) / 2 * (t[k + 1] - t[k])
        uj = np.concatenate([uj[: k + 1], uj[k + 1 :] - uj[k + 1] + uj[k] + round(made)])
    return replace(curve, t_ns=t, uj=uj, broken=np.zeros(len(t) - 1, bool), bracket_ns=0 * t)


def _fine(source: str, watts: list[float], **more: Any) -> Curve:
    """Ten nodes a second."""
    t = np.arange(10 * len(watts) + 1, dtype=np.int64) * (S // 10)
    uj = np.concatenate([[0], np.cumsum(np.repeat(watts, 10) * 1e5)]).astype(np.int64)
    return Curve("gpu0", "gpu", source, t, uj, 0 * t, np.zeros(len(t) - 1, bool), 1, S // 10, **more)


@pytest.mark.parametrize("integrated", [True, False])
def test_no_straight_line_across_a_gap_is_compared(integrated: bool) -> None:
    """Work comes and goes while the sensor is not read: the line over the gap says nothing of it."""
    watts = [100.0, 100, 600, 100, 100, 100, 100, 100, 100, 100]
    used, other = _fine("counter", watts), _fine("ring", watts, integrated=integrated)
    [whole] = agreement([used], [other])
    assert (whole["seconds"], whole["percent"]) == (10, 0)
    [row] = agreement([used], [_without(other, 1.5, 4.2)])
    assert (row["seconds"], row["percent"], row["window_percent"]) == (6, 0, 0), "seconds 1 to 4 are left out"
    [row] = agreement([_without(used, 1.5, 4.2)], [other])
    assert row["seconds"] == 6


@given(st.lists(st.integers(1, 900), min_size=1, max_size=20), st.floats(0.1, 3))
def test_a_gain_is_found_whatever_the_load(watts: list[int], gain: float) -> None:
    used = _curve("counter", [float(w) for w in watts])
    [row] = agreement([used], [_curve("gauge", [w * gain for w in watts])])
    assert row["percent"] == pytest.approx(100 * (gain - 1), abs=1e-3)
    assert row["window_percent"] == pytest.approx(abs(row["percent"]), abs=1e-3)
