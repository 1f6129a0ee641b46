"""WfFormat (WfCommons) workflow graphs: one JSON document per workflow, or a folder of them.

Tasks are no LLM calls: they become nodes of kind other that take their runtime. Parents are control edges, or data
edges where the parent wrote a file that the task reads. The format has no start times: the earliest are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from traces.errors import UserError
from traces.fields import Where
from traces.graph import find_cycle, topological
from traces.importers.base import Head, Imported, ImportOptions, Notes, an_object, document, objects, seconds_ns
from traces.importers.link import Unique
from traces.manifest import parse_manifest
from traces.rows import parse_row
from traces.workflow import Dep, Manifest, Node, Workflow

TITLE = "WfFormat 1.3 to 1.6 workflow graphs (WfCommons JSON, or a folder of them)"
OURS = "joulegraph"
"""Program name of tasks that our exporter wrote; their argument is the node's row."""


def recognises(head: Head) -> bool:
    """A document with schemaVersion and workflow; a folder whose first file is one."""
    if head.is_dir:
        files = _files(head.path)
        return bool(files) and recognises(Head(files[0]))
    value = head.document
    return isinstance(value, dict) and isinstance(value.get("workflow"), dict) and "schemaVersion" in value


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.json")) if path.is_dir() else [path]


def read(path: Path, options: ImportOptions) -> Imported:
    """A document -> a workflow at time 0; runtimes -> t_end; files and commands in attrs."""
    notes = Notes()
    source = f"{path.name} (WfFormat)"
    first = document(_files(path)[0]) if _files(path) else None
    ours = first.get("joulegraph") if isinstance(first, dict) else None
    held = ours.get("manifest") if isinstance(ours, dict) else None
    manifest = parse_manifest(held, Where(str(path), 1, 1)) if held is not None else Manifest(content_mode="lengths")
    return Imported(replace(manifest, source=source, ordered=False), _workflows(path, notes), notes)


def _workflows(path: Path, notes: Notes) -> Iterator[Workflow]:
    unique = Unique()
    for file in _files(path):
        value = document(file)
        held = value.get("workflow") if isinstance(value, dict) else None
        if not isinstance(held, dict):
            raise UserError(f"{file}: no WfFormat document (object with workflow); give a WfCommons instance")
        where = Where(str(file), 1, 1)
        name = unique(str(value.get("name") or file.stem).removesuffix(".json"))
        nodes = _nodes(where, held, name, notes)
        if nodes:
            ours = value.get("joulegraph")
            class_name = ours.get("class") if isinstance(ours, dict) else None
            yield Workflow(name, nodes, str(class_name or "dag"))
        else:
            notes.count("a workflow without tasks is left out")


