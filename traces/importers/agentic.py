"""Dynamo's agentic_mooncake rows: Mooncake rows with request_id, session_id, wait_for, delay and tool_wait_ms.

There delay and tool_wait_ms add up; here delay is the whole and tool_wait_ms a part of it: they are summed. A workflow
is what wait_for and sessions tie together. The file does not state its block size: it is worked out from the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import MAX_S, MS, Head, Imported, ImportOptions, Notes, block_ids, json_rows, whole
from traces.importers.link import Dense, Keyed, gather
from traces.quantum import block_rule, time_quantum_ms
from traces.workflow import Dep, DepKind, Manifest, Node, Workflow

TITLE = "Dynamo agentic_mooncake rows (JSON Lines)"
_KEPT = ("priority", "request_kind", "branches", "prefix_reset", "tool_events")


def recognises(head: Head) -> bool:
    """Mooncake's lengths with ids, without a format name of another kind."""
    keys = head.keys
    return keys >= {"request_id", "input_length", "output_length"} and not keys & {"schema", "deps"}


def read(path: Path, options: ImportOptions) -> Imported:
    """Rows 1:1; wait_for -> blocking edges (recorded); wide block ids become small ones."""
    notes = Notes()
    groups = _Groups(path)
    rule = block_rule(groups.pairs)
    if groups.pairs and rule is None:
        notes.say("the number of block ids fits no block size: taken as 512 tokens, rounded up")
    size, rounding = rule or (512, "ceil")
    manifest = Manifest(
        block_size=size,
        block_rounding=rounding,  # type: ignore[arg-type]
        content_mode="hash" if groups.pairs else "lengths",
        source=f"{path.name} (agentic_mooncake)",
        time_quantum_ms=time_quantum_ms(groups.stamps),
    )
    return Imported(manifest, _workflows(path, groups, notes), notes)


class _Groups:
    """The first pass: which rows belong together (union-find over wait_for and session), and the block rule."""

    def __init__(self, path: Path) -> None:
        self._up: dict[tuple[str, str], tuple[str, str]] = {}
        self.session: dict[str, str | None] = {}
        self.spawned: set[tuple[str, str]] = set()
        self.wide = False
        self.pairs: set[tuple[int, int]] = set()
        self.stamps: list[int] = []
        for where, row in json_rows(path):
            self._take(where, row)

    def _take(self, where: Where, row: dict[str, Any]) -> None:
        name = text(where, "request_id", row.get("request_id"))
        if name in self.session:
            raise UserError(where.fault("request_id", name, "make it unique: an earlier row has it"))
        session, group = row.get("session_id"), row.get("workflow")
        self.session[name] = session
        self._up.setdefault(("request", name), ("request", name))
        if group is not None:  # our own export says what belongs together
            self._join(("request", name), ("workflow", str(group)))
        elif session is not None:
            self._join(("request", name), ("session", str(session)))
        for on in _names(where, row, "wait_for"):
            self._join(("request", name), ("request", on))
        self.spawned |= {(name, child) for child in _names(where, row, "branches")}
        if blocks := block_ids(where, row, "hash_ids"):
            self.wide |= max(blocks) >= 2**63
            self.pairs.add((whole(where, "input_length", row.get("input_length")), len(blocks)))
        if row.get("timestamp") is not None and not row.get("wait_for"):
            self.stamps.append(milliseconds_ns(where, "timestamp", row["timestamp"]))

    def root(self, of: tuple[str, str]) -> tuple[str, str]:
        """The representative of a group."""
        at = of
        while self._up.get(at, at) != at:
            self._up[at] = self._up.get(self._up[at], self._up[at])
            at = self._up[at]
        return at

    def _join(self, a: tuple[str, str], b: tuple[str, str]) -> None:
        self._up.setdefault(b, b)
        top = sorted((self.root(a), self.root(b)), key=lambda k: ("workflow", "session", "request").index(k[0]))
        self._up[top[1]] = top[0]


def text(where: Where, name: str, value: object) -> str:
    """A string that is not empty (a number becomes its digits)."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise UserError(where.fault(name, value, "give a string that is not empty"))
    return str(value)


def milliseconds_ns(where: Where, name: str, value: object) -> int:
    """Milliseconds as ns."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_S * 1000:
        raise UserError(where.fault(name, value, f"give milliseconds, a number from 0 to {MAX_S * 1000}"))
    return value * MS if isinstance(value, int) else round(value * MS)


def _names(where: Where, row: dict[str, Any], field: str) -> list[str]:
    value = row.get(field) or []
    if not isinstance(value, list):
        raise UserError(where.fault(field, value, "give a list of request ids"))
    return [str(v["request_id"]) if isinstance(v, dict) and "request_id" in v else str(v) for v in value]


def _workflows(path: Path, groups: _Groups, notes: Notes) -> Iterator[Workflow]:
    def rows() -> Iterator[Keyed]:
        for where, row in json_rows(path):
            root = None if row.get("wait_for") else milliseconds_ns(where, "timestamp", row.get("timestamp") or 0)
            yield Keyed(groups.root(("request", str(row["request_id"]))), root, (where, row))

    dense = Dense()
    for group in gather(rows(), rows()):
        row = group[0][1]
        key = groups.root(("request", str(row["request_id"])))
        nodes = tuple(_node(w, r, key[1], groups, dense if groups.wide else None, notes) for w, r in group)
        yield Workflow(key[1], nodes, str(row.get("class") or "agentic"))


def _node(where: Where, row: dict[str, Any], name: str, groups: _Groups, dense: Dense | None, notes: Notes) -> Node:
    waits = _names(where, row, "wait_for")
    for on in waits:
        if on not in groups.session:
            raise UserError(where.fault("wait_for", on, "name a request_id of this file"))
    if row.get("timestamp") is None and not waits:
        raise UserError(where.fault("timestamp", None, "give one: the row waits for nothing"))
    tool = milliseconds_ns(where, "tool_wait_ms", row.get("tool_wait_ms") or 0)
    if row.get("output_token_ids"):
        notes.count("output_token_ids of a row are dropped")
    own, blocks = str(row["request_id"]), block_ids(where, row, "hash_ids")
    return Node(
        name,
        _plain(own, row),
        milliseconds_ns(where, "timestamp", row.get("timestamp") or 0),
        whole(where, "input_length", row.get("input_length")),
        whole(where, "output_length", row.get("output_length")),
        session_id=str(row["session_id"]) if row.get("session_id") is not None else None,
        delay_ns=milliseconds_ns(where, "delay", row.get("delay") or 0) + tool if waits else 0,
        tool_wait_ns=tool if waits else 0,
        deps=tuple(Dep(_plain(on, row), _kind(own, on, row, groups)) for on in dict.fromkeys(waits)),
        hash_ids=None if blocks is None else dense(blocks) if dense is not None else tuple(blocks),
        model=row.get("model"),
        attrs={k: row[k] for k in _KEPT if row.get(k)},
    )


def _plain(name: str, row: dict[str, Any]) -> str:
    """A request id without the workflow that our exporter puts before it."""
    group = row.get("workflow")
    return name.removeprefix(f"{group}:") if group is not None and name != f"{group}:" else name


def _kind(own: str, on: str, row: dict[str, Any], groups: _Groups) -> DepKind:
    if (on, own) in groups.spawned:
        return "spawn"
    if groups.session.get(on) == row.get("session_id"):
        return "conversation"
    return "join" if len(row.get("wait_for") or ()) > 1 else "control"
