"""JSON Lines out, whole or not at all; and the instants that planned nodes are given where a format wants a time."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from traces.graph import topological
from traces.importers.base import Notes
from traces.workflow import Node, Workflow

PLANNED = "a node has no recorded arrival: written with the earliest its delays allow, as if serving took no time"


def write_lines(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects one per line (gzip by suffix .gz) and put the file in place at the end."""
    part = out.with_name(out.name + ".part")
    try:
        with gzip.open(part, "wb") if out.suffix == ".gz" else part.open("wb") as file:
            for row in rows:
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def milliseconds(ns: int) -> int | float:
    """ns as ms: a whole number where it is one."""
    return ns // 1_000_000 if ns % 1_000_000 == 0 else ns / 1_000_000


def arrivals(workflow: Workflow, notes: Notes) -> dict[str, int]:
    """request_id -> arrival, ns: as recorded; planned dependents (arrival 0) get the earliest instant."""
    found: dict[str, int] = {}
    ends: dict[str, int] = {}
    for node in topological(workflow.nodes):
        at = node.arrival_ns
        before = [ends[d.on] for d in node.blocking if d.on in ends]
        if before and at == 0:
            at = max(before) + node.delay_ns
            notes.count(PLANNED)
        found[node.request_id] = at
        ends[node.request_id] = at if node.kind == "llm" or node.t_end_ns is None else at + _took(node)
    return found


def _took(node: Node) -> int:
    return max(0, (node.t_end_ns or 0) - node.arrival_ns)


def llm_nodes(workflow: Workflow, notes: Notes) -> Iterator[Node]:
    """The LLM calls; others are counted as lost."""
    for node in workflow.nodes:
        if node.kind == "llm":
            yield node
        else:
            notes.count(f"a node of kind {node.kind} is left out")
