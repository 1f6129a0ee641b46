"""Dynamo's agentic_mooncake rows: Mooncake's with request_id, session_id, wait_for, delay, tool_wait_ms.

Request ids become workflow:request (they must be unique in the file); workflow and class ride along as columns that
its readers ignore. There delay and tool_wait_ms add up, here the second is part of the first: the delay is split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from traces.exporters.lines import llm_nodes, milliseconds, write_lines
from traces.exporters.mooncake import Ids
from traces.importers.base import Notes
from traces.workflow import Dep, Manifest, Node, Workflow

TITLE = "Dynamo agentic_mooncake rows: graphs by wait_for; only blocking edges on the end of a call survive"


def write(out: Path, manifest: Manifest, flow: Iterable[Workflow], notes: Notes) -> None:
    """One row per LLM call, workflows in the order given."""
    notes.say("kinds, provenance and anchors of edges, times of replies, models and content are lost")
    if manifest.block_size != 512:
        size = manifest.block_size
        notes.say(f"the format states no block size: other readers have to be told {size} (--trace-block-size {size})")
    ids = Ids(manifest)
    write_lines(out, (row for workflow in flow for row in _rows(workflow, ids, notes)))


def _rows(workflow: Workflow, ids: Ids, notes: Notes) -> Iterator[dict[str, Any]]:
    by_id = {n.request_id: n for n in workflow.nodes}
    for node in llm_nodes(workflow, notes):
        waits, tool_ns = _waits(node, by_id, notes)
        row: dict[str, Any] = {
            "request_id": f"{node.workflow_id}:{node.request_id}",
            "session_id": node.session_id or node.agent_id or node.workflow_id,
            "input_length": node.input_length,
            "output_length": node.output_length,
        }
        if node.hash_ids is not None:
            row["hash_ids"] = ids.of(node.hash_ids, node.workflow_id, node.session_id)
        if waits:
            row["wait_for"] = [f"{node.workflow_id}:{on}" for on in waits]
            tool = min(node.delay_ns, node.tool_wait_ns)
            row["delay"] = milliseconds(node.delay_ns - tool)
            row["tool_wait_ms"] = milliseconds(tool + tool_ns)
        else:
            row["timestamp"] = milliseconds(node.arrival_ns)
        yield {**row, "workflow": node.workflow_id, "class": workflow.class_name}


def _waits(node: Node, by_id: dict[str, Node], notes: Notes) -> tuple[list[str], int]:
    """The calls a node waits for (through tools to the calls before them), and the time of those tools."""
    waits: dict[str, None] = {}
    tool_ns = 0
    for dep in node.deps:
        if not dep.blocking:
            notes.count("an edge that does not block is lost")
            continue
        source = by_id.get(dep.on)
        if source is None or source.kind == "llm":
            _keep(dep, waits, notes)
            continue
        took = max(0, (source.t_end_ns or 0) - source.arrival_ns) if source.t_end_ns is not None else 0
        above, more = _waits(source, by_id, notes)
        waits |= dict.fromkeys(above)
        tool_ns = max(tool_ns, took + more + source.delay_ns)
    return list(waits), tool_ns


def _keep(dep: Dep, waits: dict[str, None], notes: Notes) -> None:
    if dep.anchor != "end":
        notes.count(f"an edge on {dep.anchor} becomes one on the end")
    waits[dep.on] = None
