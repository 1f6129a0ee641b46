"""A reply as server-sent events, observed at the speed of the proxy's hot path.

A stream event is compared with the shape of the last plain token event (same bytes around the text) and counted without
being decoded; whatever looks different is parsed. Several tokens may share one event: then only usage knows
(`Usage.completion_tokens`). May not know: which dialect, sockets, time.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from engines.observers import Observer, Reader, read_body
from engines.shapes import USAGE, USAGE_AND_END, Shape, learn_last, learned, recalled, string_end
from engines.sse import Splitter, fields

_CR: Final = 13
_LF: Final = 10
_QUOTE: Final = 34
"""looking for a byte by its number costs a tenth of looking for bytes of length 1"""
_BULK: Final = 1024
"""bytes of a read from which on it probably holds several events"""
_FEW: Final = 4
"""reads that are as cheap one by one as together"""


class StreamObserver(Observer):
    """A reply as server-sent events."""

    __slots__ = ("_plain", "_read", "_shape", "_splitter")

    def __init__(self, read: Reader, plain: tuple[bytes, ...], *, keep_text: bool = False) -> None:
        super().__init__(keep_text=keep_text)
        self._read = read
        self._plain = plain
        self._splitter = Splitter()
        self._shape: Shape | None = None

    def plain(self) -> Shape | None:
        return self._shape if self._splitter.at_border and not self.keeps_text else None

    def feed(self, body: bytes) -> int:
        shape = self._shape
        if shape is not None and self._splitter.at_border and shape.is_event(body, 0, shape.ending):  # the hot path
            if self.keeps_text:
                self.add_text(_unquote(body[shape.at : string_end(body, shape.at)]))
            self.tokens += 1
            return 1
        if (
            len(body) > _BULK
            and not self.keeps_text
            and self._splitter.between
            and len(body) <= self._splitter.limit
            and body.startswith(b"data: ")
            and body.endswith(b"\n\n")
            and _CR not in body
        ):
            tokens = self._bulk(body)
        else:
            tokens = self._each(self._splitter.split(body))
        self.tokens += tokens
        return tokens

    def feed_each(self, bodies: list[bytes]) -> list[int]:
        counts: list[int] = []
        while self._shape is None and len(counts) < len(bodies):
            counts.append(self.feed(bodies[len(counts)]))
        return counts + self._together(bodies[len(counts) :])

    def _together(self, bodies: list[bytes]) -> list[int]:
        """Runs of plain token events in one pass; what is between them is found by halving."""
        if len(bodies) < _FEW:
            return [self.feed(body) for body in bodies]
        if self._all_plain(bodies):
            self.tokens += len(bodies)
            return [1] * len(bodies)
        half = len(bodies) // 2
        return self._together(bodies[:half]) + self._together(bodies[half:])

    def _all_plain(self, bodies: list[bytes]) -> bool:
        """Whether each of these reads is one plain token event, whole, found in one pass over all of them.

        All line feeds are accounted for by as many events that begin with the prefix as there are reads: the border of
        two reads, which is two line feeds, can only be the border of two of these events.
        """
        shape = self._shape
        if shape is None or self.keeps_text or not self._splitter.at_border:
            return False
        count, prefix = len(bodies), shape.prefix
        body = b"".join(bodies)
        return (
            min(map(len, bodies)) > shape.frame
            and body.startswith(prefix)
            and body.endswith(shape.ending)
            and body.count(shape.between) == count - 1
            and body.count(b"\n") == (2 + prefix.count(b"\n")) * count
            and body.find(prefix + b'"') < 0  # a quote: no text in it
            and _CR not in body
        )

    def _bulk(self, body: bytes) -> int:
        """A read of several whole events: a run of plain token events is counted in one pass, the rest one by one."""
        self._splitter.skip()
        tokens = at = 0
        while (shape := self._shape or self._recall(body[at:] if at else body)) is None:
            end = body.find(b"\n\n", at)
            if end < 0:
                return tokens
            tokens += self._each([body[at:end]])
            at = end + 2
        last = body.rfind(shape.between, at)
        if last >= 0 and body.startswith(shape.prefix, at):
            after = last + len(shape.ending)
            run = body.count(shape.between, at, last) + 1
            # Between two borders there is one text and no other line, and it does not begin with the closing quote.
            if body.count(b"\n", at, after) == 2 * run and body.find(shape.prefix + b'"', at, after) < 0:
                at, tokens = after, tokens + run
        if at == len(body):
            return tokens
        tail = self._tail(body, at, shape)
        return tokens + (self._each(body[at:-2].split(b"\n\n")) if tail is None else tail)

    def _each(self, events: list[bytes]) -> int:
        """Events one by one; the tokens among them."""
        tokens, keep = 0, self.keeps_text
        for raw in events:
            shape = self._shape or self._recall(raw)
            if (
                shape is not None
                and len(raw) > shape.frame
                and raw.startswith(shape.prefix)
                and raw.endswith(shape.suffix)
                and raw[shape.at] != _QUOTE
            ):
                tokens += 1
                if keep:
                    self.add_text(_unquote(raw[shape.at : string_end(raw, shape.at)]))
            elif raw == b"data: [DONE]":
                self.ended = True
            else:
                tokens += self._slow(raw) if shape is None or keep else self._known(raw, shape)
        return tokens

    def _tail(self, body: bytes, at: int, shape: Shape) -> int | None:
        """The tokens of what most often ends a stream: a last event, usage, the end marker. None for anything else."""
        border = body.find(_LF, at)
        last = shape.last(body[at:border]) if body.startswith(shape.prefix, at) else None
        said = None if last is None else shape.usage(body, border + 2, USAGE_AND_END)
        if last is None or said is None:
            return None
        self._take(said)
        self.ended = True
        self.finish_reason, tokens = last
        return tokens

    def _known(self, raw: bytes, shape: Shape) -> int:
        """An event that is no plain token: the last one and the usage are known by their form, most often."""
        if raw.startswith(shape.prefix):
            last = shape.last(raw)
            if last is not None:
                self.finish_reason, tokens = last
                return tokens
        elif (said := shape.usage(raw, 0, USAGE)) is not None:
            self._take(said)
            return 0
        return self._slow(raw)

    def _take(self, said: re.Match[bytes]) -> None:
        usage = self.usage
        prompt, completion, cached = said.groups()
        usage.prompt_tokens, usage.completion_tokens = int(prompt), int(completion)
        if cached is not None:
            usage.cached_tokens = int(cached)

    def _recall(self, raw: bytes) -> Shape | None:
        """The shape of the last stream, its id apart, if this first token event begins like that one's."""
        found = recalled(self._read, self.keeps_text, raw)
        if found is None:
            return None
        self._shape, identity = found
        if self.response_id is None:
            self.response_id = identity
        return self._shape

    def _slow(self, raw: bytes) -> int:
        if raw.startswith(b"data: ") and _LF not in raw:
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
        if self._shape is not None and self.finish_reason is not None:
            learn_last(self._read, self._shape, raw, row)
        if tokens == 1:
            self._shape = learned(self._read, self.keeps_text, self._plain, raw, row) or self._shape
        return tokens

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


def _unquote(inner: bytes) -> str | None:
    try:
        value: str = orjson.loads(b'"' + inner + b'"')
    except orjson.JSONDecodeError:
        return None
    return value
