"""One row of a trace file, checked field by field: plain objects in, Node out.

Lives here: which fields a row has, what only the whole row shows to be at odds, and the expansion of prefix_ref rows.
May not know: files, streams, other rows (but the block ids a row refers to).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from traces.errors import UserError
from traces.fields import (
    MAX_TOKENS,
    Check,
    Where,
    flag,
    ids,
    json_object,
    milliseconds,
    objects,
    one_of,
    runs,
    text,
    token_count,
    word,
)
from traces.workflow import ANCHORS, APIS, DEP_KINDS, EXTENDS, NODE_KINDS, Dep, Node

_MS = 1_000_000

_A_COUNT = (token_count, f"give a whole number of tokens from 0 to {MAX_TOKENS - 1}")
_A_TIME = (milliseconds, "give milliseconds since the start of the trace, a number of at least 0")
_A_SPAN = (milliseconds, "give milliseconds, a number of at least 0")
_A_WORD = (word, "give a string that is not empty")

CHECKS: dict[str, Check] = {
    "workflow_id": _A_WORD,
    "request_id": _A_WORD,
    "session_id": _A_WORD,
    "agent_id": _A_WORD,
    "parent_agent_id": _A_WORD,
    "class": _A_WORD,
    "kind": one_of(NODE_KINDS),
    "timestamp": _A_TIME,
    "t_first_token": _A_TIME,
    "t_end": _A_TIME,
    "delay": _A_SPAN,
    "tool_wait_ms": _A_SPAN,
    "think_ms": _A_SPAN,
    "deps": (objects, "give a list of objects {on, kind, ...}"),
    "input_length": _A_COUNT,
    "output_length": _A_COUNT,
    "cached_length": _A_COUNT,
    "hash_ids": (ids, "give a list of whole numbers from 0 to 2**64-1"),
    "prefix_ref": _A_WORD,
    "prefix_blocks": (token_count, "give a whole number of blocks"),
    "own_blocks": (runs, "give a list of [first id, count] pairs"),
    "messages": (objects, "give a list of {role, content} objects"),
    "prompt": (text, "give a string"),
    "token_ids": (ids, "give a list of token ids"),
    "output": (text, "give a string"),
    "model": _A_WORD,
    "api": one_of(APIS),
    "stream": (flag, "give true or false"),
    "sampling": (json_object, "give an object of sampling parameters"),
    "tools": (objects, "give a list of tool objects"),
    "status": _A_WORD,
    "finish_reason": _A_WORD,
    "attrs": (json_object, "give an object"),
}
KNOWN_FIELDS = frozenset(CHECKS)

_DEP_CHECKS: dict[str, Check] = {
    "on": (word, "give the request_id it waits for"),
    "kind": one_of(DEP_KINDS),
    "blocking": (flag, "give true or false"),
    "anchor": one_of(ANCHORS),
    "provenance": (word, "give recorded, declared or inferred:<rule>"),
    "confidence": (lambda v: type(v) in (int, float) and 0 <= v <= 1, "give a number from 0 to 1"),  # type: ignore[operator]
    "extends": one_of(EXTENDS),
}

_TIMES = {
    "timestamp": "arrival_ns",
    "delay": "delay_ns",
    "tool_wait_ms": "tool_wait_ns",
    "think_ms": "think_ns",
    "t_first_token": "t_first_token_ns",
    "t_end": "t_end_ns",
}
_TUPLES = ("hash_ids", "token_ids", "messages", "tools")
_PLAIN = (
    KNOWN_FIELDS
    - set(_TIMES)
    - set(_TUPLES)
    - {"class", "deps", "prefix_ref", "prefix_blocks", "own_blocks", "workflow_id", "request_id"}
)


def row_problems(row: Mapping[str, Any], where: Where) -> list[str]:
    """Every fault of one row taken alone, one sentence each; empty when it can be parsed."""
    found = []
    for name, value in row.items():
        check = CHECKS.get(name)
        if check is not None and value is not None and not check[0](value):
            found.append(where.fault(name, value, check[1]))
    if not found:
        found = [fault for dep in row.get("deps") or () for fault in _dep_problems(dep, where)]
    return found or _missing(row, where)


def _dep_problems(dep: Mapping[str, Any], where: Where) -> list[str]:
    found = [
        where.fault(f"deps.{name}", dep[name], want)
        for name, (good, want) in _DEP_CHECKS.items()
        if name in dep and not good(dep[name])
    ]
    return found if found or "on" in dep else [where.fault("deps.on", None, _DEP_CHECKS["on"][1])]


def _missing(row: Mapping[str, Any], where: Where) -> list[str]:
    """Fields that only the whole row shows to be missing or at odds."""
    found = []
    deps = row.get("deps")
    if row.get("wait_for") and not deps:
        found.append(
            where.fault("wait_for", row["wait_for"], "give deps, or convert the file: joulegraph trace import")
        )
    if row.get("timestamp") is None and not any(d.get("blocking", True) for d in deps or ()):
        found.append(
            where.fault("timestamp", None, "give the arrival in ms: only a row with blocking deps may lack it")
        )
    if deps and row.get("workflow_id") is None:
        found.append(where.fault("workflow_id", None, "give one: a row with deps must say which workflow it is in"))
    if row.get("kind", "llm") == "llm":
        if row.get("input_length") is None and row.get("token_ids") is None:
            found.append(where.fault("input_length", None, "give the number of prompt tokens"))
        if row.get("output_length") is None:
            found.append(where.fault("output_length", None, "give the number of generated tokens"))
    delay = row.get("delay") or 0
    parts = (row.get("tool_wait_ms") or 0) + (row.get("think_ms") or 0)
    if parts > delay + 1e-6:
        found.append(
            where.fault("delay", delay, f"make it at least tool_wait_ms + think_ms = {parts:g}: they are parts of it")
        )
    return found


def parse_row(row: Mapping[str, Any], where: Where) -> tuple[Node, str]:
    """One row as (Node, class name). A row without ids gets them from its number. UserError names the first fault.

    prefix_ref rows must have gone through `expand` first: the Node carries only hash_ids.
    """
    problems = row_problems(row, where)
    if problems:
        raise UserError(problems[0])
    made: dict[str, Any] = {k: v for k, v in row.items() if k in _PLAIN and v is not None}
    for name, field in _TIMES.items():
        value = row.get(name)
        if value is not None:
            made[field] = value * _MS if type(value) is int else round(value * _MS)
    made.setdefault("arrival_ns", 0)
    for name in _TUPLES:
        value = row.get(name)
        if value is not None:
            made[name] = tuple(value)
    made.setdefault("input_length", len(made.get("token_ids", ())))
    made.setdefault("output_length", 0)
    deps = row.get("deps")
    if deps:
        made["deps"] = tuple(Dep(**{k: d[k] for k in _DEP_CHECKS if k in d}) for d in deps)
    request = row.get("request_id") or f"row{where.row}"
    return Node(row.get("workflow_id") or f"row{where.row}", request, **made), row.get("class") or "workflow"


def expand(row: dict[str, Any], where: Where, known: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A row with prefix_ref/own_blocks as a row with plain hash_ids. known: request_id -> block ids of the earlier rows
    of this workflow. Rows without them come back as they are. UserError on an unknown prefix_ref."""
    reference, own = row.get("prefix_ref"), row.get("own_blocks")
    if (reference is None and own is None) or row.get("hash_ids") is not None:
        return row
    blocks: list[int] = []
    if reference is not None:
        base = known.get(reference) if type(reference) is str else None
        count = row.get("prefix_blocks")
        if base is None:
            raise UserError(
                where.fault("prefix_ref", reference, "name an earlier row of this workflow that has blocks")
            )
        if type(count) is not int or not 0 <= count <= len(base):
            raise UserError(where.fault("prefix_blocks", count, f"give 0 to {len(base)}, the blocks of {reference}"))
        blocks.extend(base[:count])
    if own is not None and not runs(own):
        raise UserError(where.fault("own_blocks", own, CHECKS["own_blocks"][1]))
    if sum(count for _, count in own or ()) > MAX_TOKENS // 16:
        raise UserError(where.fault("own_blocks", own, "give fewer blocks: a prompt has at most 2**31 tokens"))
    for first, count in own or ():
        blocks.extend(range(first, first + count))
    return {**row, "hash_ids": blocks}
