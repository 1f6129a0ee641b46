"""The record of a semantic call: the row of its submission, made into that of the call.

Lives here: what of the call goes into which field. May not know: when a call's value was seen, who holds its record.
"""

from __future__ import annotations

from typing import Any

from engines.parrot.lineage import CallNode
from engines.parrot.protocol import Call
from traces.workflow import dep_row

Row = dict[str, Any]


def describe(row: Row, call: Call, node: CallNode) -> None:
    """Who it is and what it needs, once the core has taken it."""
    declared = {dep["on"] for dep in row["deps"]}
    recorded = {dep.on for dep in node.deps if dep.provenance == "recorded"}
    row["workflow_id"] = row["workflow_id"] or node.workflow.workflow_id
    row["class_name"] = row["class_name"] or node.workflow.class_name
    row["tag_source"] = row["tag_source"] or "parrot"
    row["node_id"] = node.node_id
    row["session_id"] = row["session_id"] or str(call.session_id)
    told = [_confirmed(d) if d["on"] in recorded else d for d in row["deps"]]
    row["deps"] = [*told, *(dep_row(d) for d in node.deps if d.on not in declared)]
    row["max_tokens"] = call.max_gen_length
    row["response_id"] = f"{call.session_id}/{node.request_id}/{node.output}"
    if node.external:
        note(row, f"inputs from outside: {', '.join(node.external)}")


def conclude(row: Row, node: CallNode, outcome: str, why: str | None) -> None:
    """How it ended."""
    row["t_upstream_ns"] = _runnable(node)
    row["t_first_byte_ns"] = None  # that of the reply to its submission, which says nothing of the call
    row["read_dt_ns"], row["read_bytes"], row["read_tokens"] = (), (), ()
    row["sampling"] = {**row["sampling"], "criteria": node.criteria} if node.criteria else row["sampling"]
    if node.t_ready_ns is not None:
        row["t_end_ns"] = node.t_ready_ns
    row["outcome"], row["error"] = outcome, why
    if outcome == "ok" and node.empty:
        note(row, "its value was empty")
    elif outcome == "ok":
        row["completion_tokens"] = node.exact_output


def note(row: Row, text: str) -> None:
    """Add to what a reader of the record should know."""
    row["note"] = text if row["note"] is None else f"{row['note']}; {text}"


def _runnable(node: CallNode) -> int | None:
    """From when on the core could run it: active, and what it needs there, as far as that was seen."""
    if node.t_active_ns is None:
        return None
    return max([node.t_active_ns, *(p.t_ready_ns for p in node.parents if p.t_ready_ns is not None)])


def _confirmed(dep: Row) -> Row:
    """A declared edge that the exchange shows too: of the declared kind, and certain (recorded is the default)."""
    return {k: v for k, v in dep.items() if k != "provenance"}
