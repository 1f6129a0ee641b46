"""Replies of the four dialects: vLLM's members in vLLM's order. One Voice per reply: stream events and whole bodies.

A Voice words events as raw bytes; a token's event is two constant pieces around its text, so that the hot path only
joins bytes. May not know: sockets, chunk framing, the scheduler's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engines.embedded.types import RequestStats
from engines.embedded.wire_in import Plan

FINGERPRINT = "joulegraph-embedded"
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True, slots=True)
class Result:
    """One generated sequence: its text, why it ended, counts and instants."""

    text: str
    tokens: Sequence[int]
    reason: str
    stats: RequestStats
    prompt: Sequence[int] = ()
    """the prompt's token ids, where the reply shows them"""


@dataclass(frozen=True, slots=True)
class Names:
    """Ids and stamps of one reply."""

    response_id: str
    created: int
    model: str
    item_id: str
    """message or tool-call id"""


def dumps(value: Any) -> bytes:
    """JSON, compact."""
    return orjson.dumps(value)


def data(value: Any) -> bytes:
    """A nameless event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def event(name: str, value: Any) -> bytes:
    """A named event."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


def finish_reason(reason: str, plan: Plan) -> str:
    """vLLM's word for an end, tools considered."""
    return "tool_calls" if plan.tool is not None else reason


def metrics(stats: RequestStats) -> dict[str, Any] | None:
    """vLLM's per-request metrics: first token from SCHEDULED, generation from first to last token, ms."""
    if stats.t_scheduled_ns is None or stats.t_first_token_ns is None or stats.t_last_token_ns is None:
        return None
    generation = (stats.t_last_token_ns - stats.t_first_token_ns) / 1e6
    inference = (stats.t_last_token_ns - stats.t_scheduled_ns) / 1e9
    return {
        "time_to_first_token_ms": (stats.t_first_token_ns - stats.t_scheduled_ns) / 1e6,
        "generation_time_ms": generation,
        "queue_time_ms": (stats.t_scheduled_ns - stats.t_arrival_ns) / 1e6,
        "mean_itl_ms": generation / (stats.output_tokens - 1) if stats.output_tokens > 1 else None,
        "tokens_per_second": stats.output_tokens / inference if inference > 0 else None,
    }


