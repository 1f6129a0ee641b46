"""The probe's judgement: synthetic sensors of known lag, window and duty; the recorded H100 must give its verdict."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy.probe import Duty, Ints, Series, Wave, duty, make_series, on_time, response, series, updates
from energy.probing import SQUARE, Recording, judge, plan
from traces.records import PowerSample, SensorInfo

MS = 1_000_000
S = 1_000_000_000
LOW, HIGH = 120.0, 680.0


def true_uj(bursts: Ints, at_ns: Any) -> Any:
    """Energy drawn until each instant by a card that draws HIGH while it works and LOW otherwise."""
    on = on_time(bursts, np.asarray(at_ns, float))
    return (LOW * np.asarray(at_ns, float) + (HIGH - LOW) * on) / 1000


def sensor(
    bursts: Ints, until_ns: int, *, kind: str, lag_ns: int = 0, window_ns: int = 0, period_ns: int = 100 * MS
) -> Series:
    """What a sensor of known habits shows when polled every 20 ms: it updates every period, late by lag."""
    polls = np.arange(0, until_ns, 20 * MS) + 3 * MS
    at = polls // period_ns * period_ns - lag_ns
    if kind == "counter":
        value = np.round(true_uj(bursts, np.maximum(at, 0)))
    else:
        width = max(window_ns, MS)
        value = np.round(
            (true_uj(bursts, np.maximum(at, 0)) - true_uj(bursts, np.maximum(at - width, 0))) / width * 1e6
        )
    return make_series(kind, kind == "counter", np.stack([polls, value.astype(np.int64)]))


@settings(max_examples=15, deadline=None)
@given(lag=st.integers(0, 300), kind=st.sampled_from(["counter", "gauge"]), window=st.sampled_from([25, 100, 1000]))
def test_lag_and_window_of_a_known_sensor_are_found(lag: int, kind: str, window: int) -> None:
    """Lag to a poll and a half; the window within a factor of two, where it is half an update period or longer."""
    bursts = np.array(plan(0, [SQUARE])[0], np.int64)
    shown = sensor(bursts, 15 * S, kind=kind, lag_ns=lag * MS, window_ns=window * MS)
    found = response(shown, bursts)
    assert found is not None
    assert -5 <= found.lag_ns / MS - lag <= 25, "an update is seen at most one poll late"
    if kind == "gauge":
        assert found.window_ns / MS <= 2 * window
        assert window < 50 or found.window_ns / MS >= window / 2, "22 edges cannot tell 10 ms from 25 ms"
    assert found.low_w == pytest.approx(LOW, abs=40)
    assert found.high_w == pytest.approx(HIGH, abs=40)


def test_a_sensor_that_never_moves_has_no_response() -> None:
    bursts = np.array(plan(0, [SQUARE])[0], np.int64)
    flat = make_series("flat", False, np.stack([np.arange(0, 10 * S, 20 * MS), np.full(500, 5)]))
    assert response(flat, bursts) is None
    assert updates(flat).period_ns is None


SHAPES = [(25 * MS, 101 * MS, 13 * S), (25 * MS, 100 * MS, 8 * S), (4 * S, 4 * S, 4 * S)]


@pytest.mark.parametrize(
    ("kind", "window_ms", "continuous"),
    [("counter", 0, True), ("gauge", 100, True), ("gauge", 25, False), ("gauge", 1000, True)],
)
def test_a_window_of_a_quarter_of_the_time_is_told_from_a_whole_one(
    kind: str, window_ms: int, continuous: bool
) -> None:
    bursts, waves = plan(0, SHAPES)
    edges = np.array(bursts, np.int64)
    until = waves[-1].t1_ns + 3 * S
    shown = {
        "ledger": sensor(edges, until, kind="counter"),
        "seen": sensor(edges, until, kind=kind, window_ns=window_ms * MS),
    }
    verdict = duty(shown, waves, "ledger")[1]
    assert verdict.continuous is continuous
    assert verdict.sentence()


def test_no_data_no_verdict() -> None:
    _, waves = plan(0, SHAPES)
    empty = Series("x", False, np.array([], np.int64), np.array([], np.int64))
    [verdict] = duty({"x": empty}, waves, None)
    assert verdict.continuous is None
    assert "no verdict" in verdict.sentence()


def counter_info(name: str, reading: Any) -> dict[str, Any]:
    return asdict(SensorInfo(name, "gpu", "gpu0", reading, "uJ" if reading == "counter" else "mW", 100 * MS, 1))


def recorded_duty(data: Path) -> Recording:
    """The recorded H100 duty waves as a probe's own recording."""
    folder = data / "power"
    about = json.loads((folder / "h100-duty.json").read_text())
    mono, wall = about["anchor"]
    rows = [counter_info("energy", "counter"), counter_info("instant", "gauge"), counter_info("ring", "gauge")]
    with gzip.open(folder / "h100-duty.csv.gz", "rt") as file:
        for t0, t1, energy_mj, instant, _ in list(csv.reader(file))[1:]:
            rows.append(asdict(PowerSample("energy", int(t0), int(t1), int(energy_mj) * 1000)))
            rows.append(asdict(PowerSample("instant", int(t1), int(t1), int(instant))))
    with gzip.open(folder / "h100-duty-ring20ms.csv.gz", "rt") as file:
        for wall_us, power in list(csv.reader(file))[1:]:
            at = int(wall_us) * 1000 - wall + mono
            rows.append(asdict(PowerSample("ring", at, at, int(power))))
    waves = [
        Wave(p["t0_ns"], p["t1_ns"], int(p["on_ms"] * MS), int(p["period_ms"] * MS), p["on_share"])
        for p in about["phases"]
    ]
    return Recording(rows, [], waves)


