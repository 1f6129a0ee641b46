"""The order of a sweep: everything once, pairs mirrored, engines restarted as seldom as can be."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from joulegraph.sweep.config import Point
from joulegraph.sweep.plan import clock, eta_s, launch_key, order, starts

points = st.lists(
    st.builds(
        Point,
        engine=st.sampled_from(["vllm", "embedded:h100-llama8b", "attach:http://127.0.0.1:1"]),
        model=st.just("m"),
        workload=st.just("chat"),
        max_num_seqs=st.none() | st.integers(1, 4),
        proxy_limit=st.none() | st.integers(1, 3),
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(points, st.integers(1, 7), st.integers(0, 99))
def test_every_point_once_per_repeat(points: list[Point], repeats: int, seed: int) -> None:
    slots = order(points, repeats, seed)
    assert Counter((s.point, s.repeat) for s in slots) == Counter((p, r) for p in points for r in range(repeats))
    assert [s.repeat for s in slots] == sorted(s.repeat for s in slots)
    assert slots == order(points, repeats, seed)


@given(points, st.integers(1, 3), st.integers(0, 99))
def test_a_linear_drift_cancels_in_every_pair(points: list[Point], pairs: int, seed: int) -> None:
    slots = order(points, 2 * pairs, seed)
    n = len(points)
    for pair in range(pairs):
        block = slots[2 * n * pair : 2 * n * (pair + 1)]
        places = {p: sum(i for i, s in enumerate(block) if s.point == p) for p in points}
        assert set(places.values()) == {2 * n - 1}


@given(points, st.integers(1, 5), st.integers(0, 99))
def test_equal_launch_settings_stand_together(points: list[Point], repeats: int, seed: int) -> None:
    slots = order(points, repeats, seed)
    groups = len({launch_key(p) for p in points})
    for repeat in range(repeats):
        keys = [launch_key(s.point) for s in slots if s.repeat == repeat]
        assert sum(1 for _ in groupby(keys)) == groups
    turns = repeats // 2  # a mirrored repeat begins with the engine that is running
    assert groups <= starts(slots) <= repeats * groups - turns


@given(points)
def test_keys_tell_points_apart(points: list[Point]) -> None:
    assert len({p.key() for p in points}) == len(points)


def test_run_time_knobs_need_no_restart() -> None:
    base = {"engine": "vllm", "model": "m", "workload": "chat"}
    same = [Point(**base, power_cap_w=200), Point(**base, proxy_limit=3), Point(**base, users=4)]  # type: ignore[arg-type]
    assert len({launch_key(p) for p in same}) == 1
    assert launch_key(Point(**base, max_num_seqs=2)) != launch_key(same[0])  # type: ignore[arg-type]


def test_eta_and_clock() -> None:
    assert eta_s(0.4, 0, 5) is None
    assert eta_s(30.0, 10, 4) == 12.0
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
