"""One row of a trace file, checked field by field: plain objects in, Node and Manifest out.

Lives here: what each field of a row must be, the sentence that says why it is not (file, line, field, value, remedy),
and the expansion of prefix_ref rows. May not know: files, streams, other rows (but the block ids a row refers to).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from traces.errors import UserError
from traces.workflow import (
    ANCHORS,
    APIS,
    CONTENT_MODES,
    DEP_KINDS,
    EXTENDS,
    FORMAT_VERSION,
    NODE_KINDS,
    Dep,
    Manifest,
    Node,
)

_MS = 1_000_000
_MAX_MS = 4_000_000_000_000
"""127 years: in ns it still fits 64 bits, with room for a sum."""
_MAX_TOKENS = 2**31
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Where:
    """Where a row stands: the file as the user named it, its line (Parquet: row), its number among the rows from 1."""

    path: str
    line: int
    row: int

    def fault(self, name: str, value: object, want: str) -> str:
        """One sentence: file, line, field, value, remedy."""
        shown = repr(value)
        if len(shown) > _SHOWN:
            shown = shown[: _SHOWN - 3] + "..."
        return f"{self.path}:{self.line}: {name} is {shown}; {want}"


def _is_int(value: object, limit: int = _MAX_TOKENS) -> bool:
    return type(value) is int and 0 <= value < limit


def _count(value: object) -> bool:
    return _is_int(value)


def _milliseconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < _MAX_MS  # type: ignore[operator]


def _word(value: object) -> bool:
    return type(value) is str and value != ""


def _flag(value: object) -> bool:
    return type(value) is bool


def _ids(value: object) -> bool:
    return type(value) is list and all(type(v) is int and 0 <= v < 2**64 for v in value)


def _text(value: object) -> bool:
    return type(value) is str


def _object(value: object) -> bool:
    return type(value) is dict


def _objects(value: object) -> bool:
    return type(value) is list and all(type(v) is dict for v in value)


def _runs(value: object) -> bool:
    return type(value) is list and all(
        type(v) is list and len(v) == 2 and all(_is_int(x, 2**64) for x in v) for v in value
    )


def _one_of(names: tuple[str, ...]) -> tuple[Callable[[object], bool], str]:
    known = frozenset(names)
    return (lambda value: type(value) is str and value in known), "give one of " + ", ".join(names)


_A_COUNT = (_count, f"give a whole number of tokens from 0 to {_MAX_TOKENS - 1}")
_A_TIME = (_milliseconds, "give milliseconds since the start of the trace, a number of at least 0")
_A_SPAN = (_milliseconds, "give milliseconds, a number of at least 0")
_A_WORD = (_word, "give a string that is not empty")

CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "workflow_id": _A_WORD,
    "request_id": _A_WORD,
    "session_id": _A_WORD,
    "agent_id": _A_WORD,
    "parent_agent_id": _A_WORD,
    "class": _A_WORD,
    "kind": _one_of(NODE_KINDS),
    "timestamp": _A_TIME,
    "t_first_token": _A_TIME,
    "t_end": _A_TIME,
    "delay": _A_SPAN,
    "tool_wait_ms": _A_SPAN,
    "think_ms": _A_SPAN,
    "deps": (_objects, "give a list of objects {on, kind, ...}"),
    "input_length": _A_COUNT,
    "output_length": _A_COUNT,
    "cached_length": _A_COUNT,
    "hash_ids": (_ids, "give a list of whole numbers from 0 to 2**64-1"),
    "prefix_ref": _A_WORD,
    "prefix_blocks": (_count, "give a whole number of blocks"),
    "own_blocks": (_runs, "give a list of [first id, count] pairs"),
    "messages": (_objects, "give a list of {role, content} objects"),
    "prompt": (_text, "give a string"),
    "token_ids": (_ids, "give a list of token ids"),
    "output": (_text, "give a string"),
    "model": _A_WORD,
    "api": _one_of(APIS),
    "stream": (_flag, "give true or false"),
    "sampling": (_object, "give an object of sampling parameters"),
    "tools": (_objects, "give a list of tool objects"),
    "status": _A_WORD,
    "finish_reason": _A_WORD,
    "attrs": (_object, "give an object"),
}
KNOWN_FIELDS = frozenset(CHECKS)

_DEP_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "on": (_word, "give the request_id it waits for"),
    "kind": _one_of(DEP_KINDS),
    "blocking": (_flag, "give true or false"),
    "anchor": _one_of(ANCHORS),
    "provenance": (_word, "give recorded, declared or inferred:<rule>"),
    "confidence": (lambda v: type(v) in (int, float) and 0 <= v <= 1, "give a number from 0 to 1"),  # type: ignore[operator]
    "extends": _one_of(EXTENDS),
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
    if own is not None and not _runs(own):
        raise UserError(where.fault("own_blocks", own, CHECKS["own_blocks"][1]))
    if sum(count for _, count in own or ()) > _MAX_TOKENS // 16:
        raise UserError(where.fault("own_blocks", own, "give fewer blocks: a prompt has at most 2**31 tokens"))
    for first, count in own or ():
        blocks.extend(range(first, first + count))
    return {**row, "hash_ids": blocks}


_MANIFEST_HINTS = get_type_hints(Manifest)
_MANIFEST_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "version": (
        lambda v: type(v) is int and 1 <= v <= FORMAT_VERSION,
        f"this release reads versions up to {FORMAT_VERSION}; use a newer release",
    ),
    "block_size": (lambda v: _is_int(v) and v != 0, "give a whole number of at least 1"),
    "block_rounding": _one_of(get_args(_MANIFEST_HINTS["block_rounding"])),
    "hash_scope": _one_of(get_args(_MANIFEST_HINTS["hash_scope"])),
    "content_mode": _one_of(CONTENT_MODES),
    "block_unit": _one_of(get_args(_MANIFEST_HINTS["block_unit"])),
    "tokenizer": (lambda v: v is None or type(v) is str, "give a name or null"),
    "source": (lambda v: v is None or type(v) is str, "give a string or null"),
    "licence": (lambda v: v is None or type(v) is str, "give a string or null"),
    "time_quantum_ms": (
        lambda v: v is None or (type(v) in (int, float) and v > 0),  # type: ignore[operator]
        "give milliseconds above 0, or null",
    ),
    "chained": (_flag, "give true or false"),
    "ordered": (_flag, "give true or false"),
    "transforms": (lambda v: type(v) is list and all(type(x) is str for x in v), "give a list of sentences"),
}


def parse_manifest(value: object, where: Where) -> Manifest:
    """The object of a manifest line. Unknown keys are ignored, so that older readers survive newer writers."""
    if type(value) is not dict:
        raise UserError(where.fault("manifest", value, "give an object"))
    for name, (good, want) in _MANIFEST_CHECKS.items():
        if name in value and not good(value[name]):
            raise UserError(where.fault(f"manifest.{name}", value[name], want))
    made = {f.name: value[f.name] for f in fields(Manifest) if f.name in value}
    if "transforms" in made:
        made["transforms"] = tuple(made["transforms"])
    return Manifest(**made)


def manifest_row(manifest: Manifest) -> dict[str, Any]:
    """The manifest line of a trace file, every field spelled out. Inverse of parse_manifest."""
    row = {f.name: getattr(manifest, f.name) for f in fields(Manifest)}
    return {"manifest": {**row, "transforms": list(manifest.transforms)}}
