"""Order, cycles and critical paths against brute force and hand-drawn tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.graph import Span, critical_path, find_cycle, makespan_ns, topological
from traces.workflow import Dep, Node


def node(name: str, *on: str, anchor: str = "end") -> Node:
    return Node("w", name, 0, 1, 1, deps=tuple(Dep(o, anchor=anchor) for o in on))  # type: ignore[arg-type]


@st.composite
def dags(draw: st.DrawFn) -> list[Node]:
    size = draw(st.integers(1, 12))
    nodes = [
        node(f"n{i}", *draw(st.sets(st.sampled_from([f"n{k}" for k in range(i)])) if i else st.just([])))
        for i in range(size)
    ]
    return draw(st.permutations(nodes))


@given(dags())
def test_topological_puts_every_dependency_first(nodes: list[Node]) -> None:
    order = [n.request_id for n in topological(nodes)]
    assert sorted(order) == sorted(n.request_id for n in nodes)
    for n in nodes:
        assert all(order.index(d.on) < order.index(n.request_id) for d in n.deps)
    assert find_cycle(nodes) is None


@given(dags(), st.data())
def test_a_back_edge_makes_a_cycle_that_is_named(nodes: list[Node], data: st.DataObject) -> None:
    order = topological(nodes)
    first = data.draw(st.integers(0, len(order) - 1))
    last = data.draw(st.integers(first, len(order) - 1))
    chain = [
        node(
            order[i].request_id,
            *[d.on for d in order[i].deps],
            *([order[i - 1].request_id] if first < i <= last else []),
        )
        for i in range(len(order))
    ]
    chain[first] = node(chain[first].request_id, *[d.on for d in chain[first].deps], chain[last].request_id)
    cycle = find_cycle(chain)
    assert cycle is not None
    assert cycle[0] == cycle[-1]
    edges = {(d.on, n.request_id) for n in chain for d in n.deps}
    assert all(pair in edges for pair in itertools.pairwise(cycle))


@pytest.mark.parametrize(
    ("nodes", "spans", "path"),
    [
        ([node("a")], {"a": Span(0, 1, 3, 9)}, [("a", 0, 1, 8)]),
        (
            [node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c")],
            {"a": Span(0, 0, 1, 10), "b": Span(12, 12, 13, 20), "c": Span(10, 11, 12, 50), "d": Span(55, 56, 57, 60)},
            [("a", 0, 0, 10), ("c", 0, 1, 39), ("d", 5, 1, 4)],
        ),
        (
            [node("a"), node("b", "a", anchor="first_token")],
            {"a": Span(0, 0, 4, 5), "b": Span(4, 4, 6, 30)},
            [("a", 0, 0, 4), ("b", 0, 0, 26)],
        ),
    ],
)
def test_critical_path_tables(nodes: list[Node], spans: dict[str, Span], path: list[tuple[str, int, int, int]]) -> None:
    steps = critical_path(nodes, spans)
    assert [(s.request_id, s.wait_ns, s.late_ns, s.serve_ns) for s in steps] == path
    assert sum(s.wait_ns + s.late_ns + s.serve_ns for s in steps) == makespan_ns(spans)


def test_nothing_ran_has_no_path_and_no_makespan() -> None:
    assert critical_path([node("a")], {}) == []
    assert makespan_ns({}) is None
