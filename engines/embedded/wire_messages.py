"""Anthropic's dialect as vLLM speaks it: named events, usage at both ends.

May not know: sockets, chunk framing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.embedded.wire_in import Plan
from engines.embedded.wire_out import Names, Result, dumps, event, finish_reason

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesVoice:
    """Anthropic's dialect: named events, usage at both ends; input_tokens leaves the cached ones out."""

    def __init__(self, plan: Plan, names: Names) -> None:
        self.plan, self.names = plan, names
        self._open = False

    @property
    def plain(self) -> bool:
        return self.plan.tool is None

    def begin(self, index: int, prompt: Sequence[int], empty: bool = False) -> bytes:
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
        self._open = not empty
        if empty:
            return start
        return start + event("content_block_start", {"type": "content_block_start", "content_block": block, "index": 0})

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
        cached, created = result.stats.cached_tokens, result.created
        return {
            "input_tokens": result.stats.prompt_tokens - cached - created,
            "output_tokens": result.stats.output_tokens,
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": cached,
        }

    def _reason(self, result: Result) -> str:
        if result.stop is not None:
            return "stop_sequence"
        return _STOP_REASONS[finish_reason(result.reason, self.plan)]

    def end(self, results: Sequence[Result]) -> list[bytes]:
        delta = {"stop_reason": self._reason(results[0]), "stop_sequence": results[0].stop}
        last = {"type": "message_delta", "delta": delta, "usage": self._usage(results[0])}
        block = [event("content_block_stop", {"type": "content_block_stop", "index": 0})] if self._open else []
        return [
            *block,
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
                **({"stop_sequence": result.stop} if result.stop is not None else {}),
                "usage": self._usage(result),
            }
        )
