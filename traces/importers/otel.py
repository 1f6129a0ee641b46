"""OpenTelemetry traces with GenAI or OpenInference attributes: OTLP/JSON (document or a line per export), and the flat
span files of inference-perf and Exgentic.

LLM and tool spans become nodes, agents come from nesting. Nesting is no dependence: edges come from links (recorded),
tool-call ids, and text of one reply found in a later prompt (inferred); never from time alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers import spans as sp
from traces.importers.base import Head, Imported, ImportOptions, Notes, document, json_files, json_rows
from traces.importers.link import ESTIMATE_ATTRS, ESTIMATED, Links, Unique, estimate_tokens, settle, words
from traces.importers.otel_edges import ROW, infer, nesting, recorded
from traces.manifest import parse_manifest
from traces.workflow import Api, Manifest, Node, Workflow

TITLE = "OpenTelemetry spans: OTLP/JSON (GenAI, OpenInference) and flat span files (inference-perf, Exgentic)"
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")


def recognises(head: Head) -> bool:
    """resourceSpans, or an object with a list of spans; a folder whose first file is one."""
    if head.is_dir:
        files = json_files(head.path)
        return bool(files) and recognises(Head(files[0]))
    first = head.row or head.document
    if isinstance(first, list):
        first = first[0] if first else None
    return isinstance(first, dict) and (
        isinstance(first.get("resourceSpans"), list)
        or (isinstance(first.get("spans"), list) and all(isinstance(s, dict) for s in first["spans"]))
    )


def read(path: Path, options: ImportOptions) -> Imported:
    """A trace id -> a workflow; conversation id -> session; usage -> lengths (estimated where absent)."""
    notes = Notes()
    traces: dict[tuple[str, str], list[sp.Span]] = {}
    for span in _spans(path):  # an OTLP trace may be spread over files; a flat file holds its traces whole
        traces.setdefault((span.trace_id, "" if span.otlp else span.where.path), []).append(span)
    flow = _workflows(traces, notes)
    return Imported(_manifest(path, [s for found in traces.values() for s in found]), flow, notes)


def _manifest(path: Path, found: list[sp.Span]) -> Manifest:
    """Of our own exports the one they state, else what the spans show."""
    source = f"{path.name} (OpenTelemetry)"
    names = ("block_size", "block_rounding", "hash_scope", "chained", "content_mode")
    for span in found:
        held = {n: span.resource[f"joulegraph.{n}"] for n in names if f"joulegraph.{n}" in span.resource}
        if len(held) == len(names):
            return parse_manifest({**held, "source": source}, span.where)
    has_text = any(sp.messages(s) is not None for s in found if s.kind == "llm")
    return Manifest(content_mode="text" if has_text else "lengths", source=source)


def _spans(path: Path) -> Iterator[sp.Span]:
    for file in json_files(path):
        for where, one in _objects(file):
            if "resourceSpans" in one:
                yield from sp.of_otlp(where, one)
            elif "spans" in one:
                yield from sp.of_flat(where, one)
            else:
                raise UserError(where.fault("document", sorted(one)[:5], "give resourceSpans or spans"))


def _objects(file: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    if Head(file).row:
        yield from json_rows(file)
        return
    value = document(file)
    for number, one in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(one, dict):
            raise UserError(f"{file}: no span document (object with resourceSpans or spans); give an OTLP/JSON file")
        yield Where(str(file), number, number), one


def _workflows(traces: dict[tuple[str, str], list[sp.Span]], notes: Notes) -> Iterator[Workflow]:
    base = min((s.start_ns for found in traces.values() for s in found if s.kind in ("llm", "tool")), default=0)
    made, unique = [], Unique()
    for (trace_id, _), found in traces.items():
        nodes = _nodes(unique(trace_id), found, base, notes)
        if nodes:
            ours = next((s.attributes["joulegraph.class"] for s in found if "joulegraph.class" in s.attributes), None)
            made.append(
                Workflow(nodes[0].workflow_id, nodes, str(ours or ("agentic" if len(nodes) > 1 else "workflow")))
            )
        else:
            notes.count("a trace without an LLM or tool span is left out")
    return iter(sorted(made, key=lambda w: w.arrival_ns))


def _nodes(trace_id: str, found: list[sp.Span], base: int, notes: Notes) -> tuple[Node, ...]:
    kept = sorted((s for s in found if s.kind in ("llm", "tool")), key=lambda s: (s.start_ns, s.span_id))
    if not kept:
        return ()
    seen: set[str] = set()
    for span in kept:
        if span.span_id in seen:
            raise UserError(span.where.fault("span id", span.span_id, "make it unique within its trace"))
        seen.add(span.span_id)
    if all(ROW in s.attributes and "joulegraph.request_id" in s.attributes for s in kept):
        in_order = [s for s in found if s.kind in ("llm", "tool")]
        return tuple(recorded(in_order, str(kept[0].attributes.get("joulegraph.workflow_id") or trace_id)))
    agents = nesting(found)
    nodes = [_node(s, trace_id, base, agents, notes) for s in kept]
    links = Links()
    infer(kept, links, notes)
    return settle(links.on(nodes), notes)


def _node(span: sp.Span, trace_id: str, base: int, agents: dict[str, tuple[str, str | None]], notes: Notes) -> Node:
    agent, parent = agents.get(span.span_id, (None, None))
    arrival, end = span.start_ns - base, span.end_ns - base
    session = span.first("gen_ai.conversation.id", "session.id", "exgentic.session.id")
    name, own = trace_id or "trace", span.span_id
    if span.kind == "tool":
        keep = {
            "tool_name": span.first("gen_ai.tool.name", "tool.name"),
            "tool_call_id": span.first("gen_ai.tool.call.id"),
        }
        return Node(
            name,
            own,
            arrival,
            0,
            0,
            session_id=str(session) if session is not None else None,
            agent_id=agent,
            parent_agent_id=parent,
            kind="tool",
            status="error" if span.failed else "ok",
            t_end_ns=end,
            attrs={k: v for k, v in keep.items() if v is not None},
        )
    prompt, reply = sp.messages(span), sp.output(span)
    lengths, exact = _lengths(span, prompt, reply)
    if not exact:
        notes.say(ESTIMATED)
    chunk = span.first("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")
    finish = span.first("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason")
    return Node(
        name,
        own,
        arrival,
        lengths[0],
        lengths[1],
        session_id=str(session) if session is not None else None,
        agent_id=agent,
        parent_agent_id=parent,
        cached_length=span.first("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"),
        messages=tuple(prompt) if prompt is not None else None,
        output=reply,
        model=span.first("gen_ai.request.model", "gen_ai.response.model", "llm.model_name"),
        api=_api(span, prompt),
        stream=bool(span.first("gen_ai.request.stream") or chunk is not None),
        sampling={k: v for k in _SAMPLING if (v := span.first(f"gen_ai.request.{k}")) is not None},
        status="error" if span.failed else "ok",
        finish_reason=str(finish[0] if isinstance(finish, list) and finish else finish) if finish else None,
        t_first_token_ns=arrival + round(float(chunk) * 1e9) if isinstance(chunk, (int, float)) else None,
        t_end_ns=end,
        attrs=dict(ESTIMATE_ATTRS) if not exact else {},
    )


def _api(span: sp.Span, prompt: list[dict[str, Any]] | None) -> Api:
    return "completions" if span.first("gen_ai.operation.name") == "text_completion" and prompt is None else "chat"


def _lengths(span: sp.Span, prompt: Any, reply: str | None) -> tuple[tuple[int, int], bool]:
    """(input, output) tokens and whether the source counted them."""
    used = span.first("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
    made = span.first("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
    exact = type(used) is int and type(made) is int and used >= 0 and made >= 0
    if exact:
        return (used, made), True
    text = "".join(words(m.get("content")) for m in prompt or ())
    return (
        used if type(used) is int and used >= 0 else estimate_tokens(text),
        made if type(made) is int and made >= 0 else estimate_tokens(reply or ""),
    ), False
