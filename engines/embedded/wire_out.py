"""What all replies share, and the completions and chat dialects: vLLM's members in vLLM's order.

A voice words one reply: stream events and whole bodies, as raw bytes. A token's event is two constant pieces around its
text, so that the hot path only joins bytes. May not know: sockets, chunk framing, the scheduler's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engines.embedded.types import RequestStats
from engines.embedded.wire_in import Plan

FINGERPRINT = "joulegraph-embedded"


@dataclass(frozen=True, slots=True)
class Result:
    """One generated sequence: its text, why it ended, counts and instants."""

    text: str
    tokens: Sequence[int]
    reason: str
    stats: RequestStats
    prompt: Sequence[int] = ()
    """the prompt's token ids, where the reply shows them"""
    stop: str | None = None
    """the stop string that ended it"""
    created: int = 0
    """prompt tokens whose blocks this request put into the prefix cache"""


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
    said = {} if stats.draft_tokens is None else {"speculative_decoding": speculation(stats)}
    return {
        "time_to_first_token_ms": (stats.t_first_token_ns - stats.t_scheduled_ns) / 1e6,
        "generation_time_ms": generation,
        "queue_time_ms": (stats.t_scheduled_ns - stats.t_arrival_ns) / 1e6,
        "mean_itl_ms": generation / (stats.output_tokens - 1) if stats.output_tokens > 1 else None,
        "tokens_per_second": stats.output_tokens / inference if inference > 0 else None,
        **said,
    }


def speculation(stats: RequestStats) -> dict[str, Any]:
    """vLLM's summary of a request's speculative decoding (--per-request-spec-decode-metrics summary)."""
    drafted, accepted, steps = stats.draft_tokens or 0, stats.accepted_tokens or 0, stats.spec_steps or 0
    return {
        "mean_acceptance_length": 1.0 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
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

    def begin(self, index: int, prompt: Sequence[int], empty: bool = False) -> bytes:
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
        self,
        index: int,
        number: int,
        token: int,
        text: str,
        prompt: Sequence[int],
        reason: str | None = None,
        stop: str | None = None,
    ) -> bytes:
        """The event of output token `number` (from 0); reason is set with the last."""
        ids = [token] if self.plan.return_token_ids else None
        if self.chat:
            delta: dict[str, Any] = {"content": text}
            if self.plan.tool is not None:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            choice |= {"stop_reason": stop, "token_ids": ids} if reason else {"token_ids": ids}
        else:
            wanted = number == 0 and (self.plan.return_token_ids or self.plan.echo)
            shown = list(prompt) if wanted else None
            choice = {
                "index": index, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": stop,
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
                details["created_cache_tokens"] = sum(r.created for r in results[:: self.plan.n])
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
                "stop_reason": result.stop, "token_ids": ids, "prompt_logprobs": None, "prompt_token_ids": shown,
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
            "finish_reason": finish_reason(result.reason, self.plan), "stop_reason": result.stop, "token_ids": ids,
            "routed_experts": None,
        }  # fmt: skip
