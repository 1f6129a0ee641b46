"""Shares against causes: right ones agree, wrong ones do not, and what the data cannot tell is not called either."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from energy.align import Lag
from energy.causal import shares_check
from energy.curve import Curve
from energy.fit import Spans
from energy.predict import Basis
from energy.tables import Floats, Labels
from energy.warmth import warmth
from energy.windows import Windows
from energy.work import WorkCurve

IDLE_W, S = 100.0, 1_000_000_000
COST_J = np.array([10.0, 30.0])


def _world(noise_j: float, seed: int = 3, shared_j: float = 0.0) -> tuple[Basis, Labels, list[dict[str, float]]]:
    """30 phases of 4 s in one load band; each request takes 0.5 s one after another and costs what its type does; the
    first of a phase brings what the phase's requests share."""
    rng = np.random.default_rng(seed)
    kinds, sent, phases = [], [], []
    t, joules, now = [0.0], [0.0], 0.0
    for _ in range(30):
        phases.append({"phase": "mix", "rate": 2, "t_ns": round(now * S), "end_ns": round((now + 4) * S)})
        of = rng.integers(0, 2, rng.integers(3, 8))
        for k, kind in enumerate(of):
            kinds.append(int(kind))
            sent.append(now + 0.5 * k)
            t.append(now + 0.5 * (k + 1))
            joules.append(joules[-1] + COST_J[kind] + rng.normal(0, noise_j) + (shared_j if k == 0 else 0))
        now += 4
        t.append(now)
        joules.append(joules[-1] + IDLE_W * (4 - 0.5 * len(of)))
    n, start = len(sent), np.array(sent)
    one, end = np.ones(n), start + 0.5
    grid = np.union1d(np.array(t), start)
    busy: Floats = np.interp(
        grid, np.sort(np.concatenate([start, end + 1e-9])), np.repeat(np.arange(n), 2) * 0.5 + np.tile([0, 0.5], n)
    )
    t_ns, uj = (np.rint(np.array(v) * k).astype(np.int64) for v, k in ((t, S), (joules, 1e6)))
    curve = Curve(
        "gpu0", "gpu", "counter", t_ns, uj,
        np.zeros(len(t), np.int64), np.zeros(len(t) - 1, bool), 1, S // 2,
    )  # fmt: skip
    windows = Windows(
        0, np.arange(n), start, start, start + 0.1, end, one, 0 * one, one, one, 0 * one, 0 * one, one < 0
    )
    work = WorkCurve(grid, np.zeros((len(grid), 5)), busy, 0 * busy, np.zeros((len(grid), 2)), busy[1:])
    empty = np.zeros(0)
    spans = Spans(np.zeros((0, 8)), empty, np.zeros(0, np.int64), empty, empty, empty)
    return (
        Basis(curve, Lag(0.0, 0.0, True), work, windows, spans, warmth(curve, 0, 0.0)),
        Labels(np.array(kinds, np.int32), ["a", "b"]),
        phases,
    )


@pytest.mark.parametrize(
    ("given_j", "noise_j", "agrees"),
    [
        ((10.0, 30.0), 0.1, True),
        ((10.2, 29.5), 0.1, True),  # within 3 %
        ((20.0, 20.0), 0.1, False),  # equal shares: the sum is right, the shares are not
        ((30.0, 10.0), 0.1, False),  # swapped
        ((10.0, 30.0), 20.0, None),  # the energy does not say
        ((30.0, 10.0), 20.0, None),
    ],
)
def test_only_right_shares_agree(given_j: tuple[float, float], noise_j: float, agrees: bool | None) -> None:
    basis, classes, phases = _world(noise_j)
    active = np.rint(np.array(given_j)[classes.codes] * 1e6).astype(np.int64)
    (band,) = shares_check(basis, classes, active, phases, IDLE_W, IDLE_W)
    assert band["stretches"] == 30
    assert {name: row["agrees"] for name, row in band["types"].items()} == {"a": agrees, "b": agrees}


def test_where_energy_is_not_proportional_to_counts_nothing_is_decided() -> None:
    basis, classes, phases = _world(0.1, shared_j=60.0)
    active = np.rint(COST_J[classes.codes] * 1e6).astype(np.int64)
    (band,) = shares_check(basis, classes, active, phases, IDLE_W, IDLE_W)
    assert {row["agrees"] for row in band["types"].values()} == {None}
    assert all("not proportional" in row["why"] for row in band["types"].values())


def test_what_a_sensor_blurs_is_in_the_error() -> None:
    """Stretches whose ends are known within 0.2 s: a type's joules are not, however little they scatter."""
    basis, classes, phases = _world(0.1)
    active = np.rint(COST_J[classes.codes] * 1e6).astype(np.int64)
    (band,) = shares_check(replace(basis, lag=Lag(0.0, 0.2, False)), classes, active, phases, IDLE_W, IDLE_W)
    assert {row["agrees"] for row in band["types"].values()} == {None}
    assert all(row["why"] == "the regression is less certain than 3 %" for row in band["types"].values())
