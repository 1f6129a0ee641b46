"""TraceLab: JSON Lines of coding-agent rounds with token counts, cached prefix, tool calls and their real times.

A session is a workflow. A round -> an LLM call; a tool record -> a tool node that takes its recorded time. No block
hashes in the source: prefix_tokens becomes cached_length, content stays lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, json_rows, objects, whole
from traces.importers.link import Keyed, Links, Unique, gather, settle
from traces.workflow import Dep, Manifest, Node, Workflow

TITLE = "TraceLab rounds of coding agents (round_trace.jsonl)"
_INPUT = ("user_message", "tool_result")


def recognises(head: Head) -> bool:
    """Rows with a round and its prefix."""
    return head.keys >= {"session_id", "round_index", "prefix_tokens", "timing_events"}


def read(path: Path, options: ImportOptions) -> Imported:
    """Last input event -> arrival, last output event -> t_end; tools by their call ids; times relative to the first."""
    notes = Notes()
    notes.say("arrival of a round = its last input event, end = its last output event (client-side stamps)")
    notes.say("sub-agents are sessions of their own: the source does not name their parents")
    first = min((min(times) for where, row in json_rows(path) if (times := _times(where, row))), default=0)
    manifest = Manifest(content_mode="lengths", source=f"{path.name} (TraceLab)")
    return Imported(manifest, _workflows(path, first, notes), notes)


def iso_ns(where: Where, name: str, text: object) -> int:
    """An ISO stamp with zone (or UTC) as ns since 1970."""
    try:
        stamp = datetime.fromisoformat(str(text))
    except ValueError:
        raise UserError(where.fault(name, text, "give an ISO 8601 time")) from None
    stamp = stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)
    since = stamp - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _times(where: Where, row: dict[str, Any]) -> list[int]:
    """(arrival, end) of a round from its events; one of them where only that is known; none where nothing is."""
    events = row.get("timing_events")
    if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
        raise UserError(where.fault("timing_events", events, "give a list of events"))
    inputs = [iso_ns(where, "timestamp", e.get("timestamp")) for e in events if e.get("event_type") in _INPUT]
    outputs = [iso_ns(where, "timestamp", e.get("timestamp")) for e in events if e.get("event_type") not in _INPUT]
    arrival = max(inputs) if inputs else min(outputs, default=None)
    if arrival is None:
        return []
    return [arrival, max([*outputs, arrival])] if outputs else [arrival]


def _workflows(path: Path, first: int, notes: Notes) -> Iterator[Workflow]:
    def rows(told: Notes) -> Iterator[Keyed]:
        for where, row in json_rows(path):
            times = _times(where, row)
            if times:
                yield Keyed(str(row.get("session_id")), times[0] - first, (where, row, times))
            else:
                told.count("a round without a single timing event is left out")

    for group in gather(rows(Notes()), rows(notes)):
        nodes = _session(group, first, notes)
        yield Workflow(nodes[0].workflow_id, nodes, "agentic")


def _session(group: list[Any], first: int, notes: Notes) -> tuple[Node, ...]:
    links, unique = Links(), Unique()
    group = sorted(group, key=lambda item: item[2][0])
    name = str(group[0][1].get("session_id"))
    calls: list[Node] = []
    tools: dict[str, Node] = {}
    for where, row, times in group:
        call = _call(where, row, times, name, unique, first)
        _answers(row, call, tools, links)
        calls.append(call)
        for tool in objects(where, row, "tools"):
            node = _tool(where, tool, name, unique, first, notes)
            if node is not None:
                # emitted while the reply still streams: the tool waits for the call's start, its own delay says when
                ended = call.t_end_ns is not None and call.t_end_ns <= node.arrival_ns
                links.add(node.request_id, Dep(call.request_id, "tool", anchor="end" if ended else "start"))
                tools[str(tool.get("tool_call_id"))] = node
    links.follow(calls)
    return settle(links.on([*calls, *tools.values()]), notes)


def _call(where: Where, row: dict[str, Any], times: list[int], name: str, unique: Unique, first: int) -> Node:
    cached = row.get("prefix_tokens")
    keep = (
        "provider",
        "project",
        "reasoning_output_tokens",
        "newly_append_tokens",
        "claude_cache_creation_input_tokens",
    )
    total = whole(where, "input_tokens_total", row.get("input_tokens_total"))
    return Node(
        name,
        unique(str(row.get("round_id") or f"round{row.get('round_index')}")),
        times[0] - first,
        total,
        whole(where, "output_tokens", row.get("output_tokens")),
        session_id=name,
        cached_length=min(total, whole(where, "prefix_tokens", cached)) if cached is not None else None,
        model=row.get("model"),
        api="messages" if row.get("provider") == "claude" else "responses",
        t_end_ns=times[1] - first if len(times) > 1 else None,
        attrs={k: row[k] for k in keep if row.get(k) is not None},
    )


def _answers(row: dict[str, Any], call: Node, tools: dict[str, Node], links: Links) -> None:
    """The tools whose results this round read."""
    for event in row.get("timing_events") or ():
        node = tools.get(str(event.get("tool_call_id"))) if event.get("event_type") == "tool_result" else None
        if node is not None:
            links.add(call.request_id, Dep(node.request_id, "tool"))


def _tool(where: Where, tool: Any, name: str, unique: Unique, first: int, notes: Notes) -> Node | None:
    if not isinstance(tool, dict) or tool.get("emitted_at") is None:
        notes.count("a tool record without emission time is left out")
        return None
    result = tool.get("result_at")
    keep = ("tool_name", "input_chars", "result_chars", "tool_internal_latency_ms")
    return Node(
        name,
        unique(str(tool.get("tool_call_id") or "tool")),
        iso_ns(where, "emitted_at", tool["emitted_at"]) - first,
        0,
        0,
        session_id=name,
        kind="tool",
        t_end_ns=iso_ns(where, "result_at", result) - first if result is not None else None,
        status="error" if tool.get("is_error") else "ok",
        attrs={k: tool[k] for k in keep if tool.get(k) is not None},
    )
