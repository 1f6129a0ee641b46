"""Our own run directories as traces: what the proxy recorded, or what a replay planned.

A folder with trace.jsonl was a replay (or demo): that plan is the trace, exactly. Else requests.*.jsonl (what the proxy
saw), else dispatch.*.jsonl (what a generator did) become nodes with their observed times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from traces.errors import UserError
from traces.exact import FIELDS, link
from traces.importers.base import Head, Imported, ImportOptions, Notes
from traces.importers.link import Unique, settle
from traces.importers.prefixes import BLOCK_TOKENS, Prefixes, continuations
from traces.quantum import time_quantum_ms
from traces.records import DispatchRecord, RequestRecord, from_row
from traces.rundir import RunDir
from traces.trace import read_trace
from traces.workflow import APIS, Anchor, ContentMode, Dep, DepKind, Extends, Manifest, Node, Workflow

TITLE = "a run directory of joulegraph (recorded by proxy, replay or demo)"


def recognises(head: Head) -> bool:
    """A folder with run.json."""
    return head.is_dir and (head.path / "run.json").is_file()


def read(path: Path, options: ImportOptions) -> Imported:
    """The best source the folder holds; a note says which it was. UserError when it holds none."""
    run, notes = RunDir.open(path), Notes()
    if run.file("trace.jsonl").is_file():
        notes.say("taken from the plan (trace.jsonl) of a replayed run, with the arrivals it had there")
        return _plan(run, notes)
    for name, reader in (("requests", _requests), ("dispatch", _dispatches)):
        if run.journals(name):
            notes.say(f"taken from {name}.*.jsonl of a run: arrivals are when requests {_WHEN[name]}")
            nodes, manifest = reader(run, notes)
            if not nodes:
                why = "; ".join(notes.sentences()[1:]) or "no row of its journals is one"
                raise UserError(f"{path}: recorded no request that can be replayed ({why}); record some first")
            return Imported(replace(manifest, source=f"{path.name} (run directory)"), _workflows(nodes, notes), notes)
    raise UserError(
        f"{path}: holds no trace.jsonl, requests.*.jsonl or dispatch.*.jsonl; give the folder of a recording"
    )


def _plan(run: RunDir, notes: Notes) -> Imported:
    """What was replayed. Arrivals may have been dithered or drawn anew: quantum and order are what they show now."""
    trace = read_trace(run.file("trace.jsonl"))
    stamps = [n.arrival_ns for n in islice(trace, _LOOK) if not n.blocking]
    manifest = replace(trace.manifest, time_quantum_ms=time_quantum_ms(stamps), ordered=False)
    return Imported(manifest, replace(trace, manifest=manifest).workflows(), notes)


_LOOK = 5_000
_BLOCK_BYTES = 128
"""where the recording does not say"""
_WHEN = {"requests": "reached the proxy", "dispatch": "were due"}


def _requests(run: RunDir, notes: Notes) -> tuple[list[tuple[Node, str | None]], Manifest]:
    records = sorted(_generations(run, notes), key=lambda r: r.t_arrival_ns)
    prefixes = Prefixes(_block_bytes(run))
    paths = [prefixes.path(r) for r in records]
    edges = link([{name: getattr(r, name) for name in FIELDS} for r in records])
    workflows: list[str] = []
    untagged: dict[str, str] = {}
    unique: dict[str, Unique] = {}
    made: list[Node] = []
    for record, path, on, deps in zip(records, paths, continuations(records, paths), edges, strict=True):
        own = record.workflow_id or record.session_id
        named = next((untagged[dep["on"]] for dep in deps if dep.get("on") in untagged), None) if own is None else None
        if own is None and on is not None:
            notes.count("an untagged request is in the workflow of the one whose conversation it continues")
        elif named is not None:
            notes.count("an untagged request is in the workflow of the one whose tool call or response it names")
        workflow = own or (workflows[on.before] if on is not None else named or record.request_id)
        workflows.append(workflow)
        if own is None:
            untagged[record.request_id] = workflow
        name = unique.setdefault(workflow, Unique())(record.node_id or record.request_id)
        ids = prefixes.hash_ids(path, record.prompt_tokens or 0) if path.marks else None
        node = _request(record, deps, workflow, name, ids)
        made.append(node if on is None else _continuing(node, made[on.before], on.extends))
    mode: ContentMode = "text" if any(r.content is not None for r in records) else "hash"
    if not any(n.hash_ids for n in made):
        mode = "text" if mode == "text" else "lengths"
    else:
        notes.say(
            "prompts were recorded as digests of bytes: block ids name what prompts share, its tokens interpolated by"
            " bytes between the counts that usage gave"
        )
    manifest = Manifest(block_size=BLOCK_TOKENS, block_rounding="floor", content_mode=mode)
    return list(zip(made, (r.class_name for r in records), strict=True)), manifest


def _generations(run: RunDir, notes: Notes) -> Iterator[RequestRecord]:
    for row in run.rows("requests"):
        record = _record(RequestRecord, row, run, "requests")
        if record.api is None:
            notes.count("a request to another route than generation is left out")
        elif record.prompt_tokens is None or record.completion_tokens is None:
            notes.count("a request without usage (failed, or the engine reported none) is left out")
        else:
            yield record


def _block_bytes(run: RunDir) -> int:
    """Bytes per recorded block, as the run's manifest says."""
    size = (run.info.get("manifest") or {}).get("block_size")
    return size if isinstance(size, int) and size > 0 else _BLOCK_BYTES


