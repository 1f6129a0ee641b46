"""A reply as server-sent events, observed at the speed of the proxy's hot path.

A stream event is compared with the shape of the last plain token event (same bytes around the text) and counted without
being decoded; whatever looks different is parsed. Several tokens may share one event: then only usage knows
(`Usage.completion_tokens`). May not know: which dialect, sockets, time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from engines.observers import Observer, Reader, read_body
from engines.sse import Splitter, fields

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

    __slots__ = (
        "_between", "_empty", "_ending", "_frame", "_plain", "_prefix", "_read", "_splitter", "_suffix", "_text_at",
    )  # fmt: skip

    def __init__(self, read: Reader, plain: tuple[bytes, ...], *, keep_text: bool = False) -> None:
        super().__init__(keep_text=keep_text)
        self._read = read
        self._plain = plain
        self._splitter = Splitter()
        self._prefix = self._suffix = self._ending = b""
        self._between = self._empty = b""
        """end of a plain token event and beginning of the next; an event whose text is empty"""
        self._text_at = 0
        self._frame = 1 << 62

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
        """A read of several whole events: a run of plain token events is counted in one pass, the rest one by one."""
        at = taken = 0
        if not self._prefix:
            at = body.find(b"\n\n")
            if not self._recall(body[:at]):  # the first stream of its kind, or one that begins otherwise
                return self._each(self._splitter.split(body))
            at, taken = at + 2, 1
        self._splitter.skip()
        between = self._between
        last = body.rfind(between)
        if last >= 0 and body.startswith(self._prefix):
            after = last + len(self._ending)
            run = body.count(between, 0, last) + 1
            # Between two borders there is one text and no other line, and it does not begin with the closing quote.
            if body.count(b"\n", 0, after) == 2 * run and body.find(self._empty, 0, after) < 0:
                at, taken = after, run
        return taken + self._each(body[at:-2].split(b"\n\n") if at < len(body) else [])

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
        self._between = self._ending + prefix
        self._empty = prefix + b'"'
        self._frame = len(prefix) + len(suffix)

    def _slow(self, raw: bytes) -> int:
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
        try:  # what is no JSON is a ValueError, what is no object an AttributeError or TypeError of its reader
            row = orjson.loads(data)
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
            read_body(self, self._read_whole, rest)
        elif rest:
            self.tokens += self._slow(self._splitter.tail.rstrip(b"\n"))
        self.malformed += self._splitter.dropped

    def _read_whole(self, _: Observer, row: dict[str, Any]) -> int:
        self.take_error(row.get("error"))
        return 0


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
