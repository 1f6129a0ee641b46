"""Which engine call served which Parrot call: by name, else by session, length and time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from energy.calls import Seen, join_calls

MS = 1_000_000


def seen(name: str, session: str, begin_ms: float, end_ms: float, most: int | None = 50) -> Seen:
    return Seen(name, session, round(begin_ms * MS), round(end_ms * MS), most)


def test_names_win_over_times() -> None:
    calls = [seen("a", "0", 0, 100), seen("b", "0", 0, 101)]
    found, by_time = join_calls(calls, [seen("b", "0", 1, 99), seen("a", "0", 1, 90)])
    assert found == {"b": "b", "a": "a"} and by_time == 0


def test_without_names_the_nearest_end_of_the_session_and_length_is_it() -> None:
    calls = [
        seen("chain-0", "3", 0, 100), seen("chain-1", "3", 1, 200), seen("other", "4", 0, 100),
        seen("longer", "3", 0, 101, 60), seen("later", "3", 300, 500),
    ]  # fmt: skip
    tasks = [
        seen("t1", "3", 5, 97), seen("t2", "3", 105, 196), seen("t3", "4", 5, 96), seen("t4", "3", 5, 99, 60),
        seen("t5", "3", 310, 490), seen("stray", "9", 0, 1), seen("early", "3", 310, 600),
    ]  # fmt: skip
    found, by_time = join_calls(calls, tasks)
    assert found == {"t1": "chain-0", "t2": "chain-1", "t3": "other", "t4": "longer", "t5": "later"} and by_time == 5


def test_a_row_that_is_no_call_or_never_ran_is_left_out() -> None:
    row = {"request_id": "x", "api": "parrot", "response_id": "3/0/v", "t_arrival_ns": 1, "t_end_ns": 2}
    assert Seen.of(row) == Seen("x", "3", 1, 2, None)
    for change in ({"api": "completions"}, {"response_id": None}, {"response_id": "cmpl-1"}, {"t_end_ns": None}):
        assert Seen.of(row | change) is None


rows = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 50), st.sampled_from([None, 1, 2])), max_size=8
)


@given(rows, rows, st.sets(st.integers(0, 7)))
def test_nothing_is_given_twice_and_nothing_impossible_is_given(above: list, below: list, named: set[int]) -> None:  # type: ignore[type-arg]
    calls = [seen(f"c{i}", s, b, b + n, m) for i, (s, b, n, m) in enumerate(above)]
    tasks = [seen(f"c{i}" if i in named else f"t{i}", s, b, b + n, m) for i, (s, b, n, m) in enumerate(below)]
    found, by_time = join_calls(calls, tasks)
    assert len(set(found.values())) == len(found) and 0 <= by_time <= len(found)
    by_name = {c.request_id: c for c in calls}
    for task in tasks:
        on = found.get(task.request_id)
        if task.request_id in by_name:
            assert on == task.request_id
        elif on is not None:
            call = by_name[on]
            assert (call.session, call.max_tokens) == (task.session, task.max_tokens)
            assert task.begin_ns >= call.begin_ns - MS and task.end_ns <= call.end_ns + MS
