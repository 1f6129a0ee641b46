"""What the journal says of an exchange that has ended: the fields of a RequestRecord, as plain data.

May not know: sockets, clocks, files, JSON.
"""

from __future__ import annotations

from typing import Any, Final

from engines.dialects import EngineMetrics, Observer, Usage
from proxy.content import RequestFacts
from proxy.exchange import Exchange
from traces.tags import Tag
from traces.workflow import dep_row

NO_TAG: Final = Tag()
NO_FACTS: Final = RequestFacts()
NO_USAGE: Final = Usage()
NO_METRICS: Final = EngineMetrics()


def row(exchange: Exchange) -> dict[str, Any]:
    """Everything seen, once the exchange has ended: the fields of RequestRecord as they are journalled.

    A plain dict because building and serialising it costs a third of what the dataclass does.
    """
    seen = exchange.settled()
    head, facts = exchange.head, exchange.facts or NO_FACTS
    tag = exchange.tag if exchange.tag is not None else NO_TAG
    usage = seen.usage if seen is not None else NO_USAGE
    metrics = (seen.metrics if seen is not None else None) or NO_METRICS
    return {
        "request_id": head.request_id,
        "workflow_id": tag.workflow_id,
        "node_id": None if exchange.tag is None else exchange.name,
        "outcome": exchange.outcome,
        "t_arrival_ns": exchange.t_arrival_ns,
        "t_end_ns": exchange.t_end_ns,
        "agent_id": tag.agent_id,
        "class_name": tag.class_name,
        "deps": [dep_row(d) for d in (*tag.parents, *exchange.edges)] if tag.parents or exchange.edges else [],
        "tag_source": tag.source,
        "session_id": tag.session_id,
        "parent_agent_id": tag.parent_agent_id,
        "method": head.method,
        "path": head.path,
        "api": head.api,
        "model": facts.model,
        "stream": facts.stream,
        "t_head_ns": exchange.t_head_ns,
        "t_body_ns": exchange.t_body_ns,
        "t_queue_ns": exchange.t_queue_ns,
        "t_upstream_ns": exchange.t_upstream_ns,
        "upstream": exchange.upstream,
        "upstream_reused": exchange.reused,
        "t_first_byte_ns": exchange.t_first_byte_ns,
        "t_first_token_ns": exchange.t_first_token_ns,
        "t_last_token_ns": exchange.t_last_token_ns,
        "status": exchange.status,
        "finish_reason": seen.finish_reason if seen is not None else None,
        "error": exchange.error or (seen.error if seen is not None else None),
        "response_id": seen.response_id if seen is not None else None,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "engine_queue_ns": metrics.queue_ns,
        "engine_prefill_ns": metrics.prefill_ns,
        "engine_decode_ns": metrics.decode_ns,
        "draft_tokens": metrics.draft_tokens,
        "accepted_tokens": metrics.accepted_tokens,
        "read_dt_ns": list(exchange.read_times),
        "read_bytes": list(exchange.read_sizes),
        "read_tokens": list(exchange.read_tokens),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "usage_spliced": exchange.usage_spliced,
        "note": exchange.note,
        "max_tokens": facts.max_tokens,
        "sampling": facts.sampling,
        "messages": facts.messages,
        "block_hashes": facts.block_hashes,
        "tool_call_ids": seen.tool_call_ids if seen is not None else (),
        "previous_response_id": facts.named.previous_response,
        "content": _content(facts, seen),
    }


def _content(facts: RequestFacts, seen: Observer | None) -> dict[str, Any] | None:
    if facts.content is None:
        return None
    return {**facts.content, "output": seen.text if seen is not None else None}
