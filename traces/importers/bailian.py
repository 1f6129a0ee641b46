"""Qwen-Bailian anonymised traces: JSON Lines with chat_id, parent_chat_id, turn, type, blocks of 16 tokens.

The only public production trace that names each turn's predecessor. Rows of a conversation are interleaved with others:
two passes. The source has no end times, so a turn keeps its recorded arrival and its edge does not block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, block_ids, json_rows, seconds_ns, whole
from traces.importers.link import Keyed, gather
from traces.quantum import block_rule
from traces.workflow import Dep, Manifest, Node, Workflow

TITLE = "Qwen-Bailian anonymised usage traces (to-C, to-B, coder, thinking)"
_LOOK = 5000


def recognises(head: Head) -> bool:
    """Rows that name a chat and its parent."""
    return head.keys >= {"chat_id", "parent_chat_id", "timestamp"}


def read(path: Path, options: ImportOptions) -> Imported:
    """chat_id -> request_id, the root's chat_id -> workflow and session; type and turn in attrs; conversation edges."""
    notes = Notes()
    notes.say("the source has no end times: turns arrive when recorded, conversation edges do not block")
    roots, pairs, chained = _scan(path, notes)
    rule = block_rule(pairs) or (16, "ceil")
    if pairs and block_rule(pairs) is None:
        notes.say("the number of block ids fits no block size: taken as 16 tokens, rounded up")
    if pairs and chained:
        notes.say(f"in the first {_LOOK} rows every block id has one predecessor: taken as chained (id implies prefix)")
    manifest = Manifest(
        block_size=rule[0],
        block_rounding=rule[1],  # type: ignore[arg-type]
        content_mode="hash" if pairs else "lengths",
        source=f"{path.name} (Qwen-Bailian)",
        chained=chained,
    )
    return Imported(manifest, _workflows(path, roots), notes)


def _scan(path: Path, notes: Notes) -> tuple[dict[int, int], set[tuple[int, int]], bool]:
    """chat_id -> chat_id of its root; (tokens, blocks) pairs; whether ids look chained."""
    roots: dict[int, int] = {}
    pairs: set[tuple[int, int]] = set()
    for where, row in json_rows(path):
        chat, parent = _ids(where, row)
        if chat in roots:
            raise UserError(where.fault("chat_id", chat, "make it unique: an earlier row has it"))
        if parent >= 0 and parent not in roots:
            notes.count("a turn's parent lies outside the file: it starts a workflow of its own")
        roots[chat] = roots.get(parent, chat)
        if blocks := block_ids(where, row, "hash_ids"):
            pairs.add((whole(where, "input_length", row.get("input_length")), len(blocks)))
    before: dict[Any, Any] = {}
    chained = True
    for _, row in islice(json_rows(path), _LOOK):
        last = None
        for block in row.get("hash_ids") or ():
            chained &= before.setdefault(block, last) == last
            last = block
    return roots, pairs, chained


def _ids(where: Where, row: dict[str, Any]) -> tuple[int, int]:
    parent = row.get("parent_chat_id")
    return whole(where, "chat_id", row.get("chat_id")), -1 if parent in (-1, None) else whole(
        where, "parent_chat_id", parent
    )


def _workflows(path: Path, roots: dict[int, int]) -> Iterator[Workflow]:
    def rows() -> Iterator[Keyed]:
        for where, row in json_rows(path):
            node = _node(where, row, roots)
            yield Keyed(node.workflow_id, node.arrival_ns, node)

    for nodes in gather(rows(), rows()):
        yield Workflow(nodes[0].workflow_id, tuple(nodes), str(nodes[0].attrs.get("type", "workflow")))


def _node(where: Where, row: dict[str, Any], roots: dict[int, int]) -> Node:
    chat, parent = _ids(where, row)
    blocks = block_ids(where, row, "hash_ids")
    known = parent in roots
    root = str(roots[chat])
    return Node(
        root,
        str(chat),
        seconds_ns(where, "timestamp", row.get("timestamp")),
        whole(where, "input_length", row.get("input_length")),
        whole(where, "output_length", row.get("output_length")),
        session_id=root,
        deps=(Dep(str(parent), "conversation", blocking=False),) if known else (),
        hash_ids=tuple(blocks) if blocks is not None else None,
        attrs={k: row[k] for k in ("type", "turn") if k in row},
    )