def argument_pieces(text: str, tokens: int) -> list[str]:
    """A tool call's arguments cut over the tokens of the reply, in order; later ones may be empty."""
    size = max(1, -(-len(text) // max(1, tokens)))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return pieces + [""] * (tokens - len(pieces))


class OpenAiVoice:
    """Completions and chat: `data:` events, usage in a last chunk without choices, [DONE]."""

    def __init__(self, plan: Plan, names: Names, *, details: bool, per_request_metrics: bool) -> None:
        self.plan, self.names = plan, names
        self.chat = plan.api == "chat"
        self._details, self._metrics = details, per_request_metrics and plan.n * len(plan.prompts) == 1

    @property
    def plain(self) -> bool:
        """Token events differ in their text only: they can be joined from constant pieces."""
        return not (self.plan.continuous_usage or self.plan.return_token_ids or self.plan.tool)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        names = self.names
        return {
            "id": names.response_id, "object": kind, "created": names.created, "model": names.model, "choices": choices,
        }  # fmt: skip

    def _running_usage(self, prompt: int, tokens: int) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
        return usage | {"completion_tokens_details": None} if self.chat else usage

    def begin(self, index: int, prompt: Sequence[int]) -> bytes:
        """What comes before the first token."""
        if not self.chat:
            return b""
        chunk = self._chunk(
            [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
        )
        if self.plan.continuous_usage:
            chunk["usage"] = self._running_usage(len(prompt), 0)
        chunk["prompt_token_ids"] = list(prompt) if self.plan.return_token_ids else None
        chunk["prompt_text"] = None
        out = data(chunk)
        tool = self.plan.tool
        if tool is not None:
            call = {
                "id": self.names.item_id, "type": "function", "index": 0,
                "function": {"name": tool.name, "arguments": ""},
            }  # fmt: skip
            delta = {"tool_calls": [call]}
            out += data(self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]))
        return out

    def token(
        self, index: int, number: int, token: int, text: str, prompt: Sequence[int], reason: str | None = None
    ) -> bytes:
        """The event of output token `number` (from 0); reason is set with the last."""
        ids = [token] if self.plan.return_token_ids else None
        if self.chat:
            delta: dict[str, Any] = {"content": text}
            if self.plan.tool is not None:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            choice |= {"stop_reason": None, "token_ids": ids} if reason else {"token_ids": ids}
        else:
            shown = list(prompt) if self.plan.return_token_ids and number == 0 else None
            choice = {
                "index": index, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None,
                "prompt_token_ids": shown, "token_ids": ids,
            }  # fmt: skip
        chunk = self._chunk([choice])
        if self.plan.continuous_usage:
            chunk["usage"] = self._running_usage(len(prompt), number + 1)
        if reason and not self.plan.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return data(chunk)

    def pieces(self, index: int) -> tuple[bytes, bytes]:
        """Constant bytes before and after a token's text."""
        mark = "\x00"
        before, _, after = self.token(index, 1, 0, mark, ()).partition(b"\\u0000")
        return before, after

    def end(self, results: Sequence[Result]) -> list[bytes]:
        """What comes after the last token of all."""
        out = []
        if self.plan.include_usage:
            chunk = self._chunk([])
            chunk["usage"] = self._usage(results, stream=True)
            chunk["system_fingerprint"] = FINGERPRINT
            if self._metrics:
                chunk["metrics"] = metrics(results[0].stats)
            out.append(data(chunk))
        out.append(b"data: [DONE]\n\n")
        return out

    def _usage(self, results: Sequence[Result], *, stream: bool) -> dict[str, Any]:
        prompt = sum(r.stats.prompt_tokens for r in results[:: self.plan.n])
        tokens = sum(r.stats.output_tokens for r in results)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens,
        }  # fmt: skip
        if self._details:
            cached = sum(r.stats.cached_tokens for r in results[:: self.plan.n])
            details: dict[str, Any] = {"cached_tokens": cached}
            if self.chat:
                details["created_cache_tokens"] = 0
            elif not stream:
                details["created_cache_tokens"] = None
            if not stream:
                details["multimodal_tokens"] = None
            usage["prompt_tokens_details"] = details
        elif not stream:
            usage["prompt_tokens_details"] = None
        if not stream:
            usage["completion_tokens_details"] = None
        return usage

    def body(self, results: Sequence[Result]) -> bytes:
        """The reply as one document."""
        choices = [self._choice(i, result) for i, result in enumerate(results)]
        reply = self._chunk(choices)
        reply["object"] = "chat.completion" if self.chat else "text_completion"
        reply["service_tier"] = None
        reply["system_fingerprint"] = FINGERPRINT
        reply["usage"] = self._usage(results, stream=False)
        if self.chat:
            shown = list(results[0].prompt) if self.plan.return_token_ids else None
            reply |= {"prompt_logprobs": None, "prompt_token_ids": shown, "prompt_text": None}
        reply |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        if self._metrics:
            figures = metrics(results[0].stats)
            reply["metrics"] = figures and figures | {"speculative_decoding": None}
        return dumps(reply)

    def _choice(self, index: int, result: Result) -> dict[str, Any]:
        ids = list(result.tokens) if self.plan.return_token_ids else None
        if not self.chat:
            shown = list(result.prompt) if self.plan.return_token_ids else None
            return {
                "index": index, "text": result.text, "logprobs": None, "finish_reason": result.reason,
                "stop_reason": None, "token_ids": ids, "prompt_logprobs": None, "prompt_token_ids": shown,
                "routed_experts": None,
            }  # fmt: skip
        message: dict[str, Any] = {
            "role": "assistant", "content": result.text, "refusal": None, "annotations": None, "audio": None,
            "function_call": None, "reasoning": None,
        }  # fmt: skip
        tool = self.plan.tool
        if tool is not None:
            message["content"] = None
            function = {"name": tool.name, "arguments": dumps(tool.arguments).decode()}
            message["tool_calls"] = [{"id": self.names.item_id, "type": "function", "function": function}]
        return {
            "index": index, "message": message, "logprobs": None,
            "finish_reason": finish_reason(result.reason, self.plan), "stop_reason": None, "token_ids": ids,
            "routed_experts": None,
        }  # fmt: skip


