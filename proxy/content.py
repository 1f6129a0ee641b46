"""What a request says, kept as structure: model, sampling, message roles and lengths, keyed digests, block hashes.

Nothing here can be turned back into text without the run's key, which is never written. Text itself is kept only when
asked for. May not know: sockets, clocks, replies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from struct import unpack
from typing import Any, Final

import orjson

from proxy.config import RecordContent
from traces.exact import Named

SAMPLING: Final = frozenset(
    (
        "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "frequency_penalty", "presence_penalty",
        "repetition_penalty", "ignore_eos", "min_tokens", "logprobs", "top_logprobs", "tool_choice",
        "parallel_tool_calls", "reasoning_effort",
    )
)  # fmt: skip
NOTHING_NAMED: Final = Named()
_PLAIN_ROLES: Final = ("user", "system", "developer")
"""roles whose plain text messages name no ids"""
_ROLE_STARTS: Final = {role: b"\x00" + role.encode() + b"\x01" for role in (*_PLAIN_ROLES, "assistant")}
"""how a message of a plain chat starts in the canonical prompt"""
_OTHER_PROMPTS: Final = frozenset({"tools", "system", "instructions", "previous_response_id"})
_LENGTHS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
MAX_MESSAGES: Final = 4096
Piece = tuple[str, bytes, tuple[str, ...]]
"""role, canonical bytes, tool ids named"""
MAX_SAMPLING_VALUE: Final = 64
MAX_MET: Final = 512
MAX_MET_BYTES: Final = 4096
"""texts of earlier messages whose digests are kept at hand, 4 MB at most (the text and its UTF-8)"""


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
    messages: tuple[dict[str, Any], ...] = ()
    blocks: tuple[int, ...] = ()
    simple = None
    if mode != "none":
        simple = _plain_chat(body, key)
        if simple is not None:
            messages, prompt = simple
        else:
            pieces = _pieces(body)
            messages, prompt = _messages(pieces, key), canonical(pieces)
        blocks = block_hashes(prompt, key, block_bytes)
    model = body.get("model")
    return RequestFacts(
        model[:256] if isinstance(model, str) else None,
        body.get("stream") is True,
        _max_tokens(body),
        {} if SAMPLING.isdisjoint(body) else {k: body[k] for k in body if k in SAMPLING and _is_small(body[k])},
        messages,
        blocks,
        _content(body) if mode == "text" else None,
        NOTHING_NAMED if simple is not None else named_ids(body),
    )


def _plain_chat(body: dict[str, Any], key: bytes) -> tuple[tuple[dict[str, Any], ...], bytes] | None:
    """Messages and canonical prompt of the usual chat in one pass: roles and texts alone, so no ids are named.

    None for any other body; what it gives is what _pieces, _messages, canonical and named_ids give.
    """
    turns = body.get("messages")
    if type(turns) is not list or len(turns) > MAX_MESSAGES or not _OTHER_PROMPTS.isdisjoint(body):
        return None
    rows: list[dict[str, Any]] = []
    prompt: list[bytes] = []
    known, fresh, _ = _hashes(key)
    left = len(turns)
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role, content = turn.get("role"), turn.get("content")
        start = _ROLE_STARTS.get(role) if type(role) is str else None
        if start is None or type(content) is not str:
            return None
        left -= 1
        met = known.get(content)
        if met is None:
            text, made = content.encode(), fresh()
            made.update(text)
            value = made.hexdigest()
            if left and len(text) <= MAX_MET_BYTES:
                if len(known) >= MAX_MET:
                    known.clear()
                known[content] = (value, text)
        else:
            value, text = met
        rows.append({"role": role, "length": len(text), "digest": value})
        prompt += (start, text)
    return tuple(rows), b"".join(prompt)


@lru_cache(maxsize=1)
def _hashes(key: bytes) -> tuple[dict[str, tuple[str, bytes]], Callable[[], blake2b], Callable[[], blake2b]]:
    """For one key: digests and UTF-8 of texts that came before the last message of a prompt (system prompts, history),
    since they come again; what makes a hash for a message, and for blocks. To copy one that has read nothing is half
    the price of making it."""
    return {}, blake2b(digest_size=12, key=key).copy, blake2b(digest_size=8, key=key).copy


def named_ids(body: dict[str, Any]) -> Named:
    """The earlier outputs that a prompt names: previous_response_id, tool results after the last model turn, others."""
    previous = body.get("previous_response_id")
    turns = body.get("messages", body.get("input"))
    answered: list[str] = []
    older: list[str] = []
    fresh = True
    for turn in reversed(turns) if isinstance(turns, list) else ():
        if _is_plain(turn) or not isinstance(turn, dict):
            continue
        fresh = fresh and turn.get("role") != "assistant" and turn.get("type") != "function_call"
        (answered if fresh else older).extend(reversed(tool_ids(turn)))
    if not answered and not older and not previous:
        return NOTHING_NAMED
    return Named(
        previous_response=previous if isinstance(previous, str) and previous else None,
        answered_tools=tuple(dict.fromkeys(reversed(answered))),
        older_tools=tuple(dict.fromkeys(reversed(older))),
    )


def _is_plain(turn: Any) -> bool:
    """A message that names no ids: a role that makes no calls, a text, nothing else."""
    return (
        type(turn) is dict and len(turn) == 2 and turn.get("role") in _PLAIN_ROLES and type(turn.get("content")) is str
    )


def block_hashes(prompt: bytes, key: bytes, block_bytes: int) -> tuple[int, ...]:
    """Keyed 63-bit ids of the whole blocks of a canonical prompt: each of everything up to its block's end."""
    so_far = _hashes(key)[2]()
    update, digest_so_far = so_far.update, so_far.digest
    digests: list[bytes] = []
    for end in range(block_bytes, len(prompt) + 1, block_bytes):
        update(prompt[end - block_bytes : end])
        digests.append(digest_so_far())
    return tuple([number >> 1 for number in unpack(f">{len(digests)}Q", b"".join(digests))])


