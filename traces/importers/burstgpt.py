"""BurstGPT: CSV of Azure OpenAI requests. v1 and v2 without sessions; v3 with Session ID and Elapsed time.

A response of 0 tokens is a failed request (status error). A session is a workflow: its turns in order, blocking where
the elapsed time shows that the turn before had ended. Rows without a session are workflows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, csv_rows, seconds_ns, whole
from traces.importers.link import Keyed, Links, gather, settle
from traces.quantum import time_quantum_ms
from traces.workflow import Manifest, Node, Workflow

TITLE = "BurstGPT v1, v2 and v3 (CSV)"
COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")
_LOOK = 20_000


def recognises(head: Head) -> bool:
    """The columns, in any order."""
    return set(COLUMNS) <= set(head.columns)


def read(path: Path, options: ImportOptions) -> Imported:
    """Times relative to the earliest row; Elapsed time -> t_end; Log Type in attrs; session order -> conversation."""
    notes = Notes()
    first: int | None = None
    stamps: list[int] = []
    for where, row in csv_rows(path, COLUMNS):
        at = seconds_ns(where, "Timestamp", row["Timestamp"])
        first = at if first is None else min(first, at)
        if len(stamps) < _LOOK:
            stamps.append(at)
    if first:
        notes.say(f"times are relative to {first / 1e9:g} s of the source's clock (0:00 of its first day)")
    manifest = Manifest(
        content_mode="lengths", source=f"{path.name} (BurstGPT)", time_quantum_ms=time_quantum_ms(stamps)
    )
    return Imported(manifest, _workflows(path, first or 0, notes), notes)


def _workflows(path: Path, first: int, notes: Notes) -> Iterator[Workflow]:
    def rows(told: Notes) -> Iterator[Keyed]:
        for where, row in csv_rows(path, COLUMNS):
            node = _node(where, row, first, told)
            yield Keyed(node.session_id, node.arrival_ns, node)

    for nodes in gather(rows(Notes()), rows(notes)):
        links = Links()
        links.follow(sorted(nodes, key=lambda n: n.arrival_ns))
        settled = settle(links.on(nodes), notes)
        yield Workflow(settled[0].workflow_id, settled, _class_name(settled[0]))


def _class_name(node: Node) -> str:
    return str(node.attrs["log_type"]).removesuffix(" log").lower() or "workflow"


def _node(where: Where, row: dict[str, str], first: int, notes: Notes) -> Node:
    session = row.get("Session ID") or None
    arrival = seconds_ns(where, "Timestamp", row["Timestamp"]) - first
    output = whole(where, "Response tokens", row["Response tokens"])
    elapsed = row.get("Elapsed time") or None
    if output == 0:
        notes.count("a request failed in the source (0 response tokens): kept with status error")
    name = f"row{where.row}"
    return Node(
        session or name,
        name,
        arrival,
        whole(where, "Request tokens", row["Request tokens"]),
        output,
        session_id=session,
        model=row["Model"] or None,
        status="ok" if output else "error",
        t_end_ns=arrival + seconds_ns(where, "Elapsed time", elapsed) if elapsed is not None else None,
        attrs={"log_type": row["Log Type"]},
    )
