"""What was observed: one frozen dataclass per journal, flat, integers of ns on the monotonic axis.

Missing is None, never 0. A record is written with orjson as it stands (fields = keys of the JSON line) and read back
with `from_row`, which ignores keys it does not know, so that older readers survive newer writers.
May not know: files, clocks, who produces a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, TypeVar

from traces.power_records import DeviceState, PowerEvent, PowerSample, ProcessSample, SensorInfo

__all__ = [
    "DeviceState",
    "DispatchRecord",
    "EngineRecord",
    "Outcome",
    "PowerEvent",
    "PowerSample",
    "ProcessSample",
    "RequestRecord",
    "SensorInfo",
    "StepRecord",
    "TruthRecord",
    "TruthTotals",
    "from_row",
    "is_call",
]

Outcome = Literal[
    "ok",  # a complete 2xx reply
    "rejected",  # the engine or proxy refused it by rule (4xx: too long, unknown model ...)
    "error",  # 5xx, malformed reply
    "client_left",  # the client went away before the end
    "upstream_died",  # connection reset or closed mid-reply
    "unreachable",  # no connection to the engine
    "timeout",  # our own deadline
    "cancelled",  # cancelled on purpose (injection, drain)
    "skipped",  # never sent: a dependency failed, or the run was stopped
]


_NO_MODEL = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
"""POST routes that an engine answers without its model"""


def is_call(row: Mapping[str, Any]) -> bool:
    """Whether a row of a requests journal asked the model for something. What only looks (models, metrics, health) or
    counts tokens is in the journal too, but is no request of a workflow and draws no joules. A row without a path, as
    foreign recordings have, is a call."""
    path = row.get("path")
    if row.get("api") is not None or not path:
        return True
    return row.get("method", "POST") == "POST" and path.partition("?")[0].rstrip("/") not in _NO_MODEL


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """requests.<worker>.jsonl: one request as the proxy saw it (level L1, L2 when engine metrics are present)."""

    request_id: str
    """X-Request-Id, ours where the client sent none"""
    workflow_id: str | None
    node_id: str | None
    outcome: Outcome
    t_arrival_ns: int
    """first byte of the request read"""
    t_end_ns: int
    """last byte of the reply written, or the instant of failure"""
    agent_id: str | None = None
    class_name: str | None = None
    deps: tuple[dict[str, Any], ...] = ()
    """trace-file deps: {on, kind, provenance, ...}"""
    tag_source: str | None = None
    """which scheme won: x-workflow, metadata, baggage, dynamo, ...; None when untagged"""
    session_id: str | None = None
    parent_agent_id: str | None = None
    method: str = "POST"
    path: str = ""
    api: str | None = None
    """completions | chat | responses | messages | parrot; None for other routes"""
    model: str | None = None
    stream: bool = False
    t_head_ns: int | None = None
    t_body_ns: int | None = None
    t_queue_ns: int | None = None
    """left the proxy's own concurrency queue (None where no limit held it)"""
    t_upstream_ns: int | None = None
    """connection to the engine ready, request written"""
    upstream: str | None = None
    upstream_reused: bool | None = None
    t_first_byte_ns: int | None = None
    t_first_token_ns: int | None = None
    t_last_token_ns: int | None = None
    status: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    response_id: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    engine_queue_ns: int | None = None
    """per-request engine metrics (L2): queue, scheduled -> first token, first -> last token"""
    engine_prefill_ns: int | None = None
    engine_decode_ns: int | None = None
    draft_tokens: int | None = None
    """speculative decoding: draft tokens that the engine verified for the request, and those of them it accepted"""
    accepted_tokens: int | None = None
    read_dt_ns: tuple[int, ...] = ()
    """reply reads, flat parallel arrays: ns since the previous read (the first since t_arrival_ns)"""
    read_bytes: tuple[int, ...] = ()
    read_tokens: tuple[int, ...] = ()
    """token events in each read"""
    bytes_in: int = 0
    bytes_out: int = 0
    usage_spliced: bool | None = None
    """include_usage added by us; None where it does not apply"""
    note: str | None = None
    """why something is missing (body over 1 MB unspliced, drops ...)"""
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    messages: tuple[dict[str, Any], ...] = ()
    """structure only: {role, length, digest, tool_ids}"""
    block_hashes: tuple[int, ...] = ()
    tool_call_ids: tuple[str, ...] = ()
    """tool calls that the reply makes; messages[].tool_ids holds those the prompt names"""
    previous_response_id: str | None = None
    """the earlier reply (its response_id) that this request continues: an exact edge"""
    content: dict[str, Any] | None = None
    """prompt and output text; only with --record-content text"""


