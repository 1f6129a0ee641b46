"""A board that draws more when it is warm, and what it draws then is learned from its idle spans alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.align import Lag
from energy.curve import Curve
from energy.predict import Basis, predict
from energy.tables import Floats
from energy.warmth import FEWEST, MOST, PACES_S, cooled, leak_of, warmed_j, warmth
from energy.windows import Windows
from energy.work import WorkCurve

S = 1_000_000_000
IDLE_W, BUSY_W = 120.0, 480.0
LEAK = np.array([0.01, 0.04])
STEP_S = 0.05


def _lit(seconds: int) -> np.ndarray:
    """Work for 4 s of 6 at first, then for 9 of 10."""
    t = np.arange(0, seconds, STEP_S)
    return np.where(t < 60, t % 6 >= 2, t % 10 >= 1) & (t < seconds - 2)


def _board(lit: np.ndarray, leak: np.ndarray) -> Floats:
    """Watts in each step: what is on costs BUSY_W, smoothed power above that of the beginning its leak."""
    state, out = np.zeros(len(PACES_S)), []
    for on in lit:
        power = (BUSY_W if on else IDLE_W) + float(state @ leak)
        out.append(power)
        state = state - np.expm1(-STEP_S / np.array(PACES_S)) * (power - IDLE_W - state)
    return np.array(out)


def _basis(seconds: int = 160, leak: np.ndarray = LEAK) -> tuple[Basis, np.ndarray]:
    lit = _lit(seconds)
    joules = np.concatenate([[0.0], np.cumsum(_board(lit, leak) * STEP_S)])
    grid = np.arange(len(joules)) * STEP_S
    t_ns, uj = np.rint(grid * S).astype(np.int64), np.rint(joules * 1e6).astype(np.int64)
    curve = Curve("gpu0", "gpu", "counter", t_ns, uj, 0 * t_ns, np.zeros(len(lit), bool), 1, S // 20)
    busy = np.concatenate([[0.0], np.cumsum(lit * STEP_S)])
    work = WorkCurve(grid, np.zeros((len(grid), 5)), busy, 0 * busy, np.zeros((len(grid), 2)), busy[1:])
    turns = np.diff(np.concatenate([[0], lit.astype(int), [0]]))
    start, end = grid[np.flatnonzero(turns == 1)], grid[np.flatnonzero(turns == -1)]
    one = np.ones(len(start))
    windows = Windows(
        0, np.arange(len(start)), start, start, start + 0.1, end, one, 0 * one, one, one, 0 * one, 0 * one, one < 0
    )
    return Basis.of(curve, Lag(0.0, 0.0, True), work, windows), joules


PHASE = [{"phase": "mix", "run": 0, "t_ns": 120 * S, "end_ns": 158 * S}]


def test_later_phases_are_predicted_with_the_warmth_they_meet() -> None:
    basis, joules = _basis()
    leak = leak_of(basis.warmth, basis.spans, sure=True)
    assert leak.sum() == pytest.approx(LEAK.sum(), rel=0.15)
    row = predict(basis, PHASE)[0]
    measured = joules[round(158 / STEP_S)] - joules[round(120 / STEP_S)]
    assert row["measured_uj"] == pytest.approx(1e6 * measured, rel=1e-4)
    assert row["predicted_uj"] == pytest.approx(row["measured_uj"], rel=0.004)
    cold = replace(basis, warmth=replace(basis.warmth, above=0 * basis.warmth.above))
    assert predict(cold, PHASE)[0]["predicted_uj"] < 0.99 * row["measured_uj"]


def test_a_board_that_does_not_leak_is_said_not_to() -> None:
    basis, _ = _basis(leak=np.zeros(2))
    assert leak_of(basis.warmth, basis.spans, sure=True) == pytest.approx([0, 0], abs=1e-4)


def test_shares_want_more_than_chance() -> None:
    """Idle power that only scatters: what least squares finds in it is not used for shares."""
    basis, _ = _basis(leak=np.zeros(2))
    noise = np.random.default_rng(5).normal(0, 2, len(basis.spans))
    scattered = replace(basis.spans, joules=basis.spans.joules + noise)
    assert leak_of(basis.warmth, scattered, sure=False).any()
    assert not leak_of(basis.warmth, scattered, sure=True).any()


def test_what_grows_too_much_is_not_warmth() -> None:
    """Idle power that follows the load before as no board's does: something else decays there."""
    basis, _ = _basis(leak=np.array([0.0, 0.3]))
    assert not leak_of(basis.warmth, basis.spans, sure=False).any()


def test_nothing_is_said_from_few_idle_spans() -> None:
    basis, _ = _basis()
    idle = np.flatnonzero(basis.spans.summed(np.ones(len(basis.spans.cell_s)))[:, 2] < 1e-9)
    few = np.isin(np.arange(len(basis.spans)), idle[: FEWEST - 1])
    assert not leak_of(basis.warmth, basis.spans.where(few), sure=False).any()


@given(st.integers(20, 140))
def test_warmth_is_of_the_power_before(cut: int) -> None:
    """What a board draws after an instant changes nothing at it."""
    basis, _ = _basis()
    uj = basis.curve.uj.copy()
    after = basis.curve.t_ns > cut * S
    uj[after] += 50_000_000 * np.arange(1, np.count_nonzero(after) + 1)
    t = np.arange(1.0, cut - 0.5, 0.5)
    other = warmth(replace(basis.curve, uj=uj), 0, 0.0)
    assert np.allclose(other.at(t), basis.warmth.at(t), atol=1e-9)


def test_a_reading_years_away_does_not_fill_the_memory() -> None:
    basis, _ = _basis()
    t_ns = basis.curve.t_ns.copy()
    t_ns[-1] += 10**18
    found = warmth(replace(basis.curve, t_ns=t_ns), 0, 0.0)
    assert len(found.t) <= MOST + 1 and len(found.above) == len(found.t)


def test_what_is_taken_out_before_the_fit_is_put_back_after() -> None:
    basis, joules = _basis()
    rest = cooled(basis.spans, basis.warmth, LEAK)
    assert rest.joules.sum() < basis.spans.joules.sum()
    t = np.arange(120, 158 + STEP_S / 2, STEP_S)
    bare = np.where(_lit(160)[round(120 / STEP_S) : round(158 / STEP_S)], BUSY_W, IDLE_W) * STEP_S
    whole = float(bare.sum()) + warmed_j(basis.warmth, LEAK, t, bare)
    assert whole == pytest.approx(joules[round(158 / STEP_S)] - joules[round(120 / STEP_S)], rel=0.002)
    assert warmed_j(basis.warmth, np.zeros(2), t, bare) == 0.0