class MessagesVoice:
    """Anthropic's dialect: named events, usage at both ends; input_tokens leaves the cached ones out."""

    def __init__(self, plan: Plan, names: Names) -> None:
        self.plan, self.names = plan, names

    @property
    def plain(self) -> bool:
        return self.plan.tool is None

    def begin(self, index: int, prompt: Sequence[int]) -> bytes:
        names = self.names
        message: dict[str, Any] = {
            "id": names.response_id, "type": "message", "role": "assistant", "content": [], "model": names.model,
            "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": len(prompt), "output_tokens": 0},
        }  # fmt: skip
        block: dict[str, Any] = {"type": "text", "text": ""}
        if self.plan.tool is not None:
            block = {"type": "tool_use", "id": names.item_id, "name": self.plan.tool.name, "input": {}}
        start = event("message_start", {"type": "message_start", "message": message})
        return start + event("content_block_start", {"type": "content_block_start", "content_block": block, "index": 0})

    def token(
        self, index: int, number: int, token: int, text: str, prompt: Sequence[int], reason: str | None = None
    ) -> bytes:
        delta = {"type": "text_delta", "text": text}
        if self.plan.tool is not None:
            delta = {"type": "input_json_delta", "partial_json": text}
        if not text:
            return b""
        return event("content_block_delta", {"type": "content_block_delta", "delta": delta, "index": 0})

    def pieces(self, index: int) -> tuple[bytes, bytes]:
        before, _, after = self.token(index, 1, 0, "\x00", ()).partition(b"\\u0000")
        return before, after

    def _usage(self, result: Result) -> dict[str, int]:
        cached = result.stats.cached_tokens
        return {
            "input_tokens": result.stats.prompt_tokens - cached, "output_tokens": result.stats.output_tokens,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
        }  # fmt: skip

    def _reason(self, result: Result) -> str:
        return _STOP_REASONS[finish_reason(result.reason, self.plan)]

    def end(self, results: Sequence[Result]) -> list[bytes]:
        delta = {"stop_reason": self._reason(results[0]), "stop_sequence": None}
        last = {"type": "message_delta", "delta": delta, "usage": self._usage(results[0])}
        return [
            event("content_block_stop", {"type": "content_block_stop", "index": 0}),
            event("message_delta", last),
            event("message_stop", {"type": "message_stop"}),
        ]

    def body(self, results: Sequence[Result]) -> bytes:
        result, tool = results[0], self.plan.tool
        block: dict[str, Any] = {"type": "text", "text": result.text}
        if tool is not None:
            block = {"type": "tool_use", "id": self.names.item_id, "name": tool.name, "input": tool.arguments}
        return dumps(
            {
                "id": self.names.response_id,
                "type": "message",
                "role": "assistant",
                "content": [block],
                "model": self.names.model,
                "stop_reason": self._reason(result),
                "usage": self._usage(result),
            }
        )


