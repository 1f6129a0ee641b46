"""RAGPulse: JSON Lines of a RAG service; hash_ids is an object of chunk ids per component of the prompt.

Chunk ids name whole chunks (system prompt, passages, history ...), not prefix blocks of equal length, and depend on
nothing before them: they cannot become hash_ids without inventing sharing. They are kept per component in attrs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, json_rows, seconds_ns, whole
from traces.importers.link import Keyed, gather
from traces.quantum import time_quantum_ms
from traces.workflow import Dep, Manifest, Node, Workflow

TITLE = "RAGPulse request trace (0_trace.jsonl)"
_LOOK = 20_000


def recognises(head: Head) -> bool:
    """Rows whose hash_ids is an object."""
    return isinstance(head.row.get("hash_ids"), dict) and "input_length" in head.row


def read(path: Path, options: ImportOptions) -> Imported:
    """session_id -> workflow, turns as conversation edges that do not block (no end times), components in attrs."""
    notes = Notes()
    notes.say("the source has no end times: turns arrive when recorded, conversation edges do not block")
    notes.say("chunk ids are not prefix blocks: kept as attrs.components, prefix sharing is not replayed")
    stamps = [seconds_ns(w, "timestamp", row.get("timestamp")) for w, row in json_rows(path)]
    manifest = Manifest(
        content_mode="lengths",
        source=f"{path.name} (RAGPulse)",
        time_quantum_ms=time_quantum_ms(stamps[:_LOOK]),
        chained=False,
    )
    return Imported(manifest, _workflows(path), notes)


def _workflows(path: Path) -> Iterator[Workflow]:
    def rows() -> Iterator[Keyed]:
        for where, row in json_rows(path):
            node = _node(where, row)
            yield Keyed(node.session_id, node.arrival_ns, node)

    for group in gather(rows(), rows()):
        nodes = sorted(group, key=lambda n: int(n.arrival_ns))
        yield Workflow(nodes[0].workflow_id, tuple(_chain(nodes)), "rag")


def _chain(nodes: list[Node]) -> Iterator[Node]:
    for index, node in enumerate(nodes):
        before = (Dep(nodes[index - 1].request_id, "conversation", blocking=False),) if index else ()
        yield replace(node, deps=before)


def _node(where: Where, row: dict[str, Any]) -> Node:
    parts = row.get("hash_ids")
    if not isinstance(parts, dict):
        raise UserError(where.fault("hash_ids", parts, "give an object of lists of chunk ids"))
    session = str(row["session_id"]) if row.get("session_id") else None
    name = f"row{where.row}"
    return Node(
        session or name,
        name,
        seconds_ns(where, "timestamp", row.get("timestamp")),
        whole(where, "input_length", row.get("input_length")),
        whole(where, "output_length", row.get("output_length")),
        session_id=session,
        attrs={"components": parts},
    )
