"""OTLP/JSON, one line per workflow (as the collector's file exporter writes): GenAI spans, edges as span links.

Everything a node holds rides in joulegraph.* attributes, so that the import gives the same trace back. Times are
nanoseconds of the trace's own clock (resource attribute joulegraph.t0_unix_ns = 0): viewers show 1970.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from traces.exporters.lines import arrivals, write_lines
from traces.importers.base import Notes
from traces.workflow import Dep, Manifest, Node, Workflow, node_row

TITLE = "OTLP/JSON lines: GenAI spans with links for edges"
_ROW = "joulegraph.row"  # as traces.importers.otel_edges reads it
_NO_END = "a node has no recorded end: its span has no length"


def write(out: Path, manifest: Manifest, flow: Iterable[Workflow], notes: Notes) -> None:
    """One ExportTraceServiceRequest per line, one trace per workflow."""
    notes.say("span times are those of the trace's own clock: 0 is 1970")
    write_lines(out, (_request(workflow, manifest, notes) for workflow in flow))


def _request(workflow: Workflow, manifest: Manifest, notes: Notes) -> dict[str, Any]:
    at = arrivals(workflow, notes)
    spans = [_span(node, workflow, at.get(node.request_id, node.arrival_ns), notes) for node in workflow.nodes]
    resource = _attributes(
        {
            "service.name": "joulegraph",
            "joulegraph.t0_unix_ns": 0,
            "joulegraph.block_size": manifest.block_size,
            "joulegraph.block_rounding": manifest.block_rounding,
            "joulegraph.hash_scope": manifest.hash_scope,
            "joulegraph.chained": manifest.chained,
            "joulegraph.content_mode": manifest.content_mode,
        }
    )
    scope = {"scope": {"name": "joulegraph"}, "spans": spans}
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [scope]}]}


def trace_id(workflow_id: str) -> str:
    """32 hex digits."""
    return hashlib.sha256(workflow_id.encode()).hexdigest()[:32]


def span_id(workflow_id: str, request_id: str) -> str:
    """16 hex digits."""
    return hashlib.sha256(f"{workflow_id}\x00{request_id}".encode()).hexdigest()[:16]


def _span(node: Node, workflow: Workflow, at: int, notes: Notes) -> dict[str, Any]:
    if node.t_end_ns is None:
        notes.count(_NO_END)
    end = node.t_end_ns if node.t_end_ns is not None else at
    name = f"{_operation(node)} {node.model or ''}".strip()
    return {
        "traceId": trace_id(node.workflow_id),
        "spanId": span_id(node.workflow_id, node.request_id),
        "name": name,
        "kind": 3 if node.kind == "llm" else 1,
        "startTimeUnixNano": str(at),
        "endTimeUnixNano": str(max(at, end)),
        "attributes": _attributes({**_gen_ai(node), **_own(node, workflow)}),
        "links": [_link(node.workflow_id, dep) for dep in node.deps],
        "status": {"code": 2 if node.status not in (None, "ok") else 0},
    }


def _operation(node: Node) -> str:
    if node.kind != "llm":
        return "execute_tool"
    return "text_completion" if node.api == "completions" else "chat"


def _gen_ai(node: Node) -> dict[str, Any]:
    """The convention's attributes: for viewers, and for readers that know nothing of ours."""
    found: dict[str, Any] = {"gen_ai.operation.name": _operation(node)}
    if node.kind != "llm":
        return {**found, "gen_ai.tool.name": node.attrs.get("tool_name") or node.kind}
    found |= {
        "gen_ai.request.model": node.model,
        "gen_ai.request.stream": node.stream,
        "gen_ai.usage.input_tokens": node.input_length,
        "gen_ai.usage.output_tokens": node.output_length,
        "gen_ai.usage.cache_read.input_tokens": node.cached_length,
        "gen_ai.conversation.id": node.session_id,
        "gen_ai.agent.id": node.agent_id,
        "gen_ai.response.finish_reasons": [node.finish_reason] if node.finish_reason else None,
        "gen_ai.input.messages": _json(list(node.messages)) if node.messages is not None else None,
        "gen_ai.output.text": node.output,
    }
    if node.t_first_token_ns is not None:
        found["gen_ai.response.time_to_first_chunk"] = (node.t_first_token_ns - node.arrival_ns) / 1e9
    return {k: v for k, v in found.items() if v is not None}


def _own(node: Node, workflow: Workflow) -> dict[str, Any]:
    row = {k: v for k, v in node_row(node).items() if k != "deps"}
    return {
        "joulegraph.workflow_id": node.workflow_id,
        "joulegraph.request_id": node.request_id,
        "joulegraph.class": workflow.class_name,
        _ROW: _json(row),
    }


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _link(workflow_id: str, dep: Dep) -> dict[str, Any]:
    held = {
        "joulegraph.dep.kind": dep.kind,
        "joulegraph.dep.blocking": dep.blocking,
        "joulegraph.dep.anchor": dep.anchor,
        "joulegraph.dep.provenance": dep.provenance,
        "joulegraph.dep.confidence": dep.confidence,
        **({"joulegraph.dep.extends": dep.extends} if dep.extends is not None else {}),
    }
    return {
        "traceId": trace_id(workflow_id),
        "spanId": span_id(workflow_id, dep.on),
        "attributes": _attributes(held),
    }


def _attributes(held: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in held.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(v) for v in value]}}
        case _:
            return {"stringValue": str(value)}
