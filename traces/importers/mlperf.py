"""MLPerf Endpoints conversations: JSON Lines, one row per MESSAGE (conversation_id, turn, role, content, tools ...).

Every assistant row is a call; the delay_seconds of the tool rows before it is its tool time. No arrival process in the
source: every conversation arrives at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, json_rows, seconds_ns
from traces.importers.dialogue import Turn, conversation
from traces.workflow import Manifest, Workflow

TITLE = "MLPerf Endpoints conversations (JSON Lines, a row per message)"


def recognises(head: Head) -> bool:
    """Rows that are messages of a numbered turn."""
    return head.keys >= {"conversation_id", "turn", "role"}


def read(path: Path, options: ImportOptions) -> Imported:
    """conversation_id -> workflow; a strict chain; text kept."""
    notes = Notes()
    notes.say(
        "the source has no arrival times: every workflow arrives at 0; space them with an arrival process on replay"
    )
    manifest = Manifest(content_mode="text", source=f"{path.name} (MLPerf Endpoints)")
    return Imported(manifest, _workflows(path, notes), notes)


def _workflows(path: Path, notes: Notes) -> Iterator[Workflow]:
    seen: set[str] = set()
    for name, rows in groupby(json_rows(path), key=lambda item: str(item[1].get("conversation_id"))):
        if name in seen:
            raise UserError(
                f"{path}: conversation_id {name!r} comes back later; keep the rows of a conversation together"
            )
        seen.add(name)
        turns: list[Turn] = []
        tools: tuple[dict[str, Any], ...] | None = None
        for where, row in rows:
            if isinstance(row.get("tools"), list):
                tools = tuple(t for t in row["tools"] if isinstance(t, dict))
            turns += _turns(where, row, first=not turns)
        made = conversation(name, turns, notes, class_name="agentic" if tools else "chat", tools=tools)
        if made is not None:
            yield made


def _turns(where: Where, row: dict[str, Any], first: bool) -> Iterator[Turn]:
    role = row.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise UserError(where.fault("role", role, "give system, user, assistant or tool"))
    if first and row.get("system"):
        yield Turn({"role": "system", "content": row["system"]})
    delay = seconds_ns(where, "delay_seconds", row["delay_seconds"]) if row.get("delay_seconds") is not None else 0
    results = row.get("tool_results")
    if isinstance(results, list):
        for index, result in enumerate(r for r in results if isinstance(r, dict)):
            message = {
                "role": "tool",
                "tool_call_id": result.get("tool_call_id"),
                "content": result.get("content") or "",
            }
            yield Turn(message, delay if index == 0 else 0)
        return
    kept = {k: row[k] for k in ("tool_calls", "reasoning_content") if row.get(k)}
    yield Turn({"role": role, "content": row.get("content") or "", **kept}, delay)
