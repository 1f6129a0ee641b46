"""What a reply says about itself, in the four OpenAI-style dialects: token events, usage, ids, finish, engine metrics.

Lives here: observers fed with body bytes in reads of any size. The hot path compares a stream event with the shape of
the last plain token event (same bytes around the text) and counts it without decoding; whatever looks different is
parsed. Several tokens may share one event: then only usage knows (`Usage.completion_tokens`).
May not know: sockets, time, requests, what the counts are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from engines.sse import Splitter, fields

Api = Literal["completions", "chat", "responses", "messages"]
BODY_LIMIT = 16 << 20
"""bytes of a non-streaming reply kept for parsing; past it usage stays unknown (`error` says so)"""
TEXT_LIMIT = 4 << 20


@dataclass(slots=True)
class Usage:
    """Token counts as the engine states them; None where it did not. prompt_tokens includes cached ones."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(slots=True)
class EngineMetrics:
    """Per-request times of the engine (level L2), ns: queue, scheduled -> first token, first -> last token."""

    queue_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None


class Observer:
    """State common to all dialects. `feed` returns the token events completed by this read."""

    # Class-level defaults: a stream that is as usual never sets them, and one is made per request.
    metrics: EngineMetrics | None = None
    finish_reason: str | None = None
    response_id: str | None = None
    error: str | None = None
    """an error inside the reply, in the engine's words"""
    tokens = 0
    """token events so far (0 for a reply that is not a stream)"""
    ended = False
    """the dialect's own end marker was seen"""
    malformed = 0
    """events or bodies that are not what the dialect promises"""
    _text_bytes = 0

    def __init__(self, *, keep_text: bool = False) -> None:
        self.usage = Usage()
        self.tool_call_ids: list[str] = []
        self._keep_text = keep_text
        self._text: list[str] = []

    @property
    def text(self) -> str | None:
        """Output text so far; None unless it was asked for."""
        return "".join(self._text) if self._keep_text else None

    def feed(self, body: bytes) -> int:
        """Body bytes of one read; token events completed in it."""
        raise NotImplementedError

    def feed_all(self, bodies: list[bytes]) -> list[int]:
        """`feed` for several reads at once: the token events of each."""
        return [self.feed(body) for body in bodies]

    def finish(self) -> None:
        """The body is complete (or cut): take what is still in the buffer."""
        raise NotImplementedError

    def add_text(self, text: object) -> bool:
        """Keep output text if asked; whether there was any."""
        if not isinstance(text, str) or not text:
            return False
        if self._keep_text and self._text_bytes < TEXT_LIMIT:
            self._text.append(text)
            self._text_bytes += len(text)
        return True

    def add_tool(self, call_id: object) -> None:
        """Remember a tool call's id, once."""
        if isinstance(call_id, str) and call_id and call_id not in self.tool_call_ids:
            self.tool_call_ids.append(call_id)

    def take_id(self, value: object) -> None:
        """Remember the reply's id, the first that comes."""
        if self.response_id is None and isinstance(value, str):
            self.response_id = value

    def take_error(self, error: object) -> None:
        """An `error` member: keep its message."""
        if error is None:
            return
        message = error.get("message") if isinstance(error, dict) else error
        self.error = str(message if message is not None else error)[:2000]


Reader = Callable[[Observer, dict[str, Any]], int]
_BULK = 1024
"""bytes of a read from which on it probably holds several events"""


class _Shape(NamedTuple):
    """A plain token event of an earlier stream: bytes before its id, from the id's end to the text, after the text."""

    head: bytes
    middle: bytes
    suffix: bytes


_SHAPES: dict[tuple[Reader, bool], _Shape] = {}
"""The last shape seen per dialect. Only a shortcut: an event that does not fit byte for byte is parsed."""


