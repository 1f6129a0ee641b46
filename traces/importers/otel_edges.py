"""Edges between spans: those a file states (links, tool-call ids) and those its texts show.

A reply quoted whole in a later prompt is a data edge (as an assistant message of that prompt: conversation). Short
replies prove nothing and are not used for quoting. Edges that longer paths imply are dropped. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from traces.errors import UserError
from traces.importers import spans as sp
from traces.importers.base import MS, Notes
from traces.importers.link import Links, words
from traces.rows import parse_row
from traces.workflow import EXTENDS, Anchor, Dep, DepKind, Node

ROW = "joulegraph.row"
"""Attribute of our own exports: the node as a trace row."""
_LEAST_QUOTE = 24
"""Characters of a reply below which finding it in a prompt is no evidence."""
_MOST_SPANS = 2_000
"""Quotes are looked for within traces of at most this many LLM spans (the work grows with its square)."""


def nesting(found: Sequence[sp.Span]) -> dict[str, tuple[str, str | None]]:
    """span id -> (agent, parent agent) by the nearest enclosing agent spans."""
    by_id = {s.span_id: s for s in found}

    def agents(span: sp.Span) -> list[str]:
        names, at, steps = [], span, 0
        while steps < 1000:
            if at.kind == "agent":
                names.append(
                    str(at.first("gen_ai.agent.id", "gen_ai.agent.name", "agent.name") or at.name or at.span_id)
                )
            above = by_id.get(at.parent_id or "")
            if above is None or above is at:
                break
            at, steps = above, steps + 1
        return names

    out = {}
    for span in found:
        names = agents(span)
        own = span.first("gen_ai.agent.id", "gen_ai.agent.name") if span.kind == "llm" else None
        if own is not None and (not names or names[0] != str(own)):
            names.insert(0, str(own))
        if names:
            out[span.span_id] = (names[0], names[1] if len(names) > 1 else None)
    return out


def recorded(found: Sequence[sp.Span], name: str) -> list[Node]:
    """Nodes of our own export: each span holds its row, its links are the edges."""
    ids = {s.span_id: str(s.attributes["joulegraph.request_id"]) for s in found}
    out = []
    for span in found:
        row = sp.parsed(span.attributes[ROW])
        if not isinstance(row, dict):
            raise UserError(span.where.fault(ROW, row, "give the row of a node"))
        node, _ = parse_row(row, span.where)
        deps = tuple(_stated(link, ids[str(link["span_id"])]) for link in span.links if str(link["span_id"]) in ids)
        out.append(replace(node, workflow_id=name, deps=deps))
    return out


def _stated(link: dict[str, Any], on: str) -> Dep:
    held = link["attributes"]
    kind, anchor = held.get("joulegraph.dep.kind"), held.get("joulegraph.dep.anchor")
    extends = held.get("joulegraph.dep.extends")
    return Dep(
        on,
        kind if kind in get_args(DepKind) else "data",
        bool(held.get("joulegraph.dep.blocking", True)),
        anchor if anchor in get_args(Anchor) else "end",
        str(held.get("joulegraph.dep.provenance") or "recorded"),
        float(held.get("joulegraph.dep.confidence", 1.0)),
        extends if extends in EXTENDS else None,
    )


def infer(found: Sequence[sp.Span], links: Links, notes: Notes) -> None:
    """Propose edges for foreign spans, in order of start."""
    ids = {s.span_id for s in found}
    for span in found:
        for link in span.links:
            if str(link["span_id"]) in ids:
                links.add(span.span_id, _stated(link, str(link["span_id"])))
    _tools(found, links)
    calls = [s for s in found if s.kind == "llm"]
    if len(calls) > _MOST_SPANS:
        notes.count(f"a trace has more than {_MOST_SPANS} LLM spans: quoted replies are not looked for")
    else:
        _quotes(calls, links)
    if any(links.of(s.span_id) for s in found):
        notes.say("edges that links do not state are inferred from tool-call ids and quoted replies")


def _tools(found: Sequence[sp.Span], links: Links) -> None:
    """A tool span follows the call that asked for it; a call that reads its result follows the tool span."""
    asked = {call: s for s in found if s.kind == "llm" for call in sp.tool_calls(s)}
    ran: dict[str, sp.Span] = {}
    for span in found:
        call = str(span.first("gen_ai.tool.call.id") or "")
        if span.kind == "tool" and call:
            ran[call] = span
            if call in asked:
                links.add(span.span_id, Dep(asked[call].span_id, "tool"))
    for span in (s for s in found if s.kind == "llm"):
        for message in sp.messages(span) or ():
            call = str(message.get("tool_call_id") or "")
            source = ran.get(call) or asked.get(call)
            if source is not None and source.end_ns <= span.start_ns + MS:
                links.add(span.span_id, Dep(source.span_id, "tool"))


def _quotes(calls: Sequence[sp.Span], links: Links) -> None:
    """Replies that stand in later prompts; of those that say the same, the latest that had ended."""
    before: dict[str, set[str]] = {}
    replies = {s.span_id: (sp.output(s) or "").strip() for s in calls}
    for index, span in enumerate(calls):
        prompt = sp.messages(span) or []
        ended = [s for s in calls[:index] if s.end_ns <= span.start_ns and replies[s.span_id]]
        found: dict[str, tuple[DepKind, str]] = {}
        for message in prompt:
            text = words(message.get("content")).strip()
            said = next((s for s in reversed(ended) if replies[s.span_id] == text), None)
            if said is not None and message.get("role") == "assistant":
                found[said.span_id] = ("conversation", "inferred:assistant-match")
                continue
            for source in ended:
                quote = replies[source.span_id]
                if len(quote) >= _LEAST_QUOTE and quote in text:
                    found.setdefault(source.span_id, ("data", "inferred:verbatim"))
        reach = set().union(*(before.get(on, set()) for on in found)) if found else set()
        for on, (kind, rule) in found.items():
            if on not in reach:
                links.add(span.span_id, Dep(on, kind, provenance=rule, confidence=0.95))
        before[span.span_id] = reach | found.keys()
