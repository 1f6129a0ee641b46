"""The graph walk against an oracle that computes every due instant directly from the timing rule."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.walk import Walk
from traces.workflow import ANCHORS, Dep, Node, Workflow

T0 = 5_000


@dataclass(frozen=True)
class Fate:
    """What happens to a node once due: sent after `late`, first token, end (or failure at that instant)."""

    late: int
    first: int | None
    end: int
    fails: bool


def node(name: str, deps: tuple[Dep, ...] = (), *, arrival: int = 0, delay: int = 0) -> Node:
    return Node("w", name, arrival, 10, 10, deps=deps, delay_ns=delay)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workflow, dict[str, Fate]]:
    count = draw(st.integers(1, 12))
    nodes: list[Node] = []
    fates: dict[str, Fate] = {}
    for i in range(count):
        chosen = draw(st.lists(st.integers(0, i - 1), max_size=4)) if i else []
        deps = tuple(
            Dep(f"n{j}", anchor=draw(st.sampled_from(ANCHORS)), blocking=draw(st.integers(0, 4)) > 0) for j in chosen
        )
        if draw(st.integers(0, 9)) == 0:
            deps += (Dep("elsewhere"),)
        nodes.append(node(f"n{i}", deps, arrival=draw(st.integers(0, 100)), delay=draw(st.integers(0, 50))))
        first = draw(st.none() | st.integers(0, 40))
        fates[f"n{i}"] = Fate(
            draw(st.integers(0, 3)), first, (first or 0) + draw(st.integers(0, 60)), draw(st.integers(0, 7)) == 0
        )
    return Workflow("w", tuple(draw(st.permutations(nodes)))), fates


def oracle(workflow: Workflow, fates: dict[str, Fate]) -> dict[str, int | None]:
    """Due instant of each node, None for one that must be skipped; straight from the rule, by recursion."""
    by_id = {n.request_id: n for n in workflow.nodes}
    due: dict[str, int | None] = {}

    def anchor(dep: Dep) -> int | None:
        at, fate = find(dep.on), fates[dep.on]
        if at is None:
            return None
        sent = at + fate.late
        if dep.anchor == "start":
            return sent
        if dep.anchor == "first_token" and fate.first is not None:
            return sent + fate.first
        return None if fate.fails else sent + fate.end

    def find(name: str) -> int | None:
        if name not in due:
            deps = [d for d in by_id[name].deps if d.blocking and d.on in by_id]
            anchors = [anchor(d) for d in deps]
            if any(a is None for a in anchors):
                due[name] = None
            else:
                known = [a for a in anchors if a is not None]
                due[name] = max(known) + by_id[name].delay_ns if known else T0 + by_id[name].arrival_ns
        return due[name]

    return {name: find(name) for name in by_id}


def play(workflow: Workflow, fates: dict[str, Fate]) -> tuple[dict[str, int], list[str], Walk]:
    """Drive a Walk by the fates; the due instants it gave and what it skipped."""
    walk = Walk(workflow, T0)
    due: dict[str, int] = {}
    skipped: list[str] = []
    events: list[tuple[int, int, str, str]] = []

    def release(ready: list) -> None:
        for item in ready:
            name = item.node.request_id
            assert name not in due, "released twice"
            due[name] = item.due_ns
            fate, sent = fates[name], item.due_ns + fates[name].late
            heapq.heappush(events, (sent, 0, name, "start"))
            if fate.first is not None:
                heapq.heappush(events, (sent + fate.first, 1, name, "first_token"))
            heapq.heappush(events, (sent + fate.end, 2, name, "fail" if fate.fails else "end"))

    release(walk.start())
    while events:
        now, _, name, what = heapq.heappop(events)
        if what == "fail":
            skipped.extend(n.request_id for n in walk.fail(name))
        else:
            release(walk.reach(name, what, now))  # type: ignore[arg-type]
    return due, skipped, walk


@settings(max_examples=400)
@given(cases())
def test_due_instants_are_the_rule(case: tuple[Workflow, dict[str, Fate]]) -> None:
    workflow, fates = case
    due, skipped, walk = play(workflow, fates)
    expected = oracle(workflow, fates)
    assert due == {k: v for k, v in expected.items() if v is not None}
    assert sorted(skipped) == sorted(k for k, v in expected.items() if v is None)
    assert walk.finished and not walk.stuck


def test_delay_counts_once_after_the_last_dependency() -> None:
    """A 0-1 s, B 0-5 s, C recorded at 6 s: its 1 s follows the last of them, not each."""
    walk = Walk(Workflow("w", (node("a"), node("b"), node("c", (Dep("a"), Dep("b")), delay=1_000))), 0)
    walk.start()
    assert walk.reach("b", "end", 5_000) == []
    assert [r.due_ns for r in walk.reach("a", "end", 7_000)] == [8_000]


def test_a_later_anchor_implies_the_earlier_ones_and_repeats_change_nothing() -> None:
    walk = Walk(Workflow("w", (node("a"), node("b", (Dep("a", anchor="first_token"),)))), 0)
    walk.start()
    assert [r.due_ns for r in walk.reach("a", "end", 70)] == [70]
    assert walk.reach("a", "first_token", 80) == []


def test_cycle_is_stuck_and_can_be_abandoned() -> None:
    walk = Walk(Workflow("w", (node("a"), node("b", (Dep("c"),)), node("c", (Dep("b"),)))), 0)
    assert [r.node.request_id for r in walk.start()] == ["a"]
    assert not walk.stuck
    walk.reach("a", "end", 1)
    assert walk.stuck and not walk.finished
    assert [n.request_id for n in walk.abandon()] == ["b", "c"]
    assert walk.finished and not walk.stuck


def test_skipped_nodes_are_not_released_by_their_other_parents() -> None:
    walk = Walk(Workflow("w", (node("a"), node("b"), node("c", (Dep("a"), Dep("b"))), node("d", (Dep("c"),)))), 0)
    walk.start()
    assert [n.request_id for n in walk.fail("a")] == ["c", "d"]
    assert walk.reach("b", "end", 9) == []
    assert walk.finished
