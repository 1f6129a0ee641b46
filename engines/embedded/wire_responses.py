"""The Responses API as vLLM speaks it: named events with running numbers, the whole response at both ends.

May not know: sockets, chunk framing, earlier responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.embedded.wire_in import Plan
from engines.embedded.wire_out import Names, Result, dumps, event, metrics


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
            response["metrics"] = figures and figures | {"speculative_decoding": figures.get("speculative_decoding")}
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

    def begin(self, index: int, prompt: Sequence[int], empty: bool = False) -> bytes:
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
        self,
        index: int,
        number: int,
        token: int,
        text: str,
        prompt: Sequence[int],
        reason: str | None = None,
        stop: str | None = None,
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
            "cached_tokens": stats.cached_tokens, "cache_write_tokens": result.created, "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": stats.output_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": stats.prompt_tokens + stats.output_tokens,
    }  # fmt: skip
