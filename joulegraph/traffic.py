"""What the proxy's journals say about recent workflows, kept up to date by reading what was appended.

Lives here: a bounded memory of workflows and their requests, and the plain-dict views of the control port. Rows in,
values out; the reading of files is joulegraph.continuous.Tail. May not know: HTTP, the proxy.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from traces.exact import link
from traces.graph import Span, critical_path, makespan_ns
from traces.records import is_call
from traces.workflow import Dep, Node

MAX_WORKFLOWS = 2_000
MAX_REQUESTS = 5_000
"""per workflow; later ones are counted, not kept"""


@dataclass
class Flow:
    """One workflow's requests so far, in order of their ends."""

    class_name: str | None = None
    requests: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Traffic:
    """Recent workflows, the least recently active forgotten first."""

    def __init__(self, max_workflows: int = MAX_WORKFLOWS, max_requests: int = MAX_REQUESTS) -> None:
        self._flows: OrderedDict[str, Flow] = OrderedDict()
        self._max_workflows = max_workflows
        self._max_requests = max_requests
        self.untagged = 0

    def take(self, row: dict[str, Any]) -> None:
        """One row of a requests journal."""
        if not is_call(row):
            return
        name = row.get("workflow_id")
        if name is None:
            self.untagged += 1
            return
        flow = self._flows.setdefault(name, Flow())
        self._flows.move_to_end(name)
        flow.class_name = flow.class_name or row.get("class_name")
        flow.requests += 1
        if len(flow.rows) < self._max_requests:
            flow.rows.append(row)
        if len(self._flows) > self._max_workflows:
            self._flows.popitem(last=False)

    def overview(self, joules: dict[str, Any]) -> dict[str, Any]:
        """All recent workflows, the latest active first. joules: the `workflows` table of live.json."""
        return {
            "workflows": [
                {"workflow_id": name, **_summary(flow), "energy": joules.get(name)}
                for name, flow in reversed(self._flows.items())
            ],
            "untagged_requests": self.untagged,
        }

    def detail(self, name: str, joules: dict[str, Any]) -> dict[str, Any] | None:
        """One workflow as a graph with timings and joules; None when it is not known (any more)."""
        flow = self._flows.get(name)
        if flow is None:
            return None
        rows = sorted(flow.rows, key=lambda row: row["t_arrival_ns"])
        rows = [{**row, "deps": deps} for row, deps in zip(rows, link(rows), strict=True)]
        start = rows[0]["t_arrival_ns"]
        nodes, spans = _graph(name, rows)
        return {
            "workflow_id": name,
            **_summary(flow),
            "energy": joules.get(name),
            "makespan_ns": makespan_ns(spans),
            "critical_path": [step.request_id for step in critical_path(nodes, spans)],
            "nodes": [_node(row, start) for row in rows],
            "nodes_left_out": flow.requests - len(rows),
        }


def node_name(row: dict[str, Any]) -> str:
    """The name edges use."""
    return str(row.get("node_id") or row["request_id"])


def _graph(name: str, rows: list[dict[str, Any]]) -> tuple[list[Node], dict[str, Span]]:
    nodes, spans = [], {}
    for row in rows:
        made = node_name(row)
        deps = tuple(Dep(str(d["on"])) for d in row.get("deps") or () if d["on"] != made)
        nodes.append(Node(name, made, row["t_arrival_ns"], 0, 0, deps=deps))
        spans[made] = Span(row["t_arrival_ns"], row["t_arrival_ns"], row.get("t_first_token_ns"), row["t_end_ns"])
    return nodes, spans


def _summary(flow: Flow) -> dict[str, Any]:
    rows = flow.rows
    return {
        "class": flow.class_name,
        "requests": flow.requests,
        "failed": sum(row["outcome"] not in ("ok", "rejected") for row in rows),
        "t_first_ns": min(row["t_arrival_ns"] for row in rows),
        "t_last_ns": max(row["t_end_ns"] for row in rows),
        "prompt_tokens": _total(rows, "prompt_tokens"),
        "completion_tokens": _total(rows, "completion_tokens"),
    }


def _total(rows: list[dict[str, Any]], name: str) -> int | None:
    """Sum of what is known; None when nothing is."""
    known = [row[name] for row in rows if row.get(name) is not None]
    return sum(known) if known else None


def _node(row: dict[str, Any], start: int) -> dict[str, Any]:
    def since(name: str) -> int | None:
        return row[name] - start if row.get(name) is not None else None

    keep = (
        "request_id", "agent_id", "parent_agent_id", "deps", "tag_source", "model", "api", "outcome", "status", "error",
        "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens",
    )  # fmt: skip
    return {
        "node_id": node_name(row),
        **{name: row.get(name) for name in keep},
        "arrival_ns": since("t_arrival_ns"),
        "queued_until_ns": since("t_queue_ns"),
        "first_token_ns": since("t_first_token_ns"),
        "last_token_ns": since("t_last_token_ns"),
        "end_ns": since("t_end_ns"),
    }
