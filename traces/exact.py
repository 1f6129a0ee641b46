"""Exact edges: an id that one answer made and a later prompt names. No inference, no doubt.

A tool call's id that comes back in a later prompt, and a previous_response_id. The proxy finds them while it records,
each worker among its own requests (`Makers`); `link` finds those between workers too, from the rows of all journals.
May not know: bodies, files, sockets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from traces.workflow import Dep, DepKind, dep_row

LIMIT = 65_536
_CALLS = ("assistant", "function_call")
"""roles of messages that make tool calls"""
FIELDS = (
    "request_id", "workflow_id", "node_id", "api", "t_arrival_ns", "t_end_ns", "deps", "messages", "tool_call_ids",
    "response_id", "previous_response_id",
)  # fmt: skip
K = TypeVar("K")
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


class Makers:
    """Who made which id. Bounded: the oldest are forgotten."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._makers: dict[str, Maker] = {}

    def edges(self, named: Named, workflow: str | None, declared: Sequence[Dep]) -> tuple[Dep, ...]:
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
            remember(self._makers, response, maker, self._limit)
        for made in tools:
            remember(self._makers, made, maker, self._limit)


def remember(table: dict[K, V], key: K, value: V, limit: int) -> None:
    """Put it last; the first goes where there are too many."""
    table.pop(key, None)
    table[key] = value
    if len(table) > limit:
        del table[next(iter(table))]


def facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `link` reads of a row of a requests journal; no more, since there may be a million of them."""
    messages = row.get("messages") or ()
    named = any(message.get("tool_ids") for message in messages)
    return {**{field: row.get(field) for field in FIELDS}, "messages": messages if named else ()}


def link(rows: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """The deps of each row of requests journals, with the exact edges that its own worker could not see."""
    makers = Makers(len(rows) + LIMIT)
    ends = sorted((k for k, row in enumerate(rows) if _makes(row)), key=lambda k: int(rows[k]["t_end_ns"]))
    out = [list(row.get("deps") or ()) for row in rows]
    done = 0
    for k in sorted(range(len(rows)), key=lambda k: int(rows[k]["t_arrival_ns"])) if ends else ():
        row = rows[k]
        while done < len(ends) and rows[ends[done]]["t_end_ns"] <= row["t_arrival_ns"]:
            maker = rows[ends[done]]
            makers.learn(_name(maker), maker.get("workflow_id"), _response(maker), maker.get("tool_call_ids") or ())
            done += 1
        known = [Dep(str(dep["on"])) for dep in out[k] if "on" in dep]
        out[k] += [dep_row(dep) for dep in makers.edges(_named(row), row.get("workflow_id"), known)]
    return out


def _makes(row: Mapping[str, Any]) -> bool:
    return bool(row.get("tool_call_ids")) or _response(row) is not None


def _response(row: Mapping[str, Any]) -> str | None:
    """Of the one API whose requests name a response again."""
    return row.get("response_id") if row.get("api") == "responses" else None


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("node_id") or row["request_id"])


def _named(row: Mapping[str, Any]) -> Named:
    """What a recorded prompt names, from the structure of its messages."""
    answered: list[str] = []
    older: list[str] = []
    fresh = True
    for message in reversed(row.get("messages") or ()):
        fresh = fresh and message.get("role") not in _CALLS
        (answered if fresh else older).extend(reversed(message.get("tool_ids") or ()))
    first = [tuple(dict.fromkeys(reversed(ids))) for ids in (answered, older)]
    return Named(row.get("previous_response_id"), *first)
