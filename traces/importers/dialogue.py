"""Conversations in text to chains of calls: one call per assistant message, the messages before it are its prompt.

Lives here: what MLPerf, ShareGPT-like and SWE-agent imports have in common. Pure. May not know: files.
An assistant message that an earlier call produced carries `output_of`, so that a replay may put the live answer there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from traces.importers.base import Notes
from traces.importers.link import ESTIMATE_ATTRS, ESTIMATED, estimate_tokens, words
from traces.workflow import Dep, Node, Workflow


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. delay_ns: time before it that is not the model's (tool run, pause)."""

    message: dict[str, Any]
    """as it would be sent: role, content, tool_calls, tool_call_id"""
    delay_ns: int = 0
    generated: bool = True
    """of assistant messages: the model produced it here (False: a demonstration, part of the prompt)"""
    attrs: dict[str, Any] = field(default_factory=dict)


def size_of(message: dict[str, Any]) -> int:
    """Estimated tokens of a message: its text and its tool calls."""
    text = words(message.get("content")) + words(message.get("reasoning_content"))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        text += words(function.get("name")) + words(function.get("arguments")) if isinstance(function, dict) else ""
    return estimate_tokens(text)


def conversation(
    name: str,
    turns: Sequence[Turn],
    notes: Notes,
    *,
    class_name: str,
    arrival_ns: int = 0,
    model: str | None = None,
    tools: tuple[dict[str, Any], ...] | None = None,
) -> Workflow | None:
    """A strict chain: call k follows call k-1, after the delays of the messages between them. None without a reply."""
    notes.say(ESTIMATED)
    nodes: list[Node] = []
    history: list[dict[str, Any]] = []
    tokens = estimate_tokens(str(tools)) if tools else 0
    delay = 0
    for turn in turns:
        delay += turn.delay_ns
        size = size_of(turn.message)
        if turn.message.get("role") == "assistant" and turn.generated and history:
            nodes.append(_call(name, nodes, history, turn, tokens, delay, size, arrival_ns, model, tools))
            history = [*history, {**turn.message, "output_of": nodes[-1].request_id}]
            delay = 0
        else:
            history = [*history, turn.message]
        tokens += size
    if turns and turns[-1].message.get("role") != "assistant":
        notes.count("a conversation ends on a message without a recorded reply: that request is left out")
    return Workflow(name, tuple(nodes), class_name) if nodes else None


def _call(
    name: str,
    nodes: list[Node],
    history: list[dict[str, Any]],
    turn: Turn,
    tokens: int,
    delay: int,
    size: int,
    arrival_ns: int,
    model: str | None,
    tools: tuple[dict[str, Any], ...] | None,
) -> Node:
    after_tool = history[-1].get("role") == "tool"
    return Node(
        name,
        f"call{len(nodes) + 1}",
        0 if nodes else arrival_ns,
        tokens,
        size,
        session_id=name,
        delay_ns=delay if nodes else 0,
        tool_wait_ns=delay if nodes and after_tool else 0,
        think_ns=delay if nodes and not after_tool else 0,
        deps=(Dep(nodes[-1].request_id, "tool" if after_tool else "conversation"),) if nodes else (),
        messages=tuple(history),
        output=words(turn.message.get("content")) or None,
        model=model,
        api="chat",
        tools=tools,
        attrs={**ESTIMATE_ATTRS, **turn.attrs},
    )
