"""What a reply says about itself, in the four OpenAI-style dialects: token events, usage, ids, finish, engine metrics.

Lives here: per dialect, the reader of one parsed event or body. How bytes become events is eventstream's, what is kept
is observers'. May not know: sockets, time, requests, what the counts are for.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from engines.eventstream import StreamObserver
from engines.observers import BodyObserver, EngineMetrics, Observer, Reader, Usage
from traces.speculation import speculated

__all__ = ["Api", "EngineMetrics", "Observer", "Usage", "observer"]

Api = Literal["completions", "chat", "responses", "messages"]


def _take_usage(observer: Observer, usage: Any) -> None:
    """OpenAI's usage object, old and Responses spelling."""
    if not isinstance(usage, dict):
        return
    seen, get = observer.usage, usage.get
    prompt = get("prompt_tokens") if "prompt_tokens" in usage else get("input_tokens")
    if prompt is not None:
        seen.prompt_tokens = prompt if type(prompt) is int else int(prompt)
    completion = get("completion_tokens") if "completion_tokens" in usage else get("output_tokens")
    if completion is not None:
        seen.completion_tokens = completion if type(completion) is int else int(completion)
    details = get("prompt_tokens_details") or get("input_tokens_details")
    if details and details.get("cached_tokens") is not None:
        seen.cached_tokens = int(details["cached_tokens"])
    details = get("completion_tokens_details") or get("output_tokens_details")
    if details and details.get("reasoning_tokens") is not None:
        seen.reasoning_tokens = int(details["reasoning_tokens"])


def _take_metrics(observer: Observer, row: dict[str, Any]) -> None:
    """vLLM's `metrics` object or llama.cpp's `timings`, both in ms."""
    metrics = row.get("metrics")
    if isinstance(metrics, dict):
        observer.metrics = EngineMetrics(
            _ms(metrics.get("queue_time_ms")),
            _ms(metrics.get("time_to_first_token_ms")),
            _ms(metrics.get("generation_time_ms")),
            *speculated(metrics.get("speculative_decoding")),
        )
    timings = row.get("timings")
    if isinstance(timings, dict):
        observer.metrics = EngineMetrics(None, _ms(timings.get("prompt_ms")), _ms(timings.get("predicted_ms")))
        if observer.usage.cached_tokens is None and timings.get("cache_n") is not None:
            observer.usage.cached_tokens = int(timings["cache_n"])


def _ms(value: Any) -> int | None:
    return None if value is None else round(float(value) * 1e6)


def _choices(observer: Observer, row: dict[str, Any]) -> list[dict[str, Any]]:
    """What completions and chat share: id, error, usage, metrics; the choices."""
    if observer.response_id is None and isinstance(row.get("id"), str):
        observer.response_id = row["id"]
    if "error" in row:
        observer.take_error(row["error"])
    if "usage" in row:
        _take_usage(observer, row["usage"])
    if "metrics" in row or "timings" in row:
        _take_metrics(observer, row)
    choices: list[dict[str, Any]] = row.get("choices") or []
    for choice in choices:
        if choice.get("finish_reason"):
            observer.finish_reason = str(choice["finish_reason"])
    return choices


def _completions(observer: Observer, row: dict[str, Any]) -> int:
    """/v1/completions, streamed or not."""
    tokens = 0
    for choice in _choices(observer, row):
        if (choice.get("text") and observer.add_text(choice["text"])) or choice.get("token_ids"):
            tokens += 1
    return tokens


def _chat(observer: Observer, row: dict[str, Any]) -> int:
    """/v1/chat/completions, one event of a stream. The first, role-only chunk is no token."""
    tokens = 0
    for choice in _choices(observer, row):
        part = choice.get("delta") or choice.get("message") or {}
        some = observer.add_text(part.get("content"))
        some = bool(part.get("reasoning") or part.get("reasoning_content") or some)
        for call in part.get("tool_calls") or ():
            observer.add_tool(call.get("id"))
            function = call.get("function") or {}
            some = bool(some or function.get("arguments") or function.get("name"))
        tokens += some
    return tokens


def _chat_body(observer: Observer, row: dict[str, Any]) -> int:
    """The same of a whole reply, whose token events nobody counts."""
    for choice in _choices(observer, row):
        message = choice.get("message") or {}
        if observer.keeps_text:
            observer.add_text(message.get("content"))
        for call in message.get("tool_calls") or ():
            observer.add_tool(call.get("id"))
    return 0


