"""Pure graph questions about one workflow: order, cycles, children, critical path. No files, no clocks.

Times handed in are integers of ns on one axis; a node that never ran is absent from the mapping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from traces.workflow import Anchor, Dep, Node


def topological(nodes: Sequence[Node]) -> list[Node]:
    """Nodes so that every dependency (blocking or not) comes first; file order among equals. Cycles are left out:
    compare lengths, or ask `find_cycle`. Unknown ids count as satisfied."""
    by_id = {n.request_id: n for n in nodes}
    waiting = {n.request_id: sum(d.on in by_id for d in n.deps) for n in nodes}
    children = children_of(nodes)
    ready = [n for n in nodes if waiting[n.request_id] == 0]
    order: list[Node] = []
    while ready:
        node = ready.pop(0) if len(ready) < 64 else ready.pop()
        order.append(node)
        for child, _ in children.get(node.request_id, ()):
            waiting[child.request_id] -= 1
            if waiting[child.request_id] == 0:
                ready.append(child)
    return order


def children_of(nodes: Sequence[Node]) -> dict[str, list[tuple[Node, Dep]]]:
    """request_id -> the nodes that depend on it, with the dependency."""
    out: dict[str, list[tuple[Node, Dep]]] = {}
    for node in nodes:
        for dep in node.deps:
            out.setdefault(dep.on, []).append((node, dep))
    return out


def find_cycle(nodes: Sequence[Node]) -> list[str] | None:
    """Request ids along one cycle (first = last), or None."""
    ordered = {n.request_id for n in topological(nodes)}
    left = {n.request_id: n for n in nodes if n.request_id not in ordered}
    if not left:
        return None
    # every node left has a dependency among those left: walk back until one repeats
    at = next(iter(left))
    seen: list[str] = []
    while at not in seen:
        seen.append(at)
        at = next(d.on for d in left[at].deps if d.on in left)
    return [*seen[seen.index(at) :], at][::-1]


@dataclass(frozen=True, slots=True)
class Span:
    """When one node was due (ready), sent, gave its first token, ended. ns, one axis; first may be unknown."""

    due_ns: int
    sent_ns: int
    first_ns: int | None
    end_ns: int


@dataclass(frozen=True, slots=True)
class PathStep:
    """One node on the critical path: what the workflow waited for, from the previous step's anchor on."""

    request_id: str
    wait_ns: int
    """delay (tool, think) between the deciding dependency and due"""
    late_ns: int
    """due -> sent: the generator's or client's doing"""
    serve_ns: int
    """sent -> the anchor that the next step (or the end) waited for"""


def anchor_ns(span: Span, anchor: Anchor) -> int:
    """The instant a dependent waits for; an unknown first token counts as the end."""
    match anchor:
        case "start":
            return span.sent_ns
        case "first_token":
            return span.first_ns if span.first_ns is not None else span.end_ns
        case "end":
            return span.end_ns


def critical_path(nodes: Sequence[Node], spans: Mapping[str, Span]) -> list[PathStep]:
    """The chain that decided the makespan, first node first: from the node that ended last, back over the blocking
    dependency whose anchor came last. Empty when nothing ran."""
    by_id = {n.request_id: n for n in nodes}
    ran = [r for r in spans if r in by_id]
    if not ran:
        return []
    at: str | None = max(ran, key=lambda r: (spans[r].end_ns, r))
    leave = spans[at].end_ns if at is not None else 0
    steps: list[PathStep] = []
    while at is not None:
        span = spans[at]
        before = [(anchor_ns(spans[d.on], d.anchor), d.on) for d in by_id[at].blocking if d.on in spans]
        start = max(before)[0] if before else span.due_ns
        steps.append(PathStep(at, span.due_ns - start, span.sent_ns - span.due_ns, leave - span.sent_ns))
        leave = start
        at = max(before)[1] if before else None
    return steps[::-1]


def makespan_ns(spans: Mapping[str, Span]) -> int | None:
    """First due to last end; None when nothing ran."""
    if not spans:
        return None
    return max(s.end_ns for s in spans.values()) - min(s.due_ns for s in spans.values())