class StreamObserver(Observer):
    """A reply as server-sent events."""

    _prefix = _suffix = _ending = b""
    _text_at = 0
    _frame = 1 << 62

    def __init__(self, read: Reader, plain: tuple[bytes, ...], *, keep_text: bool = False) -> None:
        self.usage = Usage()
        self.tool_call_ids = []
        self._keep_text = keep_text
        self._text = []
        self._read = read
        self._plain = plain
        self._splitter = Splitter()

    def feed(self, body: bytes) -> int:
        if (  # the hot path: this read is one plain token event, whole
            len(body) > self._frame
            and body.startswith(self._prefix)
            and body.endswith(self._ending)
            and body.find(b"\n\n") == len(body) - 2
            and body[self._text_at] != 34  # a quote: no text in it
            and self._splitter.at_border
            and b"\r" not in body
        ):
            if self._keep_text:
                self.add_text(_unquote(body[self._text_at : _string_end(body, self._text_at)]))
            self.tokens += 1
            return 1
        if (
            len(body) > _BULK
            and not self._keep_text
            and self._splitter.between
            and len(body) <= self._splitter.limit
            and body.startswith(b"data: ")
            and body.endswith(b"\n\n")
            and b"\r" not in body
        ):
            tokens = self._bulk(body)
        else:
            tokens = self._each(self._splitter.split(body))
        self.tokens += tokens
        return tokens

    def _bulk(self, body: bytes) -> int:
        """A read of several whole events: plain token events are counted at C speed, the others read one by one."""
        lines = body.splitlines()
        events = lines[::2]
        if any(lines[1::2]) or not all(events) or len(lines) & 1:  # comments, named events, surplus blank lines
            return self._each(self._splitter.split(body))
        self._splitter.skip()
        tokens = 0
        while events and not self._prefix:  # a chunk that only names the role; the token that teaches the shape
            tokens += self._each(events[:1])
            del events[0]
        prefix, suffix, at = self._prefix, self._suffix, self._text_at
        # prefix ends with the quote that opens the text, suffix ends with a brace: raw is longer than either
        odd = [raw for raw in events if not (raw.endswith(suffix) and raw.startswith(prefix) and raw[at] != 34)]
        return tokens + len(events) - len(odd) + self._each(odd)

    def _each(self, events: list[bytes]) -> int:
        """Events one by one; the tokens among them."""
        tokens, keep = 0, self._keep_text
        prefix, suffix, frame, at = self._prefix, self._suffix, self._frame, self._text_at
        for raw in events:
            if len(raw) > frame and raw.startswith(prefix) and raw.endswith(suffix) and raw[at] != 34:
                tokens += 1
                if keep:
                    self.add_text(_unquote(raw[at : _string_end(raw, at)]))
                continue
            tokens += 1 if not prefix and self._recall(raw) else self._slow(raw)
            prefix, suffix, frame, at = self._prefix, self._suffix, self._frame, self._text_at
        return tokens

    def feed_all(self, bodies: list[bytes]) -> list[int]:
        if not self._prefix:  # the first event gives the shape
            return [self.feed(body) for body in bodies]
        whole = b"".join(bodies)
        prefix, ending, frame, at = self._prefix, self._ending, self._frame, self._text_at
        if (  # as in feed, for all of them: each is one plain token event
            not self._keep_text
            and self._splitter.at_border
            and b"\r" not in whole
            and whole.count(b"\n\n") == len(bodies)
            and False
            not in [b.startswith(prefix) and b.endswith(ending) and len(b) > frame and b[at] != 34 for b in bodies]
        ):
            self.tokens += len(bodies)
            return [1] * len(bodies)
        return [self.feed(body) for body in bodies]

    def _recall(self, raw: bytes) -> bool:
        """The first token event of a stream that looks like the last stream's, its id apart: shape taken over."""
        shape = _SHAPES.get((self._read, self._keep_text))
        if shape is None or not raw.startswith(shape.head):
            return False
        at, suffix = len(shape.head), shape.suffix
        end = raw.find(b'"', at)
        start = end + len(shape.middle)
        if not raw.startswith(shape.middle, end) or not raw.endswith(suffix, start + 1) or raw[start] == 34:
            return False
        identity = raw[at:end]
        if b"\\" in identity or not identity.isascii():
            return False
        if self.response_id is None:
            self.response_id = identity.decode()
        self._take_shape(raw[:start], suffix)
        if self._keep_text:
            self.add_text(_unquote(raw[start : _string_end(raw, start)]))
        return True

    def _take_shape(self, prefix: bytes, suffix: bytes) -> None:
        self._prefix, self._suffix = prefix, suffix
        self._text_at = len(prefix)
        self._ending = suffix + b"\n\n"
        self._frame = len(prefix) + len(suffix)

    def _slow(self, raw: bytes) -> int:
        if raw == b"data: [DONE]":
            self.ended = True
            return 0
        if raw.startswith(b"data: ") and b"\n" not in raw:
            data = raw[6:]
        else:
            event = fields(raw)
            if event is None:
                return 0
            data = event.data
        if data == b"[DONE]":
            self.ended = True
            return 0
        try:
            row = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.malformed += 1
            return 0
        if not isinstance(row, dict):
            self.malformed += 1
            return 0
        try:
            tokens = self._read(self, row)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError):
            self.malformed += 1
            return 0
        if tokens == 1:
            self._learn(raw, row)
        return tokens

    def _learn(self, raw: bytes, row: dict[str, Any]) -> None:
        """Take the bytes around the text of a plain token event as the shape of those to come."""
        if not _is_plain(row):
            return
        for key in self._plain[:1] if self._keep_text else self._plain:
            at = raw.find(key)
            start = at + len(key)
            end = _string_end(raw, start) if at >= 0 else -1
            if end > start and raw.endswith(b"}"):
                self._take_shape(raw[:start], raw[_after_sequence(raw, end) :])
                self._remember()
                return

    def _remember(self) -> None:
        """Keep the shape for the next stream of this dialect."""
        quoted = b'"%s"' % (self.response_id or "").encode()
        at = self._prefix.find(quoted)
        if len(quoted) > 2 and at >= 0 and b"\\" not in quoted:
            shape = _Shape(self._prefix[: at + 1], self._prefix[at + len(quoted) - 1 :], self._suffix)
            _SHAPES[(self._read, self._keep_text)] = shape

    def finish(self) -> None:
        rest = self._splitter.tail.strip()
        if rest.startswith(b"{"):  # an error body where a stream was expected
            _read_body(self, self._read_whole, rest)
        elif rest:
            self.tokens += self._slow(self._splitter.tail.rstrip(b"\n"))
        self.malformed += self._splitter.dropped

    def _read_whole(self, _: Observer, row: dict[str, Any]) -> int:
        self.take_error(row.get("error"))
        return 0


