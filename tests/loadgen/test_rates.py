"""Changing rates: counts follow the integral of the rate, shapes of gaps survive, bad profiles are refused."""

from __future__ import annotations

from itertools import islice, repeat
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import Arrivals, offsets
from loadgen.rates import Piece, profile, rescaled, series
from traces.errors import UserError

S = 1_000_000_000
rates = st.floats(0, 50)
pieces = st.lists(st.builds(Piece, st.floats(0.1, 20), rates, rates), min_size=1, max_size=6)


@given(pieces)
def test_the_nth_arrival_comes_when_the_integral_reaches_n(chosen: list[Piece]) -> None:
    got = list(rescaled(repeat(1.0), chosen))
    total = sum(p.duration_s * (p.start + p.end) / 2 for p in chosen)
    assert abs(len(got) - int(total)) <= 1 and got == sorted(got)
    for n, at in enumerate(got[:200], 1):
        assert _integral(chosen, at / S) == pytest.approx(n, abs=1e-4)


def _integral(chosen: list[Piece], t: float) -> float:
    area = 0.0
    for piece in chosen:
        used = min(t, piece.duration_s)
        area += piece.start * used + (piece.end - piece.start) * used**2 / (2 * piece.duration_s)
        t -= used
    return area


def test_ramp_then_hold() -> None:
    got = list(islice(offsets(Arrivals("constant", rate_profile="ramp:0:10:10")), 150))
    assert sum(t <= 10 * S for t in got) == 50
    assert sum(10 * S < t <= 20 * S for t in got) == 100


def test_bursts_alternate() -> None:
    got = list(islice(offsets(Arrivals("constant", rate_profile="burst:1:100:9:1")), 218))
    assert [sum(a * S < t <= b * S for t in got) for a, b in ((0, 9), (9, 10), (10, 19), (19, 20))] == [9, 100, 9, 100]


def test_mmpp_has_its_mean_rate_and_is_seeded_and_overdispersed() -> None:
    wanted = Arrivals("poisson", rate_profile="mmpp:2x10,38x10", seed=5)
    got = list(islice(offsets(wanted), 40_000))
    assert len(got) / (got[-1] / S) == pytest.approx(20, rel=0.1)
    assert got == list(islice(offsets(wanted), 40_000))
    counts = [0] * (got[-1] // S + 1)
    for t in got:
        counts[t // S] += 1
    mean = sum(counts) / len(counts)
    assert sum((c - mean) ** 2 for c in counts) / len(counts) / mean > 5  # Poisson: 1


def test_a_series_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("seconds,rate\n0,2\n10,0\n20,5\n")
    assert series(path) == [Piece(10, 2, 2), Piece(10, 0, 0), Piece(10, 5, 5)]
    got = list(offsets(Arrivals("constant", rate_profile=f"series:{path}")))
    assert len(got) == 70 and not any(10 * S < t <= 20 * S for t in got)


@pytest.mark.parametrize("text", ["0,1\n", "0,1\n0,2\n", "0,1\nx,2\n", "0,1\n5\n", "0,-1\n2,2\n"])
def test_a_bad_series_is_named_by_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"rates\.csv"):
        series(path)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "ramp:1:2",
        "ramp:a:2:3",
        "ramp:-1:2:3",
        "burst:1:2:0:0",
        "burst:0:2:5:0",
        "mmpp:1x2",
        "mmpp:0x1,0x1",
        "series:/no",
    ],
)
def test_bad_profiles_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        profile(text, 0)


def test_a_hold_is_endless() -> None:
    assert list(profile("ramp:1:2:3", 0))[-1] == Piece(inf, 2, 2)