def test_the_recorded_h100_gives_the_known_verdict(data: Path) -> None:
    """Counter and ring continuous; the instantaneous power far too low when the work is locked to its window."""
    judged = judge(recorded_duty(data))
    verdicts: dict[str, Duty] = {name: one.duty for name, one in judged.items() if one.duty is not None}
    assert {name: d.continuous for name, d in verdicts.items()} == {"energy": True, "ring": True, "instant": False}
    assert verdicts["instant"].locked is not None
    assert 0.5 <= verdicts["instant"].locked <= 0.6, "44 % low, as the recording's own note says"
    assert verdicts["ring"].locked == pytest.approx(1, abs=0.03)
    assert judged["energy"].updates.period_ns == pytest.approx(100 * MS, rel=0.02)
    assert judged["ring"].updates.period_ns == pytest.approx(20 * MS, rel=0.02)


def test_the_recorded_h100_square_wave_tells_the_one_second_average(data: Path) -> None:
    lines = (data / "power" / "h100-square-wave.csv").read_text().splitlines()
    table = np.array(list(csv.reader(lines))[1:], np.int64)
    phases = json.loads((data / "power" / "h100-square-wave.phases.json").read_text())
    edges = np.array([(s, e) for kind, s, e in phases if kind == "gemm" and 450 * MS < e - s < 560 * MS], np.int64)
    middle, after = table[:, 0] + table[:, 1] // 2, table[:, 0] + table[:, 1]
    pick: Callable[[Series], Series] = lambda s: s.between(int(edges[0, 0]) - S, int(edges[-1, 1]) + S)  # noqa: E731
    counter = response(pick(make_series("energy", True, np.stack([middle, table[:, 2] * 1000]))), edges)
    average = response(pick(make_series("average", False, np.stack([after, table[:, 4]]))), edges)
    assert counter is not None
    assert average is not None
    assert counter.window_ns == 0
    assert abs(counter.lag_ns) <= 30 * MS
    assert counter.high_w - counter.low_w > 550
    assert average.window_ns == 1000 * MS


@given(
    steps=st.lists(st.integers(0, 10_000), min_size=3, max_size=50),
    start=st.integers(0, 99_999),
)
def test_series_unwrap_counters(steps: list[int], start: int) -> None:
    total = np.cumsum([start, *steps])
    rows: list[dict[str, Any]] = [asdict(SensorInfo("a", "cpu", "p", "counter", "uJ", None, None, 100_000))]
    rows += [asdict(PowerSample("a", i, i, int(v) % 100_000)) for i, v in enumerate(total)]
    shown = series(rows)["a"]
    assert (np.diff(shown.value) == steps).all()


def test_failed_reads_are_left_out() -> None:
    rows = [counter_info("a", "gauge"), asdict(PowerSample("a", 1, 1, None, "no")), asdict(PowerSample("a", 2, 2, 7))]
    assert series(rows)["a"].value.tolist() == [7]
