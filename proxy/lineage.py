"""What earlier requests of this worker made that later ones name: exact edges, and sub-sessions' root workflows.

A tool call's id in an output that comes back in a later prompt, and a previous_response_id, are edges without any
doubt; so is a session whose parent session was seen. Bounded: the oldest are forgotten. Several workers see only their
own requests; the ids stay in the records, so that the importer of recordings links across workers.
May not know: sockets, clocks, bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from traces.tags import Tag
from traces.workflow import Dep, DepKind

LIMIT = 65_536
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Named:
    """Ids that a request's prompt names."""

    previous_response: str | None = None
    answered_tools: tuple[str, ...] = ()
    """ids of the tool calls whose results are new in this prompt"""
    older_tools: tuple[str, ...] = ()
    """ids further up in the history"""


Maker = tuple[str, str | None]
"""node and workflow"""


class Lineage:
    """Bounded memory of who made which id."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._makers: dict[str, Maker] = {}
        self._roots: dict[tuple[str | None, str], str] = {}

    def place(self, tag: Tag) -> Tag:
        """A sub-agent's tag in the workflow of its root, as far as its parent was seen."""
        workflow = tag.workflow_id
        if tag.parent_agent_id is not None:
            workflow = self._roots.get((tag.source, tag.parent_agent_id), workflow)
        if tag.agent_id is not None and workflow is not None:
            _remember(self._roots, (tag.source, tag.agent_id), workflow, self._limit)
        return tag if workflow == tag.workflow_id else tag._replace(workflow_id=workflow)

    def edges(self, named: Named, workflow: str | None, declared: tuple[Dep, ...]) -> tuple[Dep, ...]:
        """Exact edges to earlier requests of the same workflow, without those that were declared."""
        known = {dep.on for dep in declared}
        wanted: list[tuple[str, DepKind]] = [(i, "tool") for i in named.answered_tools]
        if not named.answered_tools and named.older_tools:
            wanted.append((named.older_tools[-1], "conversation"))
        if named.previous_response is not None:
            wanted.append((named.previous_response, "conversation"))
        out: list[Dep] = []
        for made, kind in wanted:
            maker = self._makers.get(made)
            if maker is not None and maker[1] == workflow and maker[0] not in known:
                known.add(maker[0])
                out.append(Dep(maker[0], kind, provenance="recorded"))
        return tuple(out)

    def learn(self, node: str, workflow: str | None, response: str | None, tools: Sequence[str]) -> None:
        """A finished request, by the name that edges to it use."""
        maker = (node, workflow)
        if response is not None:
            _remember(self._makers, response, maker, self._limit)
        for made in tools:
            _remember(self._makers, made, maker, self._limit)


K = TypeVar("K")


def _remember(table: dict[K, V], key: K, value: V, limit: int) -> None:
    table.pop(key, None)
    table[key] = value
    if len(table) > limit:
        del table[next(iter(table))]
