"""One call of a Parrot as a streamed completion of an OpenAI-style server: the request's bytes, the reply's token ids.

Lives here: what is asked for, what came back and when. May not know: contexts, the core, connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from engines import dialects
from engines.parrot.protocol import DEFAULT_MAX_GEN, parse_json
from engines.sse import SseParser
from traces import tags
from traces.records import Outcome

IdsFrom = Literal["token_ids", "logprobs"]
"""where a server puts the ids it generated: vLLM and SGLang in the choice, llama.cpp beside each token's probability"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the core asks of a generation."""

    max_tokens: int
    exact: bool
    """told to ignore the end of sequence: exactly max_tokens"""
    temperature: float
    top_p: float
    stop_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, sampling: dict[str, Any]) -> Wanted:
        """From a sampling_config; what is missing as Parrot has it."""
        return cls(
            int(sampling.get("max_gen_length") or DEFAULT_MAX_GEN),
            bool(sampling.get("ignore_tokenizer_eos")),
            float(sampling.get("temperature", 1.0)),
            float(sampling.get("top_p", 1.0)),
            tuple(sampling.get("stop_token_ids") or ()),
        )

    def body(self, model: str, prompt: list[int], ids_from: IdsFrom) -> bytes:
        """The body of POST /v1/completions."""
        asked: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "ignore_eos": self.exact,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"return_token_ids": True} if ids_from == "token_ids" else {"logprobs": 1}),
        }
        if self.exact:
            asked["min_tokens"] = self.max_tokens
        elif self.stop_token_ids:
            asked["stop_token_ids"] = self.stop_token_ids
        return orjson.dumps(asked)


def request(host: str, port: int, body: bytes, tag: tags.Tag, request_id: str) -> bytes:
    """Head and body of the completion's request."""
    lines = [
        "POST /v1/completions HTTP/1.1",
        f"host: {host}:{port}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{key}: {value}" for key, value in [*tags.to_headers(tag), (tags.REQUEST_ID, request_id)]),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ids_in(event: dict[str, Any]) -> list[int]:
    """Token ids of one event, in either form; what is of another shape has none."""
    out: list[int] = []
    for choice in event.get("choices") or ():
        if not isinstance(choice, dict):
            continue
        plain, beside = choice.get("token_ids"), choice.get("logprobs")
        content = beside.get("content") if isinstance(beside, dict) else None
        found = plain or [t.get("id") for t in content or () if isinstance(t, dict)]
        out += [i for i in found if isinstance(i, int)]
    return out


class Completion:
    """Collects one reply: token ids, instants, the engine's own words. A Reply of engines.http1."""

    def __init__(self, began_ns: int) -> None:
        self.ids: list[int] = []
        self.outcome: Outcome = "ok"
        self.error: str | None = None
        self.status: int | None = None
        self.first_byte_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.end_ns: int | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seen = dialects.observer("completions", stream=True)
        self._sse = SseParser()
        self._raw = b""
        self._read_ns = began_ns
        self._dts: list[int] = []
        self._tokens: list[int] = []

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """Only 200 streams."""
        self.status, self.first_byte_ns = status, now_ns

    def body(self, data: bytes, now_ns: int) -> None:
        """Token ids out of the events of one read."""
        if self.status != 200:
            self._raw = (self._raw + data)[:4096]
            return
        self._seen.feed(data)
        tokens = len(self.ids)
        for event in self._sse.feed(data):
            self.ids += ids_in(parse_json(event.data) or {})
        tokens = len(self.ids) - tokens
        self._dts.append(now_ns - self._read_ns)
        self._tokens.append(tokens)
        self._read_ns = now_ns
        if tokens:
            self.last_token_ns = now_ns
            self.first_token_ns = self.first_token_ns or now_ns

    def done(self, now_ns: int) -> None:
        """The reply is whole."""
        self._seen.finish()
        if self.status != 200:
            refused = 400 <= (self.status or 0) < 500
            why = f"{self.status}: {self._raw[:300].decode('utf-8', 'replace')}"
            self.fail("rejected" if refused else "error", why, now_ns)
        elif self._seen.error is not None:
            self.fail("error", self._seen.error, now_ns)
        elif self._seen.tokens and not self.ids:
            self.fail("error", "the server streamed text but no token ids, which a Parrot needs", now_ns)
        else:
            self.settle(now_ns)

    def lost(self, why: str, now_ns: int) -> None:
        """The connection broke."""
        self.fail("upstream_died", why, now_ns)

    def fail(self, outcome: Outcome, why: str, now_ns: int) -> None:
        """It ended otherwise than whole; what came is kept."""
        if self.end_ns is None:
            self.outcome, self.error = outcome, why
        self.settle(now_ns)

    def settle(self, now_ns: int) -> None:
        """It is over; only the first end counts."""
        self.end_ns = self.end_ns or now_ns
        if not self.over.done():
            self.over.set_result(None)

    def again(self) -> None:
        """It will be sent once more: nothing of a reply had come."""
        self.outcome, self.error, self.end_ns = "ok", None, None
        self.over = asyncio.get_running_loop().create_future()

    def fields(self) -> dict[str, Any]:
        """What was seen, as fields of RequestRecord. Token counts are the engine's, else those of the ids."""
        usage, metrics = self._seen.usage, self._seen.metrics or dialects.EngineMetrics()
        return {
            "outcome": self.outcome,
            "t_end_ns": self.end_ns,
            "stream": True,
            "t_first_byte_ns": self.first_byte_ns,
            "t_first_token_ns": self.first_token_ns,
            "t_last_token_ns": self.last_token_ns,
            "status": self.status,
            "finish_reason": self._seen.finish_reason,
            "error": self.error,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": len(self.ids) if usage.completion_tokens is None else usage.completion_tokens,
            "engine_queue_ns": metrics.queue_ns,
            "engine_prefill_ns": metrics.prefill_ns,
            "engine_decode_ns": metrics.decode_ns,
            "draft_tokens": metrics.draft_tokens,
            "accepted_tokens": metrics.accepted_tokens,
            "read_dt_ns": tuple(self._dts),
            "read_tokens": tuple(self._tokens),
        }
