"""ShareGPT-like conversations: a JSON list or JSON Lines of {conversations|conversation|messages: [...]}.

Message objects are {from, value} (ShareGPT) or {role, content} (LMSYS, WildChat, OpenAI). Text is kept; there is no
arrival process in such files, so every conversation arrives at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, document, json_rows
from traces.importers.dialogue import Turn, conversation
from traces.importers.link import Unique
from traces.workflow import Manifest, Workflow

TITLE = "ShareGPT-like conversations (ShareGPT, LMSYS, WildChat, OpenAI messages)"
_LISTS = ("conversations", "conversation", "messages", "items")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


def recognises(head: Head) -> bool:
    """An object with a list of messages, alone, per line or in a list."""
    first = head.row or head.document
    if isinstance(first, list):
        first = first[0] if first else None
    return isinstance(first, dict) and any(_is_messages(first.get(name)) for name in _LISTS)


def _is_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and ({"from", "value"} <= m.keys() or "role" in m) for m in value)
    )


def read(path: Path, options: ImportOptions) -> Imported:
    """id -> workflow; one call per assistant message."""
    notes = Notes()
    notes.say(
        "the source has no arrival times: every workflow arrives at 0; space them with an arrival process on replay"
    )
    notes.say("pauses between turns are unknown: the next turn follows its reply at once")
    manifest = Manifest(content_mode="text", source=f"{path.name} (conversations)")
    return Imported(manifest, _workflows(path, notes), notes)


def _objects(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    if Head(path).row:
        yield from json_rows(path)
        return
    value = document(path)
    for number, one in enumerate(value if isinstance(value, list) else [value], 1):
        where = Where(str(path), number, number)
        if not isinstance(one, dict):
            raise UserError(where.fault("conversation", one, "give an object with a list of messages"))
        yield where, one


def _workflows(path: Path, notes: Notes) -> Iterator[Workflow]:
    unique = Unique()
    for where, one in _objects(path):
        messages = next((one[name] for name in _LISTS if isinstance(one.get(name), list)), None)
        if messages is None or not all(isinstance(m, dict) for m in messages):
            raise UserError(where.fault("conversations", messages, "give a list of messages"))
        name = unique(
            str(one.get("conversation_id") or one.get("id") or one.get("conversation_hash") or f"row{where.row}")
        )
        model = one.get("model") if isinstance(one.get("model"), str) else None
        made = conversation(name, [Turn(_message(m)) for m in messages], notes, class_name="chat", model=model)
        if made is None:
            notes.count("a conversation without a reply after a prompt is left out")
        else:
            yield made


def _message(raw: dict[str, Any]) -> dict[str, Any]:
    role = str(raw.get("role", raw.get("from", "user")))
    content = raw.get("content", raw.get("value"))
    kept = {k: raw[k] for k in ("tool_calls", "tool_call_id", "name") if raw.get(k)}
    return {"role": _ROLES.get(role, role), "content": content if content is not None else "", **kept}
