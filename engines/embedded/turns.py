"""Conversations of the chat, Responses and Anthropic dialects as (role, text) turns, and the tool a reply calls.

May not know: tokens, plans, sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engines.embedded import errors


@dataclass(frozen=True, slots=True)
class Tool:
    """The tool call that the reply will be."""

    name: str
    arguments: dict[str, Any]


def chat_turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a chat request; tools come first, as templates put them."""
    turns = [(str(m.get("role", "user")), _chat_text(m)) for m in _objects(body["messages"], "messages")]
    return _with_tools(body, turns)


def _with_tools(body: dict[str, Any], turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    tools = body.get("tools")
    return [("system", _dump(tools)), *turns] if tools else turns


def _dump(value: Any) -> str:
    return orjson.dumps(value).decode()


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise errors.invalid(errors.problem("list_type", f"body.{name}", "Input should be a valid list", value))
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise errors.invalid(
                errors.problem("dict_type", f"body.{name}.{i}", "Input should be a valid dictionary", item)
            )
    return value


def _chat_text(message: dict[str, Any]) -> str:
    text = content_text(message.get("content"))
    calls = message.get("tool_calls")
    return text + _dump(calls) if calls else text


def content_text(content: Any) -> str:
    """Text of a content member: a string, or parts with a text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    return ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        text = part.get("text")
        return text if isinstance(text, str) else _dump({k: v for k, v in part.items() if k != "cache_control"})
    return ""


def response_turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a Responses request; `_history` (set by the server) holds the earlier turns it continues."""
    given = body["input"]
    turns: list[tuple[str, str]] = list(body.get("_history") or ())
    if body.get("instructions"):
        turns.insert(0, ("system", str(body["instructions"])))
    if isinstance(given, str):
        turns.append(("user", given))
    else:
        for item in _objects(given, "input"):
            text = content_text(item["content"]) if "content" in item else _dump(item)
            turns.append((str(item.get("role", "tool")), text))
    return _with_tools(body, turns)


def message_turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of an Anthropic request."""
    turns = [
        (str(m.get("role", "user")), content_text(m.get("content"))) for m in _objects(body["messages"], "messages")
    ]
    if body.get("system"):
        turns.insert(0, ("system", content_text(body["system"])))
    return _with_tools(body, turns)


# ---------------------------------------------------------------------------------------------- tools


def choose_tool(api: str, body: dict[str, Any]) -> Tool | None:
    """The tool a reply calls: the named one; the first where a call is required, or (auto) until a result is there."""
    tools = [_function(tool) for tool in body.get("tools") or () if isinstance(tool, dict)]
    tools = [tool for tool in tools if tool.get("name")]
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none" or choice == {"type": "none"}:
        return None
    name = choice.get("name") or (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    forced = name is not None or choice == "required" or choice == {"type": "any"}
    if not forced and _has_result(api, body):
        return None
    chosen = next((tool for tool in tools if tool["name"] == name), None) if name else tools[0]
    if chosen is None:
        text = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise errors.about(text, "tool_choice")
    return Tool(str(chosen["name"]), arguments(chosen.get("parameters") or {}))


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    inner = tool.get("function")
    if isinstance(inner, dict):
        return inner
    return {"name": tool.get("name"), "parameters": tool.get("parameters") or tool.get("input_schema")}


def _has_result(api: str, body: dict[str, Any]) -> bool:
    """The conversation already ends in a tool's result: an agent's next turn answers."""
    items = body["input"] if api == "responses" else body["messages"]
    if not isinstance(items, list) or not items:
        return False
    last = items[-1]
    if last.get("role") == "tool" or last.get("type") == "function_call_output":
        return True
    content = last.get("content")
    return isinstance(content, list) and any(isinstance(p, dict) and p.get("type") == "tool_result" for p in content)


_SAMPLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "integer": lambda schema: 1,
    "number": lambda schema: 1.5,
    "boolean": lambda schema: True,
    "array": lambda schema: [sample(schema.get("items") or {})],
    "object": lambda schema: arguments(schema),
    "null": lambda schema: None,
}


def sample(schema: dict[str, Any]) -> Any:
    """A value that fits a JSON schema, the simplest there is."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return _SAMPLES[str(kind)](schema) if str(kind) in _SAMPLES else "bakedo"


def arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a tool: its required properties, or all where none is marked."""
    properties: dict[str, Any] = schema.get("properties") or {}
    names: Sequence[str] = schema.get("required") or list(properties)
    return {name: sample(properties.get(name) or {}) for name in names}