def canonical(pieces: list[Piece]) -> bytes:
    """A prompt as one byte string in which two prompts share a prefix exactly when their messages do."""
    return b"".join([b"\x00" + role.encode() + b"\x01" + text for role, text, _ in pieces])


def digest(text: bytes, key: bytes) -> str:
    """Keyed digest of one message, hex."""
    made = _hashes(key)[1]()
    made.update(text)
    return made.hexdigest()


def _messages(pieces: list[Piece], key: bytes) -> tuple[dict[str, Any], ...]:
    """Structure of the first messages: role, length in bytes, digest, tool ids where there are any."""
    rows: list[dict[str, Any]] = []
    fresh = _hashes(key)[1]
    for role, text, ids in pieces[:MAX_MESSAGES]:
        made = fresh()
        made.update(text)
        row: dict[str, Any] = {"role": role, "length": len(text), "digest": made.hexdigest()}
        if ids:
            row["tool_ids"] = list(ids)
        rows.append(row)
    return tuple(rows)


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


def _are_turns(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items)


def _turn(turn: Any) -> Piece:
    if not isinstance(turn, dict):
        return ("other", _bytes(turn), ())
    content = turn.get("content")
    if type(content) is str and len(turn) == 2 and type(turn.get("role")) is str:
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
    for name in _LENGTHS:
        value = body.get(name)
        if isinstance(value, int):
            return int(value)
    return None


_QUOTED: Final = re.compile(r"""(?:^|[\s(:=,])['"`\u2018\u201c]|[\[{<=\n]""")
MAX_ERROR: Final = 300


def unquoted(message: str) -> str:
    """An engine's error message up to the first value that it quotes: engines quote what they were sent."""
    found = _QUOTED.search(message)
    if found is None and len(message) <= MAX_ERROR:
        return message
    return message[: min(found.start() if found else MAX_ERROR, MAX_ERROR)].rstrip(" :") + " ..."


def _is_small(value: Any) -> bool:
    """Sampling values are kept only when they cannot hold prompt text."""
    if isinstance(value, str):
        return len(value) <= MAX_SAMPLING_VALUE
    return isinstance(value, int | float | bool)
