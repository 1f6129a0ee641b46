"""What a request says, kept as structure: model, sampling, message roles and lengths, keyed digests, block hashes.

Nothing here can be turned back into text without the run's key, which is never written. Text itself is kept only when
asked for. May not know: sockets, clocks, replies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from proxy.config import RecordContent
from proxy.lineage import Named

SAMPLING = frozenset(
    (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "seed",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "ignore_eos",
        "min_tokens",
        "logprobs",
        "top_logprobs",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
    )
)
NOTHING_NAMED = Named()
_PLAIN_ROLES = ("user", "system", "developer")
"""roles whose plain text messages name no ids"""
MAX_MESSAGES = 4096
Piece = tuple[str, bytes, tuple[str, ...]]
"""role, canonical bytes, tool ids named"""
MAX_SAMPLING_VALUE = 64


@dataclass(slots=True)
class RequestFacts:
    """What the record takes from a request body; empty where the body is absent, too long or no JSON object."""

    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    messages: tuple[dict[str, Any], ...] = ()
    block_hashes: tuple[int, ...] = ()
    content: dict[str, Any] | None = None
    named: Named = NOTHING_NAMED


def parse_body(body: bytes) -> Any:
    """The body's JSON, or None when it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def read_facts(body: Any, *, mode: RecordContent, key: bytes, block_bytes: int) -> RequestFacts:
    """Everything kept of a parsed request body."""
    if not isinstance(body, dict):
        return RequestFacts()
    pieces = _pieces(body) if mode != "none" else []
    return RequestFacts(
        model=_text(body.get("model")),
        stream=body.get("stream") is True,
        max_tokens=_max_tokens(body),
        sampling={k: body[k] for k in body.keys() & SAMPLING if _is_small(body[k])},
        messages=tuple([_message(piece, key) for piece in pieces[:MAX_MESSAGES]]),
        block_hashes=block_hashes(canonical(pieces), key, block_bytes) if pieces else (),
        content=_content(body) if mode == "text" else None,
        named=named_ids(body),
    )


def named_ids(body: dict[str, Any]) -> Named:
    """The earlier outputs that a prompt names: previous_response_id, tool results after the last model turn, others."""
    previous = body.get("previous_response_id")
    turns = body.get("messages", body.get("input"))
    answered: list[str] = []
    older: list[str] = []
    fresh = True
    for turn in reversed(turns) if isinstance(turns, list) else ():
        if not isinstance(turn, dict) or (len(turn) == 2 and turn.get("role") in _PLAIN_ROLES and _is_text(turn)):
            continue
        fresh = fresh and turn.get("role") != "assistant" and turn.get("type") != "function_call"
        (answered if fresh else older).extend(reversed(tool_ids(turn)))
    return Named(
        previous_response=previous if isinstance(previous, str) and previous else None,
        answered_tools=tuple(dict.fromkeys(reversed(answered))),
        older_tools=tuple(dict.fromkeys(reversed(older))),
    )


def block_hashes(prompt: bytes, key: bytes, block_bytes: int) -> tuple[int, ...]:
    """Chained, keyed 63-bit ids of the whole blocks of a canonical prompt: an id implies everything before it."""
    ids: list[int] = []
    before = b""
    for at in range(0, len(prompt) - block_bytes + 1, block_bytes):
        before = blake2b(before + prompt[at : at + block_bytes], digest_size=8, key=key).digest()
        ids.append(int.from_bytes(before, "big") >> 1)
    return tuple(ids)


def canonical(pieces: list[Piece]) -> bytes:
    """A prompt as one byte string in which two prompts share a prefix exactly when their messages do."""
    return b"".join([b"\x00" + role.encode() + b"\x01" + text for role, text, _ in pieces])


def digest(text: bytes, key: bytes) -> str:
    """Keyed digest of one message, hex."""
    return blake2b(text, digest_size=12, key=key).hexdigest()


def _message(piece: Piece, key: bytes) -> dict[str, Any]:
    role, text, ids = piece
    row: dict[str, Any] = {"role": role, "length": len(text), "digest": digest(text, key)}
    if ids:
        row["tool_ids"] = list(ids)
    return row


def _pieces(body: dict[str, Any]) -> list[Piece]:
    """The prompt in order: (role, canonical bytes, tool ids named)."""
    out: list[Piece] = []
    if body.get("tools"):
        out.append(("tools", _bytes(body["tools"]), ()))
    for name in ("system", "instructions"):
        if body.get(name):
            out.append(("system", _bytes(body[name]), ()))
    prompt = body.get("prompt", body.get("input"))
    turns = body.get("messages", prompt if isinstance(prompt, list) and _are_turns(prompt) else None)
    if isinstance(turns, list):
        out.extend(_turn(turn) for turn in turns)
    elif prompt is not None:
        out.append(("prompt", _bytes(prompt), ()))
    return out


def _is_text(turn: dict[str, Any]) -> bool:
    return isinstance(turn.get("content"), str)


def _are_turns(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items)


def _turn(turn: Any) -> Piece:
    if not isinstance(turn, dict):
        return ("other", _bytes(turn), ())
    content = turn.get("content")
    if isinstance(content, str) and len(turn) == 2 and isinstance(turn.get("role"), str):
        return (turn["role"][:64], content.encode(), ())  # the usual message: a role and a text
    role = turn.get("role") or turn.get("type") or "other"
    rest = {k: v for k, v in turn.items() if k not in ("role", "content") and v is not None}
    content = _bytes(turn.get("content")) if turn.get("content") is not None else b""
    return (
        str(role)[:64],
        content + (orjson.dumps(rest, option=orjson.OPT_SORT_KEYS) if rest else b""),
        tool_ids(turn),
    )


def tool_ids(turn: dict[str, Any]) -> tuple[str, ...]:
    """Ids of the tool calls that a message makes or answers, in the three spellings."""
    found = [turn.get("tool_call_id"), turn.get("call_id")]
    found += [call.get("id") for call in turn.get("tool_calls") or () if isinstance(call, dict)]
    if isinstance(turn.get("content"), list):
        for part in turn["content"]:
            if isinstance(part, dict):
                found += [part.get("tool_use_id"), part.get("id") if part.get("type") == "tool_use" else None]
    return tuple(dict.fromkeys([i for i in found if isinstance(i, str) and i]))


def _bytes(value: Any) -> bytes:
    """One content value: its text where it is text (or text parts), else its JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list) and value and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        return "".join([p["text"] for p in value]).encode("utf-8", "surrogatepass")
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _content(body: dict[str, Any]) -> dict[str, Any]:
    keep = ("messages", "prompt", "input", "system", "instructions", "tools")
    return {k: body[k] for k in keep if k in body}


def _max_tokens(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        if isinstance(body.get(name), int):
            return int(body[name])
    return None


def _text(value: Any) -> str | None:
    return value[:256] if isinstance(value, str) else None


def _is_small(value: Any) -> bool:
    """Sampling values are kept only when they cannot hold prompt text."""
    if isinstance(value, str):
        return len(value) <= MAX_SAMPLING_VALUE
    return isinstance(value, int | float | bool)
