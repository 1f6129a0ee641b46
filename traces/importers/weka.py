"""Weka / kv-cache-tester sessions: coding-agent traffic, one JSON document per session (or one per line, or a folder).

The trap: the t of a sub-agent entry is its COMPLETION; it started duration_ms earlier. The t of a nested request counts
from the sub-agent's start. Which call spawned it and which waited for it is not named: both are inferred by timing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import (
    MS,
    Head,
    Imported,
    ImportOptions,
    Notes,
    block_ids,
    document,
    json_files,
    json_rows,
    objects,
    seconds_ns,
    whole,
)
from traces.importers.link import Links, settle
from traces.workflow import Manifest, Node, Workflow

TITLE = "Weka / kv-cache-tester coding-agent sessions (JSON, JSON Lines, or a folder of them)"
_SLACK_NS = 3_000 * MS
"""A sub-agent may seem to start this long before its parent's reply ended: the main clock ticks in whole seconds."""
_ROUND_NS = 1_000 * MS


def recognises(head: Head) -> bool:
    """A document (or first line) with block_size, hash_id_scope and requests; a folder whose first file is one."""
    if head.is_dir:
        files = json_files(head.path)
        return bool(files) and recognises(Head(files[0]))
    return head.keys >= {"block_size", "hash_id_scope", "requests"}


def read(path: Path, options: ImportOptions) -> Imported:
    """A session -> a workflow; requests -> a chain per agent; api_time -> t_end; sub-agents -> spawn and join."""
    notes = Notes()
    notes.say("spawn and join edges of sub-agents are inferred by timing (t of a sub-agent is its completion)")
    if path.is_dir():
        notes.say("sessions share no clock: every workflow arrives at 0; space them with an arrival process on replay")
    first = next(_documents(path), None)
    if first is None:
        raise UserError(f"{path}: holds no session; give a JSON document with id, block_size and requests")
    size = whole(first[0], "block_size", first[1].get("block_size"), 1)
    manifest = Manifest(block_size=size, block_rounding="floor", hash_scope="workflow", source=f"{path.name} (Weka)")
    return Imported(manifest, _workflows(path, size, notes), notes)


def _documents(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    for file in json_files(path):
        head = Head(file)
        if head.row and head.row.keys() >= {"requests"} and len(head.lines) > 1:
            yield from json_rows(file)
            continue
        value = document(file)
        for number, one in enumerate(value if isinstance(value, list) else [value], 1):
            if not isinstance(one, dict) or not isinstance(one.get("requests"), list):
                raise UserError(f"{file}: no session (object with requests); give a Weka trace")
            yield Where(str(file), number, number), one


@dataclass
class _Session:
    """One session being taken apart."""

    where: Where
    name: str
    notes: Notes
    links: Links = field(default_factory=Links)
    nodes: list[Node] = field(default_factory=list)

    def agent(self, entries: list[Any], agent: str, parent: str | None, start_ns: int) -> list[Node]:
        """All calls of one agent (and, after them, of its sub-agents); the agent's own calls in order."""
        own: list[Node] = []
        subs: list[tuple[dict[str, Any], str]] = []
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise UserError(self.where.fault("requests", entry, "give a list of objects"))
            if entry.get("type") == "subagent":
                subs.append((entry, f"{agent}/{entry.get('agent_id') or f'agent{index}'}"))
            else:
                own.append(self._call(entry, f"{agent}:{len(own)}", agent, parent, start_ns))
        own = self._unrounded(own)
        self.links.follow(own)
        self.nodes += own
        for entry, name in subs:
            self._sub(entry, name, agent, own, start_ns)
        return own

    def _sub(self, entry: dict[str, Any], name: str, parent: str, calls: list[Node], start_ns: int) -> None:
        done = start_ns + seconds_ns(self.where, "t", entry.get("t"))
        duration = entry.get("duration_ms")
        if duration is None:
            self.notes.count("a sub-agent has no duration: taken as starting at its stated time")
            duration = 0
        begin = max(0, done - round(seconds_ns(self.where, "duration_ms", duration) / 1000))
        inner = self.agent(objects(self.where, entry, "requests"), name, parent, begin)
        if inner and calls:
            self.links.spawn_and_join(calls, inner, _SLACK_NS)

    def _call(self, entry: dict[str, Any], name: str, agent: str, parent: str | None, start_ns: int) -> Node:
        where = self.where
        arrival = start_ns + seconds_ns(where, "t", entry.get("t"))
        took, first = entry.get("api_time"), entry.get("ttft")
        kept = {k: entry[k] for k in ("t", "think_time", "input_types", "output_types") if entry.get(k) is not None}
        blocks = block_ids(where, entry, "hash_ids")
        return Node(
            self.name,
            name,
            arrival,
            whole(where, "in", entry.get("in")),
            whole(where, "out", entry.get("out")),
            session_id=f"{self.name}/{agent}",
            agent_id=agent,
            parent_agent_id=parent,
            hash_ids=tuple(blocks) if blocks is not None else None,
            model=entry.get("model"),
            api="messages",
            stream=entry.get("type") == "s",
            finish_reason=entry.get("stop"),
            t_first_token_ns=arrival + seconds_ns(where, "ttft", first) if first is not None else None,
            t_end_ns=arrival + seconds_ns(where, "api_time", took) if took is not None else None,
            attrs=kept,
        )

    def _unrounded(self, calls: list[Node]) -> list[Node]:
        """Arrivals are whole seconds: one that seems to precede the reply before it by under a second moves to it."""
        out: list[Node] = []
        for node in sorted(calls, key=lambda n: n.arrival_ns):
            end = out[-1].t_end_ns if out else None
            if end is not None and 0 < end - node.arrival_ns < _ROUND_NS:
                self.notes.count("an arrival rounded to whole seconds is moved to the end of the reply before it")
                by = end - node.arrival_ns
                node = replace(
                    node,
                    arrival_ns=end,
                    t_end_ns=node.t_end_ns + by if node.t_end_ns is not None else None,
                    t_first_token_ns=node.t_first_token_ns + by if node.t_first_token_ns is not None else None,
                )
            out.append(node)
        return out


def _workflows(path: Path, size: int, notes: Notes) -> Iterator[Workflow]:
    seen: set[str] = set()
    for where, one in _documents(path):
        if one.get("block_size") != size:
            raise UserError(
                where.fault("block_size", one.get("block_size"), f"give sessions of one block size ({size})")
            )
        name = str(one.get("id") or Path(where.path).stem)
        if name in seen:
            raise UserError(where.fault("id", name, "make it unique: an earlier session has it"))
        seen.add(name)
        session = _Session(where, name, notes)
        session.agent(one["requests"], "main", None, 0)
        if not session.nodes:
            notes.count("a session without requests is left out")
            continue
        nodes = settle(session.links.on(session.nodes), notes)
        kept: dict[str, Any] = {k: one[k] for k in ("tool_tokens", "system_tokens", "totals") if k in one}
        nodes = (replace(nodes[0], attrs={**nodes[0].attrs, **kept}), *nodes[1:])
        yield Workflow(name, nodes, "agentic")
