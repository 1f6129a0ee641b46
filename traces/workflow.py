"""The workflow model: a graph of LLM calls (nodes) tied by dependencies. Planned work only; nothing here runs.

Lives here: Manifest, Dep, Node, Workflow and their plain-dict rows (the trace file, reference: docs/traces.md).
May not know: files, clocks, HTTP. What was observed of a node (t_first_token, t_end, status) rides along from a
recording; energy never does, it belongs to a run.

A row is a superset of Mooncake's ({timestamp, input_length, output_length, hash_ids}) and of Dynamo's
agentic_mooncake rows, so a Mooncake file is a valid trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

DepKind = Literal["data", "conversation", "tool", "spawn", "join", "control", "temporal"]
Anchor = Literal["end", "start", "first_token"]
NodeKind = Literal["llm", "tool", "human", "other"]
Api = Literal["completions", "chat", "responses", "messages", "parrot"]
ContentMode = Literal["text", "token_ids", "hash", "lengths"]
Extends = Literal["answer", "prompt"]

DEP_KINDS = get_args(DepKind)
ANCHORS = get_args(Anchor)
NODE_KINDS = get_args(NodeKind)
APIS = get_args(Api)
CONTENT_MODES = get_args(ContentMode)
EXTENDS = get_args(Extends)
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the rows leave unsaid; the optional first line `{"manifest": {...}}` of a trace file."""

    version: int = FORMAT_VERSION
    block_size: int = 512
    block_rounding: Literal["ceil", "floor"] = "ceil"
    hash_scope: Literal["global", "workflow", "session"] = "global"
    tokenizer: str | None = None
    content_mode: ContentMode = "hash"
    time_quantum_ms: float | None = None
    """Arrival stamps are multiples of this (Mooncake: 3000); None when they are not quantised."""
    source: str | None = None
    licence: str | None = None
    transforms: tuple[str, ...] = ()
    """Everything done to the rows since the source, one sentence each (dither, idle cap, filters, losses)."""
    chained: bool = True
    """True when a block id implies its whole prefix."""
    block_unit: Literal["tokens", "bytes"] = "tokens"
    ordered: bool = False
    """The writer's promise: rows of a workflow are contiguous, workflows in order of arrival; so the file streams."""


@dataclass(frozen=True, slots=True)
class Dep:
    """One dependency of a node. Prefix sharing is not an edge: it orders nothing."""

    on: str
    kind: DepKind = "data"
    blocking: bool = True
    anchor: Anchor = "end"
    provenance: str = "recorded"
    """recorded | declared | inferred:<rule>"""
    confidence: float = 1.0
    extends: Extends | None = None
    """The child's prompt begins with this node's whole prompt and goes on with its answer ("answer"), or with something
    in the answer's place that the engine did not know again, a call put in other words say ("prompt")."""


@dataclass(frozen=True, slots=True)
class Node:
    """One call of a workflow. Times in the row are ms relative to the trace start; in memory integers of ns.

    A root (no blocking deps) is due at arrival_ns; any other node at max(anchor of its blocking deps) + delay_ns,
    the delay applied once. tool_wait_ns and think_ns are parts of delay_ns.
    """

    workflow_id: str
    request_id: str
    arrival_ns: int
    input_length: int
    output_length: int
    session_id: str | None = None
    agent_id: str | None = None
    parent_agent_id: str | None = None
    kind: NodeKind = "llm"
    delay_ns: int = 0
    tool_wait_ns: int = 0
    think_ns: int = 0
    deps: tuple[Dep, ...] = ()
    cached_length: int | None = None
    hash_ids: tuple[int, ...] | None = None
    """Ids of the prompt's prefix blocks, manifest.block_size tokens each."""
    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | None = None
    token_ids: tuple[int, ...] | None = None
    output: str | None = None
    model: str | None = None
    api: Api = "completions"
    stream: bool = True
    sampling: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] | None = None
    status: str | None = None
    finish_reason: str | None = None
    t_first_token_ns: int | None = None
    t_end_ns: int | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def blocking(self) -> tuple[Dep, ...]:
        """The dependencies that hold this node back."""
        return tuple(d for d in self.deps if d.blocking)


@dataclass(frozen=True, slots=True)
class Workflow:
    """One job: nodes in file order. class_name groups workflows in reports (pattern or preset name)."""

    workflow_id: str
    nodes: tuple[Node, ...]
    class_name: str = "workflow"

    @property
    def arrival_ns(self) -> int:
        """Due instant of the first root, relative to the trace start."""
        return min(n.arrival_ns for n in self.nodes if not n.blocking)


_MS = 1_000_000
_TIMES_MS = {  # row name -> field name: milliseconds in the file, integer ns in memory
    "timestamp": "arrival_ns",
    "delay": "delay_ns",
    "tool_wait_ms": "tool_wait_ns",
    "think_ms": "think_ns",
    "t_first_token": "t_first_token_ns",
    "t_end": "t_end_ns",
}
_TIME_ROW = {v: k for k, v in _TIMES_MS.items()}
_DEFAULTS = {f.name: f.default for f in fields(Node)}


def dep_row(dep: Dep) -> dict[str, Any]:
    """A Dep as its trace-file object, defaults left out."""
    blank = Dep(on="")
    row = {f.name: getattr(dep, f.name) for f in fields(Dep)}
    return {k: v for k, v in row.items() if k == "on" or v != getattr(blank, k)}


def node_row(node: Node, class_name: str | None = None) -> dict[str, Any]:
    """A Node as its trace-file row: times in ms, defaults left out. Inverse of traces.trace.parse_row."""
    row: dict[str, Any] = {}
    for f in fields(Node):
        value = getattr(node, f.name)
        if f.name in _TIME_ROW:
            if value != _DEFAULTS[f.name]:  # the arrival has no default: always there
                row[_TIME_ROW[f.name]] = value // _MS if value % _MS == 0 else value / _MS
        elif f.name == "deps":
            if value:
                row["deps"] = [dep_row(d) for d in value]
        elif f.name in ("sampling", "attrs"):
            if value:
                row[f.name] = value
        elif value != _DEFAULTS[f.name]:
            row[f.name] = list(value) if isinstance(value, tuple) else value
    if class_name is not None and class_name != "workflow":
        row["class"] = class_name
    return row
