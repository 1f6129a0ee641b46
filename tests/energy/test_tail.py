"""Power that fades after work: how seconds of rest count, and that short requests are not charged for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy.attribute import attribute
from energy.tables import RequestTable, RunData, Series, request_table
from energy.tail import TAILS_S, faded, left_s, tried_s
from traces.records import SensorInfo

S = 1_000_000_000
IDLE_W, AFTER_W, BUSY_W = 100.0, 170.0, 300.0


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.01, 5.0)), min_size=1, max_size=6), st.sampled_from(TAILS_S)
)
@settings(deadline=None)
def test_tail_seconds_are_the_integral_of_what_is_left(spans: list[tuple[float, float]], tail_s: float) -> None:
    edges = np.cumsum(np.array(spans).ravel())
    start, end = np.concatenate([[0.0], edges[1:-1:2]]), edges[::2]
    t = np.linspace(-1.0, edges[-1] + 3.0, 4001)
    since = t - end[np.maximum(np.searchsorted(end, t, "right") - 1, 0)]
    working = np.any((t[:, None] >= start) & (t[:, None] < end), 1) | (t < end[0])
    rate = np.where(working, 0.0, np.exp(-np.maximum(since, 0) / tail_s))
    want = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(t))])
    found = faded(t, start, end, tail_s)
    assert np.all(np.diff(found) >= -1e-12) and np.all(np.diff(found) <= np.diff(t) + 1e-12)
    assert found == pytest.approx(want, abs=2 * len(end) * float(t[1] - t[0]))


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0, 5), st.sampled_from(TAILS_S))
def test_what_is_left_adds_up(since: float, a: float, b: float, tail_s: float) -> None:
    whole = left_s(since, a + b, tail_s)
    assert left_s(since, a, tail_s) + left_s(since + a, b, tail_s) == pytest.approx(whole, abs=1e-9)
    assert 0 <= whole <= a + b + 1e-12


def test_a_sensor_that_averages_shows_no_short_fading() -> None:
    assert tried_s(0.06) == TAILS_S
    (none,) = tried_s(0.5)
    assert left_s(0.1, 1.0, none) == 0
    assert not np.any(faded(np.linspace(0, 9, 10), np.array([1.0]), np.array([2.0]), none))


def _short(every_s: float, seconds: list[float]) -> RequestTable:
    rows = list[dict[str, Any]]()
    for k, took in enumerate(seconds):
        begin = round((5 + k * every_s) * S)
        step = round(took * S / 20)
        reads = [(begin + (i + 1) * step, 1) for i in range(20)]
        rows.append(
            {
                "id": f"r{k}", "sent_ns": begin, "first_ns": reads[0][0], "last_ns": reads[-1][0],
                "end_ns": reads[-1][0], "prompt": 100, "cached": 0, "completion": 20, "reads": reads,
                "prefill_ns": step, "queue_ns": 0,
            }
        )  # fmt: skip
    return request_table(rows)


@pytest.mark.parametrize("tail_s", [0.25, 0.4, 1.0, 1.6])
def test_a_short_request_is_not_charged_for_the_board_fading_after_it(tail_s: float) -> None:
    requests = _short(4.3, [0.2 + 0.1 * (k % 7) for k in range(40)])
    t = np.arange(0, (5 + 40 * 4.3 + 5) * S, S // 50, np.int64)
    at, start, end = t / S, requests.sent_ns / S, requests.end_ns / S
    busy = sum(np.clip(at - a, 0, b - a) for a, b in zip(start, end, strict=True))
    watts = (AFTER_W - IDLE_W) * faded(at, start, end, tail_s)
    uj = np.rint(1e6 * (IDLE_W * at + (BUSY_W - IDLE_W) * busy + watts)).astype(np.int64)
    info = SensorInfo("g.energy", "gpu", "gpu0", "counter", "uJ", 20_000_000, 1000)
    result = attribute(RunData(requests, None, {"g": Series(info, t, t + 1000, uj)}, []))
    found = result.figures[0].active.sum(1) / 1e6
    error = np.abs(found / (BUSY_W * (end - start)) - 1)
    assert np.median(error) < 0.02 and np.quantile(error, 0.9) < 0.05
    device = result.devices[0]
    assert abs(np.log(device.work.tail_s / tail_s)) <= np.log(2) / 2 + 0.35
    assert device.fit.joules[0] == pytest.approx(IDLE_W, rel=0.05)