def _tasks(where: Where, held: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """(specification tasks, execution by task id); versions before 1.5 keep both in workflow.tasks (or jobs)."""
    split = held.get("specification")
    tasks = split.get("tasks") if isinstance(split, dict) else held.get("tasks", held.get("jobs"))
    if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
        raise UserError(where.fault("tasks", tasks, "give a list of tasks"))
    ran = objects(where, an_object(where, held, "execution"), "tasks") if "execution" in held else tasks
    return tasks, {str(t.get("id", t.get("name"))): t for t in ran}


def _nodes(where: Where, held: dict[str, Any], name: str, notes: Notes) -> tuple[Node, ...]:
    tasks, ran = _tasks(where, held)
    ids = {str(t.get("name")): str(t.get("id", t.get("name"))) for t in tasks}
    ids |= {own: own for own in (str(t.get("id", t.get("name"))) for t in tasks)}  # names repeat, ids do not
    wrote = {f: str(t.get("id", t.get("name"))) for t in tasks for f in _names(t, "outputFiles", "output")}
    ours = [_ours(where, ran.get(str(t.get("id", t.get("name"))), {})) for t in tasks]
    if tasks and all(n is not None for n in ours):
        return tuple(replace(n, workflow_id=name) for n in ours if n is not None)
    notes.say("the format has no start times: each task is taken to start when its parents have ended")
    sizes = _sizes(where, held)
    nodes = [_node(where, t, ran, name, ids, wrote, sizes, notes) for t in tasks]
    if len({n.request_id for n in nodes}) != len(nodes):
        raise UserError(where.fault("tasks.id", "(twice)", "give every task an id of its own"))
    cycle = find_cycle(nodes)
    if cycle is not None:
        raise UserError(where.fault("tasks.parents", " -> ".join(cycle[:8]), "break the cycle"))
    return _scheduled(nodes)


def _scheduled(nodes: list[Node]) -> tuple[Node, ...]:
    """Earliest start: arrival = latest end of the parents; t_end until now holds the runtime."""
    ends: dict[str, int] = {}
    out = {}
    for node in topological(nodes):
        start = max((ends[d.on] for d in node.deps), default=0)
        end = start + node.t_end_ns if node.t_end_ns is not None else None
        ends[node.request_id] = end if end is not None else start
        out[node.request_id] = replace(node, arrival_ns=start, t_end_ns=end)
    return tuple(out[n.request_id] for n in nodes)


def _node(
    where: Where,
    task: dict[str, Any],
    ran: dict[str, dict[str, Any]],
    name: str,
    ids: dict[str, str],
    wrote: dict[str, str],
    sizes: dict[str, Any],
    notes: Notes,
) -> Node:
    own = str(task.get("id", task.get("name")))
    run = ran.get(own, {})
    runtime = run.get("runtimeInSeconds", run.get("runtime"))
    if runtime is None:
        notes.count("a task without a runtime takes no time")
    if run.get("energyInKWh") is not None:
        notes.count("energyInKWh of a task is dropped: energy belongs to a run, not to a trace")
    reads, writes = _names(task, "inputFiles", "input"), _names(task, "outputFiles", "output")
    deps: dict[str, Dep] = {}
    parents = task.get("parents") or []
    if not isinstance(parents, list):
        raise UserError(where.fault("tasks.parents", parents, "give a list of task ids"))
    for parent in parents:
        on = ids.get(str(parent))
        if on is None:
            notes.count("a parent is no task of its workflow: that edge is dropped")
        else:
            deps[on] = Dep(on, "control")
    for file in reads:
        source = wrote.get(file)
        if source is not None and source != own and (source in deps or "parents" not in task):
            deps[source] = Dep(source, "data")
    command = run.get("command")
    attrs: dict[str, Any] = {
        "name": task.get("name"),
        "program": command.get("program") if isinstance(command, dict) else None,
        "input_files": {f: sizes.get(f) for f in reads} or None,
        "output_files": {f: sizes.get(f) for f in writes} or None,
        **{k: run.get(k) for k in ("avgCPU", "memoryInBytes", "coreCount", "machines", "readBytes", "writtenBytes")},
    }
    return Node(
        name,
        own,
        0,
        0,
        0,
        kind="other",
        deps=tuple(deps.values()),
        t_end_ns=seconds_ns(where, "runtimeInSeconds", runtime) if runtime is not None else None,
        attrs={k: v for k, v in attrs.items() if v is not None},
    )


def _names(task: dict[str, Any], field: str, link: str) -> list[str]:
    """File ids a task reads or writes, in the two ways of writing them."""
    files = task.get(field)
    if isinstance(files, list):
        return [str(f) for f in files]
    return [
        str(f.get("id", f.get("name")))
        for f in task.get("files") or ()
        if isinstance(f, dict) and f.get("link") == link
    ]


def _sizes(where: Where, held: dict[str, Any]) -> dict[str, Any]:
    files = objects(where, an_object(where, held, "specification"), "files")
    return {str(f.get("id")): f.get("sizeInBytes") for f in files}


def _ours(where: Where, run: dict[str, Any]) -> Node | None:
    """The node that our exporter put into a task's command, None for foreign tasks."""
    command = run.get("command")
    if not isinstance(command, dict) or command.get("program") != OURS:
        return None
    try:
        row = orjson.loads(command["arguments"][0])
    except (KeyError, IndexError, TypeError, orjson.JSONDecodeError):
        return None
    return parse_row(row, where)[0] if isinstance(row, dict) else None
