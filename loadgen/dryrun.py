"""The schedule of a replay without sending anything: what would be due when, and how much.

Why: a trace and its transforms can be checked before an engine is paid for. Streams: one workflow in memory at a time.
What an engine would take is unknown, so each request lasts as long as the trace recorded, else `service_ns`; both are
said. May not know: clocks, sockets.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from loadgen.walk import Ready, Walk
from traces.workflow import Node, Workflow

_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Due:
    """One node of the schedule, ns from trace time 0."""

    workflow: Workflow
    node: Node
    due_ns: int
    end_ns: int


@dataclass(slots=True)
class Schedule:
    """What a replay would do."""

    workflows: int = 0
    nodes: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    never: int = 0
    """nodes that can never run (cycles)"""
    first_ns: int | None = None
    last_due_ns: int = 0
    end_ns: int = 0
    assumed: int = 0
    """requests whose duration the trace does not know"""
    busiest_second: int = 0
    """requests due in the busiest second"""
    per_second: dict[int, int] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the per-second counts."""
        out = asdict(self)
        del out["per_second"]
        return out


def due(workflow: Workflow, service_ns: int = 0) -> Iterator[Due]:
    """The nodes of one workflow as they would come due, in order of due; nodes in a cycle never do."""
    walk = Walk(workflow, 0)
    if len(workflow.nodes) == 1 and not workflow.nodes[0].deps:
        node = workflow.nodes[0]
        yield Due(workflow, node, node.arrival_ns, node.arrival_ns + _took(node, service_ns))
        return
    order = 0
    events: list[tuple[int, int, int, Node]] = []

    def release(ready: list[Ready]) -> None:
        nonlocal order
        for item in ready:
            order += 1
            heapq.heappush(events, (item.due_ns, 0, order, item.node))

    release(walk.start())
    while events:
        now, stage, number, node = heapq.heappop(events)
        name = node.request_id
        if stage == 0:
            end = now + _took(node, service_ns)
            yield Due(workflow, node, now, end)
            release(walk.reach(name, "start", now))
            first = _first(node)
            if first is not None:
                heapq.heappush(events, (now + first, 1, number, node))
            heapq.heappush(events, (end, 2, number, node))
        else:
            release(walk.reach(name, "first_token" if stage == 1 else "end", now))


def dry_run(
    workflows: Iterable[Workflow], *, service_ns: int = 0, each: Callable[[Due], None] | None = None
) -> Schedule:
    """The whole schedule. each: called for every node, workflow by workflow (not in global order)."""
    out = Schedule()
    for workflow in workflows:
        out.workflows += 1
        left = len(workflow.nodes)
        for item in due(workflow, service_ns):
            left -= 1
            _count(out, item)
            if each is not None:
                each(item)
        out.never += left
    out.busiest_second = max(out.per_second.values(), default=0)
    return out


def _count(out: Schedule, item: Due) -> None:
    node = item.node
    out.nodes += 1
    if out.first_ns is None or item.due_ns < out.first_ns:
        out.first_ns = item.due_ns
    out.last_due_ns = max(out.last_due_ns, item.due_ns)
    out.end_ns = max(out.end_ns, item.end_ns)
    if node.kind != "llm":
        return
    out.requests += 1
    out.input_tokens += node.input_length
    out.output_tokens += node.output_length
    out.assumed += node.t_end_ns is None
    second = item.due_ns // _S
    out.per_second[second] = out.per_second.get(second, 0) + 1


def _took(node: Node, service_ns: int) -> int:
    if node.t_end_ns is not None:
        return max(0, node.t_end_ns - node.arrival_ns)
    return service_ns if node.kind == "llm" else 0


def _first(node: Node) -> int | None:
    return None if node.t_first_token_ns is None else max(0, node.t_first_token_ns - node.arrival_ns)
