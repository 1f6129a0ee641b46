"""Mooncake rows: {timestamp, input_length, output_length, hash_ids}. Requests by arrival; graphs and ids are lost."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from traces.exporters.lines import arrivals, llm_nodes, milliseconds, write_lines
from traces.importers.base import Notes
from traces.workflow import Manifest, Workflow

TITLE = "Mooncake request trace: arrivals, lengths and block ids; graphs are lost"


def write(out: Path, manifest: Manifest, flow: Iterable[Workflow], notes: Notes) -> None:
    """Rows sorted by arrival: rows of later nodes are held until every workflow before them has arrived."""
    if manifest.hash_scope != "global":
        notes.say(f"block ids of scope {manifest.hash_scope} are made global: equal ids of two scopes become different")
    if manifest.block_size != 512:
        notes.say(f"the format states no block size: readers must be told {manifest.block_size}")
    write_lines(out, _sorted(manifest, flow, notes))


def _sorted(manifest: Manifest, flow: Iterable[Workflow], notes: Notes) -> Iterator[dict[str, Any]]:
    held: list[tuple[int, int, dict[str, Any]]] = []
    number, ids = 0, Ids(manifest)
    for workflow in flow:
        while held and held[0][0] < workflow.arrival_ns:
            yield heapq.heappop(held)[2]
        for at, row in _rows(workflow, ids, notes):
            number += 1
            heapq.heappush(held, (at, number, row))
    while held:
        yield heapq.heappop(held)[2]


def _rows(workflow: Workflow, ids: Ids, notes: Notes) -> Iterator[tuple[int, dict[str, Any]]]:
    at = arrivals(workflow, notes)
    for node in llm_nodes(workflow, notes):
        if node.deps:
            notes.count("an edge is lost", len(node.deps))
        if node.messages is not None or node.prompt is not None or node.token_ids is not None:
            notes.count("the content of a request is lost")
        arrival = at.get(node.request_id, node.arrival_ns)
        row: dict[str, Any] = {
            "timestamp": milliseconds(arrival),
            "input_length": node.input_length,
            "output_length": node.output_length,
        }
        if node.hash_ids is not None:
            row["hash_ids"] = ids.of(node.hash_ids, node.workflow_id, node.session_id)
        yield arrival, row


class Ids:
    """Block ids as global ids: themselves, or renumbered where two scopes may use the same id for different content."""

    def __init__(self, manifest: Manifest) -> None:
        self._scope = manifest.hash_scope
        self._seen: dict[tuple[str | None, int], int] = {}

    def of(self, blocks: tuple[int, ...], workflow_id: str, session_id: str | None) -> list[int]:
        """The ids to write."""
        if self._scope == "global":
            return list(blocks)
        scope = workflow_id if self._scope == "workflow" else session_id
        return [self._seen.setdefault((scope, b), len(self._seen)) for b in blocks]
