"""The journal line of an exchange, for half of what its row and the row's JSON cost.

What most requests share (route, tag's kind, model, outcome) is encoded once and kept; only what differs is encoded
each time. A line says exactly what `row` says, which a property test holds; whatever is not as usual (errors,
edges, notes, engine metrics, tool calls, text) is written from the row itself. May not know: sockets, clocks, files.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from proxy.content import NOTHING_NAMED
from proxy.exchange import Exchange
from proxy.row import NO_FACTS, NO_TAG, row

MAX_SHARED: Final = 512
_SHARED: Final[dict[tuple[Any, ...], bytes]] = {}
_OF_TAG: Final = ("agent_id", "class_name", "tag_source", "session_id", "parent_agent_id")
_NAMES: Final = (
    "method",
    "path",
    "api",
    "model",
    "stream",
    "upstream",
    "upstream_reused",
    "status",
    "finish_reason",
    "usage_spliced",
    "max_tokens",
    "outcome",
)
_USUAL: Final[dict[str, Any]] = {
    "deps": [],
    "t_queue_ns": None,
    "error": None,
    "engine_queue_ns": None,
    "engine_prefill_ns": None,
    "engine_decode_ns": None,
    "draft_tokens": None,
    "accepted_tokens": None,
    "note": None,
    "tool_call_ids": [],
    "previous_response_id": None,
    "content": None,
}


def line(exchange: Exchange) -> bytes:
    """One line of the journal, line feed included, once the exchange has ended."""
    seen = exchange.settled()
    facts = exchange.facts or NO_FACTS
    tag = exchange.tag or NO_TAG
    if (
        seen is None
        or seen.error is not None
        or seen.metrics is not None
        or seen.tool_call_ids
        or exchange.error is not None
        or exchange.note is not None
        or exchange.t_queue_ns is not None
        or tag.parents
        or exchange.edges
        or facts.content is not None
        or facts.named is not NOTHING_NAMED
    ):
        return orjson.dumps(row(exchange), option=orjson.OPT_APPEND_NEWLINE)
    head, usage = exchange.head, seen.usage
    key = (
        tag[3:],  # agent, class, source, session, parent agent
        head.method,
        head.path,
        head.api,
        facts.model,
        facts.stream,
        exchange.upstream,
        exchange.reused,
        exchange.status,
        seen.finish_reason,
        exchange.usage_spliced,
        facts.max_tokens,
        exchange.outcome,
    )
    own = {
        "request_id": head.request_id,
        "workflow_id": tag.workflow_id,
        "node_id": None if exchange.tag is None else tag.node_id or head.request_id,
        "t_arrival_ns": exchange.t_arrival_ns,
        "t_head_ns": exchange.t_head_ns,
        "t_body_ns": exchange.t_body_ns,
        "t_upstream_ns": exchange.t_upstream_ns,
        "t_first_byte_ns": exchange.t_first_byte_ns,
        "t_first_token_ns": exchange.t_first_token_ns,
        "t_last_token_ns": exchange.t_last_token_ns,
        "t_end_ns": exchange.t_end_ns,
        "response_id": seen.response_id,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "read_dt_ns": list(exchange.read_times),
        "read_bytes": list(exchange.read_sizes),
        "read_tokens": list(exchange.read_tokens),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "sampling": facts.sampling,
        "messages": facts.messages,
        "block_hashes": facts.block_hashes,
    }
    return orjson.dumps(own)[:-1] + (_SHARED.get(key) or _share(key))


def _share(key: tuple[Any, ...]) -> bytes:
    """The rest of a line, from the comma on."""
    if len(_SHARED) >= MAX_SHARED:
        _SHARED.clear()
    told, *others = key
    rest = {**dict(zip(_OF_TAG, told, strict=True)), **dict(zip(_NAMES, others, strict=True)), **_USUAL}
    made = _SHARED[key] = b"," + orjson.dumps(rest, option=orjson.OPT_APPEND_NEWLINE)[1:]
    return made