def _response_object(observer: Observer, response: dict[str, Any]) -> None:
    """The Responses API's own object: the whole reply, or inside created/completed events."""
    observer.take_id(response.get("id"))
    observer.take_error(response.get("error"))
    _take_usage(observer, response.get("usage"))
    _take_metrics(observer, response)
    status = response.get("status")
    if status in ("completed", "incomplete", "failed", "cancelled"):
        reason = (response.get("incomplete_details") or {}).get("reason")
        observer.finish_reason = str(reason or status)
    for item in response.get("output") or ():
        observer.add_tool(item.get("call_id"))


def _responses_event(observer: Observer, row: dict[str, Any]) -> int:
    kind = row.get("type", "")
    if kind.endswith(".delta"):
        text = kind == "response.output_text.delta"
        return bool(observer.add_text(row.get("delta")) if text else row.get("delta"))
    if kind == "error" or "error" in row:
        observer.take_error(row.get("error") or row.get("message") or row)
    if kind == "response.output_item.added":
        observer.add_tool((row.get("item") or {}).get("call_id"))
    if "response" in row:
        _response_object(observer, row["response"])
        observer.ended = kind in ("response.completed", "response.incomplete", "response.failed")
    return 0


def _responses_body(observer: Observer, row: dict[str, Any]) -> int:
    _response_object(observer, row)
    for item in row.get("output") or ():
        for part in item.get("content") or ():
            observer.add_text(part.get("text"))
    return 0


def _take_messages_usage(observer: Observer, usage: Any) -> None:
    """Anthropic's usage: input_tokens leaves the cached ones out, so the prompt is the sum of the three."""
    if not isinstance(usage, dict):
        return
    seen = observer.usage
    if usage.get("input_tokens") is not None:
        extra = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
        seen.prompt_tokens = int(usage["input_tokens"]) + int(extra)
    if usage.get("cache_read_input_tokens") is not None:
        seen.cached_tokens = int(usage["cache_read_input_tokens"])
    if usage.get("output_tokens") is not None:
        seen.completion_tokens = int(usage["output_tokens"])


def _messages_object(observer: Observer, row: dict[str, Any]) -> int:
    observer.take_id(row.get("id"))
    observer.take_error(row.get("error"))
    _take_messages_usage(observer, row.get("usage"))
    if row.get("stop_reason"):
        observer.finish_reason = str(row["stop_reason"])
    for block in row.get("content") or ():
        _messages_block(observer, block)
    return 0


def _messages_block(observer: Observer, block: dict[str, Any]) -> None:
    observer.add_text(block.get("text"))
    if block.get("type") == "tool_use":
        observer.add_tool(block.get("id"))


def _messages_event(observer: Observer, row: dict[str, Any]) -> int:
    kind = row.get("type")
    if kind == "content_block_delta":
        delta = row.get("delta") or {}
        return bool(observer.add_text(delta.get("text")) or delta.get("partial_json") or delta.get("thinking"))
    if kind == "message_start":
        _messages_object(observer, row["message"])
    elif kind == "content_block_start":
        _messages_block(observer, row.get("content_block") or {})
    elif kind == "message_delta":
        _take_messages_usage(observer, row.get("usage"))
        reason = (row.get("delta") or {}).get("stop_reason")
        observer.finish_reason = str(reason) if reason else observer.finish_reason
    elif kind == "message_stop":
        observer.ended = True
    elif kind == "error" or "error" in row:
        observer.take_error(row.get("error"))
    return 0


_STREAMS: Final[dict[str, tuple[Reader, tuple[bytes, ...]]]] = {
    # reader of one event; members whose string is a token's text (the first) or reasoning
    "completions": (_completions, (b'"text":"',)),
    "chat": (_chat, (b'"content":"', b'"reasoning":"', b'"reasoning_content":"')),
    "responses": (_responses_event, (b'"delta":"',)),
    "messages": (_messages_event, (b'"text":"', b'"thinking":"')),
}
_BODIES: Final[dict[str, Reader]] = {
    "completions": _completions,
    "chat": _chat_body,
    "responses": _responses_body,
    "messages": _messages_object,
}


def observer(api: str, stream: bool, *, keep_text: bool = False) -> Observer:
    """An observer for one reply. api: completions | chat | responses | messages (KeyError for another)."""
    if stream:
        read, plain = _STREAMS[api]
        return StreamObserver(read, plain, keep_text=keep_text)
    return BodyObserver(_BODIES[api], keep_text=keep_text)
