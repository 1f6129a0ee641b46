"""Dynamo request traces (dynamo.request.trace.v1): request_end and tool events with sessions and block hashes.

A root session and the sessions below it are a workflow. Requests of a session form a chain; a tool event follows the
request that named its call id; sub-sessions are tied in by timing. Sequence hashes (64 bit) become small ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from traces.fields import Where
from traces.importers.agentic import milliseconds_ns, text
from traces.importers.base import Head, Imported, ImportOptions, Notes, an_object, block_ids, json_rows, objects, whole
from traces.importers.link import Dense, Links, Unique, settle
from traces.workflow import Dep, Manifest, Node, Workflow

TITLE = "Dynamo request trace (dynamo.request.trace.v1, JSON Lines)"
SCHEMA = "dynamo.request.trace.v1"
_FAILED = ("tool_error",)
_KEPT = ("x_request_id", "avg_itl_ms", "kv_hit_rate", "queue_depth", "source_request_id", "consumer_request_id")


def recognises(head: Head) -> bool:
    """The schema name in the first row."""
    return head.row.get("schema") == SCHEMA


def read(path: Path, options: ImportOptions) -> Imported:
    """request_end -> llm node, tool_end/tool_error -> tool node; the recorder may have dropped records unseen."""
    notes = Notes()
    notes.say("the recorder is best effort: dropped records leave no trace here either")
    reader = _Reader(notes)
    for where, row in json_rows(path):
        reader.take(where, row)
    if len(reader.sizes) > 1:
        notes.say(f"block sizes {sorted(reader.sizes)} are mixed: the largest group is taken, sharing is approximate")
    size = max(reader.sizes, key=lambda s: reader.sizes[s], default=512)
    manifest = Manifest(
        block_size=size,
        content_mode="hash" if reader.sizes else "lengths",
        source=f"{path.name} (Dynamo request trace)",
    )
    return Imported(manifest, reader.workflows(), notes)


class _Reader:
    """All records of a file in memory: sessions refer to each other in any order."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.sizes: dict[int, int] = {}
        self._parent: dict[str, str] = {}
        self._calls: dict[str, list[tuple[Node, list[str]]]] = {}
        self._tools: dict[str, list[Node]] = {}
        self._dense, self._unique = Dense(), Unique()

    def take(self, where: Where, row: dict[str, Any]) -> None:
        """One record."""
        context = an_object(where, row, "agent_context")
        session = str(context.get("session_id") or row.get("session_id") or f"row{where.row}")
        if context.get("parent_session_id"):
            self._parent[session] = str(context["parent_session_id"])
        match row.get("event_type"):
            case "request_end":
                self._calls.setdefault(session, []).append(self._request(where, row, session))
            case "tool_end" | "tool_error":
                self._tool(where, row, session)
            case "tool_start":
                pass
            case other:
                self.notes.count(f"a record of type {other!r} is left out")

    def _request(self, where: Where, row: dict[str, Any], session: str) -> tuple[Node, list[str]]:
        got = an_object(where, row, "request")
        arrival = milliseconds_ns(where, "request_received_ms", got.get("request_received_ms"))
        took = got.get("total_time_ms")
        end = arrival + milliseconds_ns(where, "total_time_ms", took) if took is not None else None
        if end is None and row.get("event_time_unix_ms") is not None:
            end = milliseconds_ns(where, "event_time_unix_ms", row["event_time_unix_ms"])
        first, replay = got.get("ttft_ms"), an_object(where, got, "replay")
        finish = an_object(where, got, "finish_reason_metadata")
        hashes = block_ids(where, replay, "input_sequence_hashes")
        if hashes is not None and replay.get("trace_block_size"):
            size = whole(where, "trace_block_size", replay["trace_block_size"], 1)
            self.sizes[size] = self.sizes.get(size, 0) + 1
        length = replay.get("input_length", got.get("input_tokens"))
        node = Node(
            session,
            self._unique(text(where, "request_id", got.get("request_id"))),
            arrival,
            whole(where, "input_length", length),
            whole(where, "output_tokens", got.get("output_tokens")),
            session_id=session,
            agent_id=session,
            parent_agent_id=self._parent.get(session),
            cached_length=got.get("cached_tokens"),
            hash_ids=self._dense(hashes) if hashes is not None else None,
            model=got.get("model"),
            api="chat",
            finish_reason=finish.get("finish_reason"),
            t_first_token_ns=arrival + milliseconds_ns(where, "ttft_ms", first) if first is not None else None,
            t_end_ns=end,
            attrs={k: got[k] for k in _KEPT if got.get(k) is not None},
        )
        return node, [str(c.get("id")) for c in objects(where, finish, "tool_calls")]

    def _tool(self, where: Where, row: dict[str, Any], session: str) -> None:
        tool = an_object(where, row, "tool")
        if tool.get("started_at_unix_ms") is None:
            self.notes.count("a tool record without a start is left out")
            return
        start = milliseconds_ns(where, "started_at_unix_ms", tool["started_at_unix_ms"])
        end = tool.get("ended_at_unix_ms", row.get("event_time_unix_ms"))
        name = str(tool.get("tool_call_id") or "tool")
        node = Node(
            session,
            self._unique(name),
            start,
            0,
            0,
            session_id=session,
            agent_id=session,
            kind="tool",
            status="error" if row.get("event_type") in _FAILED else "ok",
            t_end_ns=max(start, milliseconds_ns(where, "ended_at_unix_ms", end)) if end is not None else None,
            attrs={"tool_call_id": name, **({"tool_name": tool["tool_class"]} if tool.get("tool_class") else {})},
        )
        self._tools.setdefault(session, []).append(node)

    def _root(self, session: str) -> str:
        seen = {session}
        while (up := self._parent.get(session)) is not None and up not in seen:
            seen.add(up)
            session = up
        return session

    def workflows(self) -> Iterator[Workflow]:
        """Workflows by arrival, times relative to the first."""
        groups: dict[str, list[str]] = {}
        for session in dict.fromkeys([*self._calls, *self._tools]):
            groups.setdefault(self._root(session), []).append(session)
        everything = [c for calls in self._calls.values() for c, _ in calls] + [
            t for tools in self._tools.values() for t in tools
        ]
        base = min((n.arrival_ns for n in everything), default=0)
        made = [Workflow(name, self._nodes(name, members, base), "agentic") for name, members in groups.items()]
        return iter(sorted(made, key=lambda w: w.arrival_ns))

    def _nodes(self, name: str, sessions: list[str], base: int) -> tuple[Node, ...]:
        links, nodes = Links(), []
        chains: dict[str, list[Node]] = {}
        for session in sessions:
            calls = sorted(self._calls.get(session, ()), key=lambda c: c[0].arrival_ns)
            chains[session] = [c for c, _ in calls]
            links.follow(chains[session], "inferred:session-order")
            _tie_tools(calls, self._tools.get(session, []), links)
            nodes += [*chains[session], *self._tools.get(session, [])]
        for session in sessions:
            parent = chains.get(self._parent.get(session, ""))
            if parent and chains[session]:
                links.spawn_and_join(parent, chains[session])
        return settle((_moved(n, name, base) for n in links.on(nodes)), self.notes)


def _tie_tools(calls: list[tuple[Node, list[str]]], tools: list[Node], links: Links) -> None:
    """A tool follows the call that named it (recorded), the next call of its session follows the tool (inferred)."""
    for tool in tools:
        wanted = tool.attrs["tool_call_id"]
        source = next((call for call, ids in reversed(calls) if wanted in ids), None)
        if source is not None:
            links.add(tool.request_id, Dep(source.request_id, "tool"))
        end = tool.t_end_ns if tool.t_end_ns is not None else tool.arrival_ns
        reader = next((call for call, _ in calls if call.arrival_ns >= end), None)
        if reader is not None:
            links.add(
                reader.request_id, Dep(tool.request_id, "tool", provenance="inferred:session-order", confidence=0.9)
            )


def _moved(node: Node, name: str, base: int) -> Node:
    return replace(
        node,
        workflow_id=name,
        arrival_ns=node.arrival_ns - base,
        t_end_ns=node.t_end_ns - base if node.t_end_ns is not None else None,
        t_first_token_ns=node.t_first_token_ns - base if node.t_first_token_ns is not None else None,
    )
