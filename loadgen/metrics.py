"""From dispatch records to figures: TTFT, TPOT, ITL, E2E, makespan, critical path, goodput, throughput. Exact, offline.

Why: percentiles come from every record, not from histograms; latencies are given from *due* (what a user waited) and
from *sent* (what the engine did). Missing stays None. May not know: files, sockets, energy.
All times in ns on one axis; rates per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from traces.graph import PathStep, Span, anchor_ns, critical_path, makespan_ns
from traces.records import DispatchRecord
from traces.workflow import Dep, Node

QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """One answered request. None: it has no such figure (not streamed, a single token ...)."""

    ttft_due_ns: int | None
    ttft_sent_ns: int | None
    e2e_due_ns: int
    e2e_sent_ns: int | None
    tpot_ns: float | None
    """mean time per output token after the first, tokens as the engine counted them"""
    late_ns: int | None
    """sent - due"""
    output_tokens: int


@dataclass(frozen=True, slots=True)
class WorkflowFigures:
    """One workflow. Complete only when every node ended well."""

    workflow_id: str
    class_name: str
    complete: bool
    nodes: int
    first_due_ns: int
    last_end_ns: int
    makespan_ns: int
    path: tuple[PathStep, ...]
    """the chain that decided the makespan"""
    serving_ns: int
    """of the makespan: LLM requests on the critical path, sent -> anchor"""
    tool_ns: int
    """of the makespan: tool and human nodes on the path, and delays between its steps"""
    late_ns: int
    """of the makespan: the generator's lateness on the path"""
    output_tokens: int


def request_figures(record: DispatchRecord) -> RequestFigures | None:
    """Figures of one LLM request that ended well, else None."""
    if record.kind != "llm" or record.outcome != "ok":
        return None
    tokens = output_tokens(record)
    first, last, sent = record.t_first_token_ns, record.t_last_token_ns, record.t_sent_ns
    tpot = (last - first) / (tokens - 1) if first is not None and last is not None and tokens > 1 else None
    return RequestFigures(
        ttft_due_ns=None if first is None else first - record.due_ns,
        ttft_sent_ns=None if first is None or sent is None else first - sent,
        e2e_due_ns=record.t_end_ns - record.due_ns,
        e2e_sent_ns=None if sent is None else record.t_end_ns - sent,
        tpot_ns=tpot,
        late_ns=None if sent is None else sent - record.due_ns,
        output_tokens=tokens,
    )


def output_tokens(record: DispatchRecord) -> int:
    """Output tokens as the engine counted them; where it did not, the token events seen."""
    return record.completion_tokens if record.completion_tokens is not None else sum(record.read_tokens)


def itl_ns(record: DispatchRecord) -> list[float]:
    """Gaps between successive tokens. k tokens that came in one read share its gap evenly: what lies between them
    cannot be known, and counting k - 1 zeros would flatter the median. Empty without two token reads."""
    gaps: list[float] = []
    gap, seen = 0, False
    for dt, tokens in zip(record.read_dt_ns, record.read_tokens, strict=True):
        gap += dt
        if tokens:
            if seen:
                gaps.extend([gap / tokens] * tokens)
            seen, gap = True, 0
    return gaps


def workflow_figures(records: Sequence[DispatchRecord]) -> WorkflowFigures:
    """Figures of one workflow from the records of all its nodes."""
    ran = [r for r in records if r.t_sent_ns is not None]
    spans = {r.request_id: Span(r.due_ns, r.t_sent_ns or r.due_ns, r.t_first_token_ns, r.t_end_ns) for r in ran}
    by_id = {r.request_id: r for r in ran}
    path = tuple(critical_path([_node(r) for r in records], spans))
    serving = sum(s.serve_ns for s in path if by_id[s.request_id].kind == "llm")
    tools = sum(s.serve_ns for s in path if by_id[s.request_id].kind != "llm") + sum(s.wait_ns for s in path)
    return WorkflowFigures(
        workflow_id=records[0].workflow_id,
        class_name=records[0].class_name,
        complete=all(r.outcome == "ok" for r in records),
        nodes=len(records),
        first_due_ns=min(r.due_ns for r in records),
        last_end_ns=max(r.t_end_ns for r in records),
        makespan_ns=makespan_ns(spans) or 0,
        path=path,
        serving_ns=serving,
        tool_ns=tools,
        late_ns=sum(s.late_ns for s in path),
        output_tokens=sum(output_tokens(r) for r in records if r.outcome == "ok"),
    )


def slack_ns(records: Sequence[DispatchRecord]) -> dict[str, int]:
    """How much later each node could have ended without moving the workflow's end, other durations as they were.

    Nodes that ran only. Over blocking dependencies: the slack of a node is the least over its dependents of (their
    slack + how long they waited for others after this node's anchor), and for a leaf the distance to the end.
    """
    ran = {r.request_id: r for r in records if r.t_sent_ns is not None}
    spans = {k: Span(r.due_ns, r.t_sent_ns or r.due_ns, r.t_first_token_ns, r.t_end_ns) for k, r in ran.items()}
    if not spans:
        return {}
    end = max(s.end_ns for s in spans.values())
    children: dict[str, list[tuple[str, int]]] = {k: [] for k in spans}
    for name, record in ran.items():
        deps = [d for d in _node(record).blocking if d.on in spans]
        ready = record.due_ns - record.delay_ns
        for dep in deps:
            children[dep.on].append((name, ready - anchor_ns(spans[dep.on], dep.anchor)))
    slack: dict[str, int] = {}
    for name in sorted(spans, key=lambda k: (spans[k].sent_ns, spans[k].end_ns), reverse=True):
        bounds = [slack.get(child, 0) + max(0, wait) for child, wait in children[name]]
        slack[name] = min([*bounds, end - spans[name].end_ns])
    return slack


def _node(record: DispatchRecord) -> Node:
    """As much of the trace node as its record keeps: ids, dependencies, delay."""
    return Node(
        record.workflow_id,
        record.request_id,
        record.due_ns,
        0,
        0,
        kind=record.kind,  # type: ignore[arg-type]
        delay_ns=record.delay_ns,
        deps=tuple(Dep(**d) for d in record.deps),
    )


def by_workflow(records: Iterable[DispatchRecord]) -> dict[str, list[DispatchRecord]]:
    """Records of each workflow, in order of first appearance."""
    out: dict[str, list[DispatchRecord]] = {}
    for record in records:
        out.setdefault(record.workflow_id, []).append(record)
    return out


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Exact quantiles (linear interpolation) with mean and count; None for no values."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=np.float64)
    found = np.quantile(array, QUANTILES)
    named = {f"p{q * 100:g}": float(v) for q, v in zip(QUANTILES, found, strict=True)}
    return {"n": len(array), "mean": float(array.mean()), **named, "max": float(array.max())}