class BodyObserver(Observer):
    """A reply as one JSON document: nothing is known before the end."""

    def __init__(self, read: Reader, *, keep_text: bool = False) -> None:
        super().__init__(keep_text=keep_text)
        self._read = read
        self._pieces: list[bytes] = []
        self._bytes = 0

    def feed(self, body: bytes) -> int:
        self._bytes += len(body)
        if self._bytes <= BODY_LIMIT:
            self._pieces.append(body)
        else:
            self._pieces.clear()
        return 0

    def finish(self) -> None:
        if self._bytes > BODY_LIMIT:
            self.malformed += 1
            self.error = f"a reply of {self._bytes} bytes is too long to be read"
        elif self._bytes:
            pieces, self._pieces = self._pieces, []
            _read_body(self, self._read, pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self.ended = self.malformed == 0


def _read_body(observer: Observer, read: Reader, body: bytes) -> None:
    try:
        row = orjson.loads(body)
        if isinstance(row, dict):
            read(observer, row)
        else:
            observer.malformed += 1
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError, KeyError, IndexError):
        observer.malformed += 1


# ---------------------------------------------------------------------------------------------- shapes


def _string_end(raw: bytes, start: int) -> int:
    """Index of the quote that closes the JSON string whose first character is at `start`; -1 if none."""
    at = start
    while True:
        at = raw.find(b'"', at)
        if at < 0:
            return -1
        slashes = 0
        while at - 1 - slashes >= start and raw[at - 1 - slashes] == 92:
            slashes += 1
        if slashes % 2 == 0:
            return at
        at += 1


def _after_sequence(raw: bytes, end: int) -> int:
    """Where the constant rest of an event begins: after its text, or after the Responses API's running number."""
    at = raw.find(b'"sequence_number":', end)
    if at < 0:
        return end
    at += len(b'"sequence_number":')
    while raw[at : at + 1].isdigit():
        at += 1
    return at


def _is_plain(row: dict[str, Any]) -> bool:
    """No figure or end in this event that the next one would change."""
    if row.get("usage") is not None:
        return False
    return not any(choice.get("finish_reason") for choice in row.get("choices") or ())


def _unquote(inner: bytes) -> str | None:
    try:
        value: str = orjson.loads(b'"' + inner + b'"')
    except orjson.JSONDecodeError:
        return None
    return value


# ---------------------------------------------------------------------------------------------- what JSON says


def _take_usage(observer: Observer, usage: Any) -> None:
    """OpenAI's usage object, old and Responses spelling."""
    if not isinstance(usage, dict):
        return
    seen, get = observer.usage, usage.get
    prompt = get("prompt_tokens") if "prompt_tokens" in usage else get("input_tokens")
    if prompt is not None:
        seen.prompt_tokens = int(prompt)
    completion = get("completion_tokens") if "completion_tokens" in usage else get("output_tokens")
    if completion is not None:
        seen.completion_tokens = int(completion)
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
    if observer.response_id is None:
        observer.take_id(row.get("id"))
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
    """/v1/chat/completions, streamed (delta) or not (message). The first, role-only chunk is no token."""
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


_STREAMS: dict[str, tuple[Reader, tuple[bytes, ...]]] = {
    # reader of one event; members whose string is a token's text (the first) or reasoning
    "completions": (_completions, (b'"text":"',)),
    "chat": (_chat, (b'"content":"', b'"reasoning":"', b'"reasoning_content":"')),
    "responses": (_responses_event, (b'"delta":"',)),
    "messages": (_messages_event, (b'"text":"', b'"thinking":"')),
}
_BODIES: dict[str, Reader] = {
    "completions": _completions,
    "chat": _chat,
    "responses": _responses_body,
    "messages": _messages_object,
}


def observer(api: str, stream: bool, *, keep_text: bool = False) -> Observer:
    """An observer for one reply. api: completions | chat | responses | messages (KeyError for another)."""
    if stream:
        read, plain = _STREAMS[api]
        return StreamObserver(read, plain, keep_text=keep_text)
    return BodyObserver(_BODIES[api], keep_text=keep_text)
