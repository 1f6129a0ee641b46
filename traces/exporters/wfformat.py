"""WfFormat 1.5: one document per workflow; out is a .json file (one workflow) or a new folder (one file each).

Calls become tasks; blocking edges are parents; an edge that hands text on is a file that one task writes and another
reads. What WfFormat has no word for rides in each task's command, so that the import gives the same workflow back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson

from traces.errors import UserError
from traces.importers.base import Notes
from traces.manifest import manifest_row
from traces.workflow import Manifest, Node, Workflow, node_row

TITLE = "WfFormat 1.5 documents (a .json file for one workflow, else a folder)"
_DATA = ("data", "conversation", "tool", "join")


def write(out: Path, manifest: Manifest, flow: Iterable[Workflow], notes: Notes) -> None:
    """UserError when out is a file and there are several workflows, or a folder that is not empty."""
    workflows = iter(flow)
    first = list(islice(workflows, 2))
    if not first:
        raise UserError(f"{out}: nothing to export; give a trace with at least one workflow")
    notes.say("arrival times, block ids and tokens have no place in WfFormat: kept in each task's command only")
    if out.suffix == ".json":
        if len(first) > 1:
            raise UserError(f"{out}: one file holds one workflow, the trace has more; give a folder or --limit 1")
        _write(out, first[0], manifest, notes)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for number, workflow in enumerate(chain(first, workflows), 1):
        _write(out / f"{number:06d}.json", workflow, manifest, notes)


def _write(path: Path, workflow: Workflow, manifest: Manifest, notes: Notes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(orjson.dumps(document(workflow, manifest, notes), option=orjson.OPT_INDENT_2))
    os.replace(part, path)


def document(workflow: Workflow, manifest: Manifest, notes: Notes) -> dict[str, Any]:
    """One workflow as a WfFormat object."""
    children: dict[str, list[str]] = {}
    for node in workflow.nodes:
        for dep in node.blocking:
            children.setdefault(dep.on, []).append(node.request_id)
    tasks = [_task(node, children.get(node.request_id, []), workflow) for node in workflow.nodes]
    files = sorted({f for t in tasks for f in (*t["inputFiles"], *t["outputFiles"])})
    ran = [_run(node, notes) for node in workflow.nodes]
    ends = [n.t_end_ns for n in workflow.nodes if n.t_end_ns is not None]
    starts = [n.arrival_ns for n in workflow.nodes]
    makespan = (max(ends) - min(starts)) / 1e9 if ends else 0.0
    return {
        "name": workflow.workflow_id,
        "schemaVersion": "1.5",
        "joulegraph": {"class": workflow.class_name, **manifest_row(manifest)},
        "workflow": {
            "specification": {"tasks": tasks, "files": [{"id": f, "sizeInBytes": 0} for f in files]},
            "execution": {"makespanInSeconds": max(0.0, makespan), "executedAt": "1970-01-01T00:00:00Z", "tasks": ran},
        },
    }


def _task(node: Node, children: list[str], workflow: Workflow) -> dict[str, Any]:
    ids = {n.request_id for n in workflow.nodes}
    reads = [f"{d.on}.output" for d in node.blocking if d.kind in _DATA and d.on in ids]
    return {
        "id": node.request_id,
        "name": node.agent_id or node.kind,
        "parents": list(dict.fromkeys(d.on for d in node.blocking)),
        "children": list(dict.fromkeys(children)),
        "inputFiles": list(dict.fromkeys(reads)),
        "outputFiles": [f"{node.request_id}.output"],
    }


def _run(node: Node, notes: Notes) -> dict[str, Any]:
    """The execution of a task; runtime 0 where none was recorded (the schema wants a number)."""
    if node.t_end_ns is None:
        notes.count("a node has no recorded end: its task has runtime 0")
    took = max(0, node.t_end_ns - node.arrival_ns) if node.t_end_ns is not None else 0
    row = orjson.dumps(node_row(node)).decode()
    return {
        "id": node.request_id,
        "runtimeInSeconds": took / 1e9,
        "command": {"program": "joulegraph", "arguments": [row]},
    }