def _continuing(node: Node, before: Node, extends: Extends) -> Node:
    """A node with the edge to the one it continues; in kept text the live answer may take the recorded one's place."""
    known = next((d for d in node.deps if d.on == before.request_id), None)
    edge = known or Dep(before.request_id, "conversation", provenance="inferred:messages", confidence=0.95)
    deps = (*(d for d in node.deps if d is not known), replace(edge, extends=extends))
    node = replace(node, deps=deps)
    if node.messages is None or before.messages is None or len(node.messages) <= len(before.messages):
        return node
    answer, *rest = node.messages[len(before.messages) :]
    if extends == "answer" and answer.keys() == {"role", "content"} and isinstance(answer["content"], str):
        answer = {**answer, "output_of": before.request_id}
    return replace(node, messages=(*before.messages, answer, *rest))


def _request(
    record: RequestRecord, deps: list[dict[str, Any]], workflow: str, own: str, hash_ids: tuple[int, ...] | None
) -> Node:
    content = record.content or {}
    messages = content.get("messages")
    prompt = content.get("prompt")
    return Node(
        workflow,
        own,
        record.t_arrival_ns,
        record.prompt_tokens or 0,
        record.completion_tokens or 0,
        session_id=record.session_id,
        agent_id=record.agent_id,
        parent_agent_id=record.parent_agent_id,
        deps=_deps(deps),
        cached_length=record.cached_tokens,
        hash_ids=hash_ids,
        messages=tuple(messages) if isinstance(messages, list) else None,
        prompt=prompt if isinstance(prompt, str) else None,
        output=content.get("output"),
        model=record.model,
        api=record.api if record.api in APIS else "chat",  # type: ignore[arg-type]
        stream=record.stream,
        sampling=record.sampling,
        tools=tuple(content["tools"]) if isinstance(content.get("tools"), list) else None,
        status="ok" if record.outcome == "ok" else "error",
        finish_reason=record.finish_reason,
        t_first_token_ns=record.t_first_token_ns,
        t_end_ns=record.t_end_ns,
        attrs={"outcome": record.outcome} if record.outcome != "ok" else {},
    )


def _dispatches(run: RunDir, notes: Notes) -> tuple[list[tuple[Node, str | None]], Manifest]:
    unique: dict[str, Unique] = {}
    made = []
    for row in run.rows("dispatch"):
        record = _record(DispatchRecord, row, run, "dispatch")
        tokens = record.prompt_tokens if record.prompt_tokens is not None else record.planned_input_tokens
        output = record.completion_tokens if record.completion_tokens is not None else record.planned_output_tokens
        if record.kind == "llm" and (tokens is None or output is None):
            notes.count("a request without planned or measured lengths is left out")
            continue
        node = Node(
            record.workflow_id,
            unique.setdefault(record.workflow_id, Unique())(record.request_id),
            record.due_ns,
            tokens or 0,
            output or 0,
            agent_id=record.agent_id,
            kind=record.kind,
            deps=_deps(record.deps),
            cached_length=record.cached_tokens,
            model=record.model,
            api=record.api if record.api in APIS else "completions",
            status="ok" if record.outcome == "ok" else "error",
            finish_reason=record.finish_reason,
            t_first_token_ns=record.t_first_token_ns,
            t_end_ns=record.t_end_ns,
            attrs={"outcome": record.outcome} if record.outcome != "ok" else {},
        )
        made.append((node, record.class_name))
    return made, Manifest(content_mode="lengths")


def _record(cls: type[Any], row: dict[str, Any], run: RunDir, name: str) -> Any:
    try:
        return from_row(cls, row)
    except TypeError as error:
        raise UserError(
            f"{run.path}: a line of {name}.*.jsonl is no {name} record ({error}); restore the run"
        ) from error


def _deps(rows: Iterable[dict[str, Any]]) -> tuple[Dep, ...]:
    out: dict[str, Dep] = {}
    for row in rows:
        on, kind, anchor = row.get("on"), row.get("kind", "data"), row.get("anchor", "end")
        if isinstance(on, str) and on:
            out.setdefault(
                on,
                Dep(
                    on,
                    kind if kind in get_args(DepKind) else "data",
                    bool(row.get("blocking", True)),
                    anchor if anchor in get_args(Anchor) else "end",
                    str(row.get("provenance") or "recorded"),
                    float(row.get("confidence", 1.0)),
                ),
            )
    return tuple(out.values())


def _workflows(found: list[tuple[Node, str | None]], notes: Notes) -> Iterator[Workflow]:
    """Nodes on one clock as workflows by arrival; edges to what was not recorded are dropped, times start at 0."""
    base = min((n.arrival_ns for n, _ in found), default=0)
    groups: dict[str, list[Node]] = {}
    classes: dict[str, str] = {}
    for node, class_name in found:
        groups.setdefault(node.workflow_id, []).append(_since(node, base))
        if class_name:
            classes.setdefault(node.workflow_id, class_name)
    made = []
    for name, nodes in groups.items():
        ids = {n.request_id for n in nodes}
        kept = []
        for node in nodes:
            deps = tuple(d for d in node.deps if d.on in ids and d.on != node.request_id)
            if len(deps) != len(node.deps):
                notes.count("an edge to a request that was not recorded is dropped", len(node.deps) - len(deps))
            kept.append(replace(node, deps=deps))
        made.append(Workflow(name, settle(kept, notes), classes.get(name, "workflow")))
    return iter(sorted(made, key=lambda w: w.arrival_ns))


def _since(node: Node, base: int) -> Node:
    return replace(
        node,
        arrival_ns=node.arrival_ns - base,
        t_end_ns=max(node.arrival_ns, node.t_end_ns) - base if node.t_end_ns is not None else None,
        t_first_token_ns=node.t_first_token_ns - base if node.t_first_token_ns is not None else None,
    )
