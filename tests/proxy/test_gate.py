"""The concurrency limit as a model: never more inside than allowed, first in first out, nobody lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.gate import Gate

steps = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("withdraw"), st.integers(0, 20)),
        st.tuples(st.just("limit"), st.integers(0, 4)),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 3), st.integers(0, 4))
def test_gate(script: list[tuple[str, int]], limit: int, max_queue: int) -> None:
    gate: Gate[int] = Gate(limit, max_queue)
    inside: list[int] = []
    waiting: list[int] = []
    bound: int | None = limit
    for number, (what, arg) in enumerate(script):
        before = list(waiting)
        if what == "enter":
            verdict = gate.enter(number)
            if verdict == "in":
                assert bound is None or (len(inside) < bound and not waiting)
                inside.append(number)
            elif verdict == "queued":
                waiting.append(number)
            else:
                assert len(waiting) >= max_queue
        elif what == "leave" and inside:
            inside.pop(arg % len(inside))
            let = list(gate.leave())
            inside += let
            waiting = waiting[len(let) :]
            assert let == before[: len(let)]
        elif what == "withdraw" and waiting:
            who = waiting.pop(arg % len(waiting))
            gate.withdraw(who)
        elif what == "limit":
            bound = arg or None
            let = list(gate.set_limit(bound))
            inside += let
            waiting = waiting[len(let) :]
            assert let == before[: len(let)]
        assert gate.inside == len(inside)
        assert gate.queued == len(waiting)
        if waiting:  # somebody waits only because nobody may go in
            assert bound is not None
            assert gate.inside >= bound