@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """dispatch.<shard>.jsonl: one trace node as the generator replayed it: the plan (due) and the deed (sent)."""

    request_id: str
    """node id; unique within its workflow"""
    workflow_id: str
    wire_id: str
    """X-Request-Id on the wire: joins with RequestRecord.request_id and the engine's truth"""
    outcome: Outcome
    due_ns: int
    t_end_ns: int
    class_name: str = "workflow"
    agent_id: str | None = None
    kind: str = "llm"
    deps: tuple[dict[str, Any], ...] = ()
    api: str | None = None
    model: str | None = None
    delay_ns: int = 0
    """the node's own delay, already inside due_ns"""
    t_sent_ns: int | None = None
    """request written to the socket; None when never sent"""
    t_first_byte_ns: int | None = None
    t_first_token_ns: int | None = None
    t_last_token_ns: int | None = None
    status: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    planned_input_tokens: int | None = None
    planned_output_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    engine_queue_ns: int | None = None
    engine_prefill_ns: int | None = None
    engine_decode_ns: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None
    read_dt_ns: tuple[int, ...] = ()
    """as in RequestRecord, the first since t_sent_ns"""
    read_tokens: tuple[int, ...] = ()
    connection_reused: bool | None = None
    attempts: int = 1
    """sendings, with repetitions where they were asked for; stamps are those of the last one"""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """engine.jsonl, kind "step": one engine iteration (level L3). Names after vLLM's iteration details.

    t_ns is when the step's outputs were seen by the engine's frontend, as vLLM's stat logger has it.
    """

    t_ns: int
    running: int
    waiting: int
    kv_usage: float
    num_ctx_requests: int
    num_ctx_tokens: int
    num_generation_requests: int
    num_generation_tokens: int
    prompt_tokens: int = 0
    """prompt tokens of requests whose prefill ended in this step (cached included)"""
    cached_tokens: int = 0
    preempted: int = 0
    engine: int = 0
    """data-parallel replica"""
    kind: str = "step"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """engine.jsonl, kind "counters" | "log" | "lag" | "span": scraped counters, launcher log
    lines, the engine's own lag, a request's times from its OTLP span (text: the engine's id)."""

    kind: Literal["counters", "log", "lag", "span"]
    t_ns: int
    values: dict[str, float] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TruthRecord:
    """truth.jsonl (embedded engine only): true energy of one request, Shapley per step; no estimator reads it.

    component: gpu | hbm | cpu | dram (one record each). own = tokens and contexts alone;
    active = Shapley share of every step it was scheduled in (what `active` of attribution is scored against).
    """

    request_id: str
    component: str
    own_uj: int
    active_uj: int
    prefill_uj: int
    """part of active_uj drawn in steps in which it prefilled"""
    decode_uj: int


@dataclass(frozen=True, slots=True)
class TruthTotals:
    """Last line of truth.jsonl: what the engine drew in all. sum(active) + idle + foreign = total, exactly."""

    component: str
    total_uj: int
    active_uj: int
    idle_uj: int
    t0_ns: int
    t1_ns: int
    kind: str = "totals"


R = TypeVar("R")


@cache
def _names(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls))


@cache
def _tuples(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls) if str(f.type).startswith("tuple"))


def from_row(cls: type[R], row: dict[str, Any]) -> R:
    """A record from its JSON object; unknown keys are dropped, lists become tuples. KeyError/TypeError on a missing
    required field is the caller's sign of a foreign or damaged line."""
    names, tuples = _names(cls), _tuples(cls)  # type: ignore[arg-type]
    return cls(**{k: tuple(v) if k in tuples and v is not None else v for k, v in row.items() if k in names})
