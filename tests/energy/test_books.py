"""The books close to the microjoule, whatever the schedule, the policy or the sensor did."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy.attribute import attribute
from energy.ledger import largest_remainder
from energy.policies import POLICIES
from energy.tables import RunData, Series, request_table
from traces.records import SensorInfo

S = 1_000_000_000
COUNTER = SensorInfo("g.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000)


def _requests(draw: Any) -> list[dict[str, Any]]:
    rows = []
    for i in range(draw(st.integers(0, 12))):
        sent = draw(st.integers(0, 20 * S))
        queue, prefill, decode = (draw(st.integers(1, 3 * S)) for _ in range(3))
        tokens = draw(st.integers(0, 40))
        first = sent + queue + prefill
        last = first + decode
        row: dict[str, Any] = {
            "id": f"r{i}",
            "outcome": draw(st.sampled_from(["ok", "client_left", "rejected", "error"])),
            "sent_ns": draw(st.sampled_from([sent, sent, sent, None])),
            "first_ns": draw(st.sampled_from([first, first, None])),
            "last_ns": draw(st.sampled_from([last, None])),
            "end_ns": last + draw(st.integers(0, S)),
            "prompt": draw(st.sampled_from([None, 1, 100, 9000])),
            "cached": draw(st.sampled_from([None, 0, 64, 10_000])),
            "completion": draw(st.sampled_from([None, tokens])),
            "drafted": draw(st.sampled_from([None, 0, 160])),
            "accepted": draw(st.sampled_from([None, 0, 30, 10_000])),
        }
        times = sorted(draw(st.integers(first, last)) for _ in range(draw(st.integers(0, tokens))))
        rows.append(row | {"reads": [(t, 1) for t in times]})
    return rows


@st.composite
def runs(draw: Any) -> RunData:
    """Any requests beside any counter: stalls, wraps, resets, gaps in the polling."""
    period = draw(st.sampled_from([20_000_000, 100_000_000, 1_700_000_000]))
    count = draw(st.integers(2, 400))
    t = np.cumsum(
        draw(st.sampled_from([np.full(count, period), np.full(count, period) * np.r_[np.ones(count - 1), 50]]))
    )
    steps = np.array(draw(st.lists(st.integers(0, 80_000_000), min_size=8, max_size=8)), np.int64)
    value = np.cumsum(np.resize(steps, count)) + draw(st.integers(0, 1 << 40))
    wraps = draw(st.sampled_from([None, 262_143_328_850]))
    if wraps:
        value %= wraps
    if draw(st.booleans()):
        value[count // 2 :] -= value[count // 2]
    t = t.astype(np.int64)
    info = SensorInfo("g.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000, wraps_at=wraps)
    return RunData(request_table(_requests(draw)), None, {"g.energy": Series(info, t, t + 1000, value)}, [])


@given(runs(), st.sampled_from(sorted(POLICIES)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_closure_any_schedule_any_policy(run: RunData, policy: str) -> None:
    result = attribute(run, policy=policy)
    for device in result.devices:
        book = device.ledger
        parts = book.attributed + book.idle + book.tail + book.foreign + book.unmeasured
        assert np.array_equal(parts, book.delta)
        assert all(np.all(getattr(book, k) >= 0) for k in ("active", "own", "attributed", "idle", "tail", "unmeasured"))
        assert np.all(book.own <= book.active)
        assert int(book.active.sum()) == int(book.attributed.sum())
        assert int(book.delta.sum()) == device.curve.total_uj
    if result.devices:
        assert result.totals["closure_uj"] == 0
        figures = result.figures[0]
        assert int(figures.active.sum()) == result.totals["attributed_uj"]
        if result.totals["attributed_uj"]:
            spare = result.totals["idle_uj"] + result.totals["tail_uj"]
            assert int(figures.full.sum()) == result.totals["attributed_uj"] + spare


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 3)), min_size=4, max_size=60),
    st.lists(st.integers(0, 10**15), min_size=4, max_size=4),
)
def test_largest_remainder(entries: list[tuple[float, int]], target: list[int]) -> None:
    """Exact per group, never negative, and within one unit of the share where floats are exact enough to say so."""
    weight = np.array([w for w, _ in entries])
    group = np.array([g for _, g in entries])
    total = np.bincount(group, weight, 4)
    goal = np.where(total > 0, np.array(target, np.int64), 0)
    parts = largest_remainder(weight, group, goal)
    assert np.array_equal(np.bincount(group, minlength=4) * 0 + [parts[group == g].sum() for g in range(4)], goal)
    assert np.all(parts >= 0)
    exact = weight / np.where(total > 0, total, 1)[group] * goal[group]
    assert np.all(np.abs(parts - exact) <= 1 + 1e-9 * exact)


def test_waiting_draws_nothing() -> None:
    """A request that was queued and then cancelled, or refused, gets no joule."""
    t = np.arange(0, 20 * S, 100_000_000, dtype=np.int64)
    value = np.cumsum(np.where((t > 5 * S) & (t < 15 * S), 40_000_000, 12_000_000)).astype(np.int64)
    rows = [
        {
            "id": "a",
            "sent_ns": 5 * S,
            "first_ns": 6 * S,
            "last_ns": 15 * S,
            "end_ns": 15 * S,
            "prompt": 100,
            "completion": 50,
        },
        {"id": "b", "sent_ns": 6 * S, "end_ns": 7 * S, "prompt": 100, "outcome": "rejected"},
        {"id": "c", "sent_ns": None, "end_ns": 7 * S, "outcome": "skipped"},
    ]
    result = attribute(RunData(request_table(rows), None, {"x": Series(COUNTER, t, t, value)}, []))
    active = result.figures[0].active.sum(1)
    assert active[0] > 0
    assert active[1] == active[2] == 0