class ResponsesVoice:
    """The Responses API: named events with running numbers, the whole response at both ends, no [DONE]."""

    def __init__(self, plan: Plan, names: Names, *, per_request_metrics: bool) -> None:
        self.plan, self.names = plan, names
        self._metrics = per_request_metrics
        self._sequence = 0

    @property
    def plain(self) -> bool:
        return False

    def _event(self, kind: str, value: dict[str, Any]) -> bytes:
        value = value | {"sequence_number": self._sequence, "type": kind}
        self._sequence += 1
        return event(kind, value)

    def _response(self, status: str, output: list[Any], result: Result | None) -> dict[str, Any]:
        body, names = self.plan.body, self.names
        cut = result is not None and status == "incomplete"
        response = {
            "id": names.response_id, "created_at": names.created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.get("instructions"), "metadata": body.get("metadata"), "model": names.model,
            "object": "response", "output": output, "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "temperature": float(body.get("temperature", 1.0)),
            "tool_choice": body.get("tool_choice") or ("auto" if body.get("tools") else "none"),
            "tools": body.get("tools") or [], "top_p": float(body.get("top_p", 1.0)), "background": False,
            "max_output_tokens": self.plan.max_tokens[0], "max_tool_calls": None,
            "previous_response_id": body.get("previous_response_id"), "prompt": None,
            "reasoning": body.get("reasoning"), "service_tier": "auto", "status": status, "text": None,
            "top_logprobs": None, "truncation": "disabled", "usage": result and _responses_usage(result), "user": None,
        }  # fmt: skip
        if result is not None:
            figures = metrics(result.stats) if self._metrics else None
            response["metrics"] = figures and figures | {"speculative_decoding": None}
        return response | {
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "kv_transfer_params": None, "ec_transfer_params": None,
            "input_messages": None, "output_messages": None,
        }  # fmt: skip

    def _item(self, text: str | None, status: str) -> dict[str, Any]:
        """The output item; text None while there is none yet."""
        tool = self.plan.tool
        if tool is not None:
            return {
                "arguments": dumps(tool.arguments).decode() if text is not None else "",
                "call_id": self.names.item_id, "name": tool.name, "type": "function_call",
                "id": "fc_" + self.names.item_id.rpartition("-")[2], "status": status,
            }  # fmt: skip
        content = [] if text is None else [self._part(text, None)]
        return {
            "id": self.names.item_id, "content": content, "role": "assistant", "status": status, "type": "message",
            "phase": None,
        }  # fmt: skip

    @staticmethod
    def _part(text: str, logprobs: list[Any] | None) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def begin(self, index: int, prompt: Sequence[int]) -> bytes:
        out = b"".join(
            self._event(kind, {"response": self._response("in_progress", [], None)})
            for kind in ("response.created", "response.in_progress")
        )
        out += self._event("response.output_item.added", {"item": self._item(None, "in_progress"), "output_index": 0})
        if self.plan.tool is None:
            place = {"content_index": 0, "item_id": self.names.item_id, "output_index": 0}
            out += self._event("response.content_part.added", place | {"part": self._part("", [])})
        return out

    def token(
        self, index: int, number: int, token: int, text: str, prompt: Sequence[int], reason: str | None = None
    ) -> bytes:
        if not text:
            return b""
        item = self.names.item_id
        if self.plan.tool is not None:
            delta = {"delta": text, "item_id": self._item(None, "")["id"], "output_index": 0}
            return self._event("response.function_call_arguments.delta", delta)
        delta = {"content_index": 0, "delta": text, "item_id": item, "logprobs": [], "output_index": 0}
        return self._event("response.output_text.delta", delta)

    def pieces(self, index: int) -> tuple[bytes, bytes]:
        """Bytes around a token's text; the running number and the end are the caller's."""
        raise NotImplementedError

    def end(self, results: Sequence[Result]) -> list[bytes]:
        result = results[0]
        item = self._item(result.text, "completed")
        place = {"content_index": 0, "item_id": self.names.item_id, "output_index": 0}
        out = []
        if self.plan.tool is None:
            done = {"content_index": 0, "item_id": self.names.item_id, "logprobs": [], "output_index": 0}
            out.append(self._numbered("response.output_text.done", done, {"text": result.text}))
            out.append(self._event("response.content_part.done", place | {"part": self._part(result.text, None)}))
        else:
            done = {"arguments": item["arguments"], "item_id": item["id"], "name": item["name"], "output_index": 0}
            out.append(self._event("response.function_call_arguments.done", done))
        out.append(self._event("response.output_item.done", {"item": item, "output_index": 0}))
        status = self._status(result)
        out.append(self._event("response.completed", {"response": self._response(status, [item], result)}))
        return out

    def _numbered(self, kind: str, before: dict[str, Any], after: dict[str, Any]) -> bytes:
        value = before | {"sequence_number": self._sequence} | after | {"type": kind}
        self._sequence += 1
        return event(kind, value)

    def _status(self, result: Result) -> str:
        return "incomplete" if result.reason == "length" and self.plan.tool is None else "completed"

    def body(self, results: Sequence[Result]) -> bytes:
        result = results[0]
        item = self._item(result.text, "completed")
        return dumps(self._response(self._status(result), [item], result))


def _responses_usage(result: Result) -> dict[str, Any]:
    stats = result.stats
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": stats.cached_tokens, "cache_write_tokens": 0, "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": stats.output_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": stats.prompt_tokens + stats.output_tokens,
    }  # fmt: skip


Voice = OpenAiVoice | MessagesVoice | ResponsesVoice


def voice(plan: Plan, names: Names, *, details: bool, per_request_metrics: bool) -> Voice:
    """The voice for a plan's dialect."""
    if plan.api == "messages":
        return MessagesVoice(plan, names)
    if plan.api == "responses":
        return ResponsesVoice(plan, names, per_request_metrics=per_request_metrics)
    return OpenAiVoice(plan, names, details=details, per_request_metrics=per_request_metrics)
