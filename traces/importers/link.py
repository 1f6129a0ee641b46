"""From recorded times to a graph that can be replayed: which edges block, and the delay after the last of them.

Lives here: the timing rule of docs/traces.md, applied once for all importers of recordings; sessions as chains,
sub-agents as spawn and join. Pure. May not know: any format.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from traces.group import by_arrival
from traces.importers.base import Notes
from traces.workflow import Dep, Node

_NEAR_NS = 3_000_000_000
LATER = "an edge is dropped: its source arrived after the child"
OVERLAP = "an edge does not block: the child arrived before what it depends on had ended; it keeps its recorded arrival"
NO_END = "an edge does not block: its source has no end time; the child keeps its recorded arrival"


def settle(nodes: Iterable[Node], notes: Notes) -> tuple[Node, ...]:
    """Nodes with proposed blocking edges as nodes whose edges the recorded times allow, in order of arrival.

    An edge blocks only when its source's anchor was recorded and lies before the child's arrival. delay = arrival minus
    the latest anchor: end to start, so service time is not counted twice. A node left without blocking edges is a root.
    """
    ordered = sorted(nodes, key=lambda n: n.arrival_ns)
    by_id = {n.request_id: n for n in ordered}
    place = {n.request_id: index for index, n in enumerate(ordered)}
    out = []
    for node in ordered:
        deps, latest = [], None
        for dep in node.deps:
            if place[dep.on] >= place[node.request_id]:  # would close a cycle sooner or later
                notes.count(LATER)
                continue
            if dep.blocking:
                at = _anchor(by_id[dep.on], dep)
                if at is None or at > node.arrival_ns:
                    notes.count(NO_END if at is None else OVERLAP)
                    dep = replace(dep, blocking=False)
                else:
                    latest = at if latest is None else max(latest, at)
            deps.append(dep)
        delay = node.arrival_ns - latest if latest is not None else 0
        tool = min(node.tool_wait_ns, delay)
        out.append(
            replace(
                node, deps=tuple(deps), delay_ns=delay, tool_wait_ns=tool, think_ns=min(node.think_ns, delay - tool)
            )
        )
    return tuple(out)


def _anchor(source: Node, dep: Dep) -> int | None:
    match dep.anchor:
        case "start":
            return source.arrival_ns
        case "first_token":
            return source.t_first_token_ns
        case "end":
            return source.t_end_ns


class Links:
    """Edges proposed for nodes, collected by child; each source at most once per child."""

    def __init__(self) -> None:
        self._deps: dict[str, dict[str, Dep]] = {}

    def add(self, child: str, dep: Dep) -> None:
        """Propose one edge; the first for a pair stays. An edge of a node to itself is none."""
        if child != dep.on:
            self._deps.setdefault(child, {}).setdefault(dep.on, dep)

    def of(self, child: str) -> tuple[Dep, ...]:
        """The edges proposed for a node so far."""
        return tuple(self._deps.get(child, {}).values())

    def on(self, nodes: Iterable[Node]) -> Iterator[Node]:
        """Nodes with their proposed edges."""
        return (replace(n, deps=(*n.deps, *self.of(n.request_id))) for n in nodes)

    def follow(self, nodes: Sequence[Node], provenance: str = "recorded") -> None:
        """A session: every node continues the one before it."""
        for before, node in pairwise(nodes):
            self.add(node.request_id, Dep(before.request_id, "conversation", provenance=provenance))

    def spawn_and_join(self, parent: Sequence[Node], child: Sequence[Node], slack_ns: int = 0) -> None:
        """A sub-agent by timing: its first call follows the parent's call that ended last before it (spawn); the
        parent's first call after its last end waits for it (join). Both sequences in order of arrival, with ends.
        slack_ns: the clocks may disagree by so much; within it a call that ended after the start may be the source."""
        first, last = child[0], max(child, key=_end)
        before = [n for n in parent if _end(n) <= first.arrival_ns]
        nearly = [n for n in parent if first.arrival_ns < _end(n) <= first.arrival_ns + slack_ns]
        if before or nearly:
            source = max(before, key=_end) if before else min(nearly, key=_end)
            if nearly and first.arrival_ns - _end(source) > slack_ns:
                source = min(nearly, key=_end)
            near = abs(first.arrival_ns - _end(source)) <= _NEAR_NS
            self.add(
                first.request_id,
                Dep(source.request_id, "spawn", provenance="inferred:timing", confidence=0.97 if near else 0.5),
            )
        after = bisect_left([n.arrival_ns for n in parent], _end(last) - slack_ns)
        if after < len(parent):
            self.add(
                parent[after].request_id,
                Dep(last.request_id, "join", provenance="inferred:timing", confidence=0.9),
            )


def _end(node: Node) -> int:
    return node.t_end_ns if node.t_end_ns is not None else node.arrival_ns


class Unique:
    """Ids made unique: the second of a name becomes name#2."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        count = self._seen.get(name, 0) + 1
        self._seen[name] = count
        return name if count == 1 else self(f"{name}#{count}")


class Dense:
    """Block ids of any width as small ints, in order of appearance (the trace keeps equality, not the hash)."""

    def __init__(self) -> None:
        self._ids: dict[Any, int] = {}

    def __call__(self, ids: Iterable[Any]) -> tuple[int, ...]:
        return tuple(self._ids.setdefault(i, len(self._ids)) for i in ids)


@dataclass(frozen=True, slots=True)
class Keyed:
    """A source row on its way into a workflow (see traces.group)."""

    key: Hashable
    root_ns: int | None
    value: Any


def gather(first: Iterable[Keyed], second: Iterable[Keyed]) -> Iterator[list[Any]]:
    """Rows of one workflow together, by arrival, from two passes over an interleaved source."""
    return ([row.value for row in group] for group in by_arrival(first, second))


def estimate_tokens(text: str) -> int:
    """Token count of text whose source has none: one per four bytes, at least one. An estimate: importers say so."""
    return max(1, -(-len(text.encode("utf-8", "replace")) // 4))


ESTIMATED = "token counts are estimates (4 bytes of text per token): the source has none; attrs.lengths says so per row"
ESTIMATE_ATTRS = {"lengths": "estimated from bytes"}


def words(content: object) -> str:
    """The text of a message's content: a string, or the text parts of a list; other parts as their JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(words(part) for part in content)
    if isinstance(content, dict):
        for name in ("text", "content", "response", "arguments"):
            if name in content:
                return words(content[name])
        return ""
    return "" if content is None else str(content)
