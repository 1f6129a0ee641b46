"""What is known of one reply while it comes in: the state that all dialects share, and replies that are one document.

Observers are fed with body bytes in reads of any size. May not know: which dialect, sockets, time, what counts are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from engines.shapes import Shape

BODY_LIMIT: Final = 16 << 20
"""bytes of a non-streaming reply kept for parsing; past it usage stays unknown (`error` says so)"""
TEXT_LIMIT: Final = 4 << 20


@dataclass(slots=True)
class Usage:
    """Token counts as the engine states them; None where it did not. prompt_tokens includes cached ones."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(slots=True)
class EngineMetrics:
    """Per-request times of the engine (level L2), ns: queue, scheduled -> first token, first -> last token; where it
    speculates, draft tokens verified for the request and those of them accepted."""

    queue_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None


class Observer:
    """State common to all dialects. `feed` returns the token events completed by this read."""

    __slots__ = (
        "_text", "_text_bytes", "ended", "error", "finish_reason", "keeps_text", "malformed", "metrics", "response_id",
        "tokens", "tool_call_ids", "usage",
    )  # fmt: skip

    def __init__(self, *, keep_text: bool = False) -> None:
        self.usage = Usage()
        self.tool_call_ids: list[str] = []
        self.metrics: EngineMetrics | None = None
        self.finish_reason: str | None = None
        self.response_id: str | None = None
        self.error: str | None = None
        """an error inside the reply, in the engine's words"""
        self.tokens = 0
        """token events so far (0 for a reply that is not a stream)"""
        self.ended = False
        """the dialect's own end marker was seen"""
        self.malformed = 0
        """events or bodies that are not what the dialect promises"""
        self.keeps_text = keep_text
        self._text: list[str] = []
        self._text_bytes = 0

    @property
    def text(self) -> str | None:
        """Output text so far; None unless it was asked for."""
        return "".join(self._text) if self.keeps_text else None

    def plain(self) -> Shape | None:
        """What a read of one plain token event looks like, which `note` may be told of in place of `feed`; None while
        nothing is to pass unread."""
        return None

    def note(self, reads: int) -> None:
        """So many reads that were one plain token event each."""
        self.tokens += reads

    def feed(self, body: bytes) -> int:
        """Body bytes of one read; token events completed in it."""
        raise NotImplementedError

    def feed_each(self, bodies: list[bytes]) -> list[int]:
        """Several reads in order, each of which ends with a blank line: the token events completed in each."""
        return [self.feed(body) for body in bodies]

    def finish(self) -> None:
        """The body is complete (or cut): take what is still in the buffer."""
        raise NotImplementedError

    def add_text(self, text: object) -> bool:
        """Keep output text if asked; whether there was any."""
        if not isinstance(text, str) or not text:
            return False
        if self.keeps_text and self._text_bytes < TEXT_LIMIT:
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


class BodyObserver(Observer):
    """A reply as one JSON document: nothing is known before the end."""

    __slots__ = ("_bytes", "_pieces", "_read")

    def __init__(self, read: Reader, *, keep_text: bool = False) -> None:
        Observer.__init__(self, keep_text=keep_text)
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
            read_body(self, self._read, pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self.ended = self.malformed == 0


def read_body(observer: Observer, read: Reader, body: bytes) -> None:
    try:
        row = orjson.loads(body)
        if isinstance(row, dict):
            read(observer, row)
        else:
            observer.malformed += 1
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError, KeyError, IndexError):
        observer.malformed += 1
