"""From tokens to bytes on a transport: chunk framing, backpressure, and the sinks that the engine calls.

The hot path is Stream.push: constant bytes, the word, constant bytes, one write. A reader that does not keep up gets a
bounded queue and a task that drains it; past the bound its connection is dropped.
May not know: routes, validation, the scheduler.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engines.embedded.tokenizer import Tokenizer
from engines.embedded.types import FinishReason, RequestStats
from engines.embedded.voices import Voice
from engines.embedded.wire_in import Plan
from engines.embedded.wire_out import Result, argument_pieces, dumps, finish_reason

HIGH_WATER = 1 << 18
"""bytes waiting in the transport at which the queue takes over"""
QUEUE_LIMIT = 32 << 20
"""bytes a reader may lag behind; past it the connection is dropped"""
_LOOK_EVERY = 31
"""mask: the transport's buffer is looked at with every 32nd write"""


def framed(event: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(event), event) if event else b""


def _nowhere(data: bytes) -> None:
    """The reader is gone."""


class Wire:
    """The way out of one reply: direct writes while the reader keeps up, a queue while it does not."""

    def __init__(self, transport: asyncio.Transport, drain: Callable[[], Any], *, chunked: bool) -> None:
        self._transport = transport
        self._send: Callable[[bytes], None] = transport.write
        self._drain = drain
        self._chunked = chunked
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._task: asyncio.Task[None] | None = None
        self._count = 0

    def frame(self, event: bytes) -> bytes:
        """An event as it goes on the wire."""
        return framed(event) if self._chunked else event

    def write(self, data: bytes) -> None:
        """Bytes already framed."""
        if self._task is not None:
            self._queue.append(data)
            self._queued += len(data)
            if self._queued > QUEUE_LIMIT:
                self._transport.abort()
            return
        try:
            self._send(data)
        except RuntimeError:  # uvloop refuses a closed transport; its handler is told in the loop's next turn
            self._gone()
            return
        self._count += 1
        if self._count & _LOOK_EVERY == 0 and self._transport.get_write_buffer_size() > HIGH_WATER:
            self._task = asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            while True:
                await self._drain()
                if not self._queue:
                    return
                piece = b"".join(self._take())
                self._queued -= len(piece)
                self._transport.write(piece)
        except (RuntimeError, ConnectionError):
            self._gone()
        finally:
            self._task = None

    def _take(self) -> list[bytes]:
        taken, size = [], 0
        while self._queue and size < HIGH_WATER:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        return taken

    async def flushed(self) -> None:
        """Everything written has gone to the transport."""
        while self._task is not None:
            await asyncio.wait({self._task})

    def drop(self) -> None:
        """The reader is gone."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # one cancelled before it ran would not clear itself
        self._gone()

    def _gone(self) -> None:
        self._send = _nowhere
        self._queue.clear()
        self._queued = 0

    @property
    def queued(self) -> int:
        """Bytes that wait for the reader."""
        return self._queued


class Reply:
    """All sequences of one request; `ready` is set with the last of them."""

    def __init__(
        self, plan: Plan, voice: Voice, tokenizer: Tokenizer, ready: asyncio.Future[None], *, cache_block: int = 0
    ) -> None:
        self.plan, self.voice, self.tokenizer, self.ready = plan, voice, tokenizer, ready
        self._cache_block = cache_block
        self.total = plan.n * len(plan.prompts)
        self.results: dict[int, Result] = {}
        self.wire: Wire | None = None
        self.heads: dict[int, bytes] = {}
        self.stop_text: dict[int, tuple[int, str]] = {}
        """sequence -> length its text is cut to, and by which stop string, where one ends it"""
        self.arguments = dumps(plan.tool.arguments).decode() if plan.tool else ""

    def prompt(self, index: int) -> Sequence[int]:
        """Prompt of sequence `index`."""
        array = self.plan.prompts[index // self.plan.n]
        shown = self.plan.return_token_ids or self.plan.echo
        return array.tolist() if shown else array  # type: ignore[return-value]

    def ended(self, index: int, result: Result) -> None:
        """One sequence is complete."""
        self.results[index] = result
        if len(self.results) < self.total:
            return
        if self.wire is not None:
            for event in self.voice.end(self.in_order()):
                self.wire.write(self.wire.frame(event))
        if not self.ready.done():
            self.ready.set_result(None)

    def result(
        self, index: int, text: str, given: list[int], stats: RequestStats, reason: str, prompt: Sequence[int] = ()
    ) -> Result:
        """What sequence `index` came to."""
        stop = self.stop_text[index][1] if index in self.stop_text else None
        block, created = self._cache_block, 0
        if block:
            created = stats.prompt_tokens // block * block - stats.cached_tokens
        why = reason if stop is None else "stop"
        return Result(text, given, why, stats, prompt, stop, max(0, created))

    def in_order(self) -> list[Result]:
        """Results in order of their index."""
        return [self.results[i] for i in sorted(self.results)]

    def text(self, index: int, out: list[int]) -> str:
        """Text of a whole sequence; with `echo` the prompt's before it."""
        text = self.tokenizer.decode(out)
        if index in self.stop_text:
            text = text[: self.stop_text[index][0]]
        if self.plan.echo:
            text = self.tokenizer.decode(self.prompt(index)) + text
        return text


class Collect:
    """Sink of a sequence whose reply is one document."""

    def __init__(self, reply: Reply, index: int) -> None:
        self._reply, self._index = reply, index

    def push(self, token: int) -> None:
        """Nothing is shown before the end."""

    def finish(self, out: list[int], stats: RequestStats, reason: FinishReason) -> None:
        reply, index = self._reply, self._index
        given = out[: stats.output_tokens]
        prompt = reply.prompt(index) if reply.plan.return_token_ids else ()
        reply.ended(index, reply.result(index, reply.text(index, given), given, stats, reason, prompt))


class Stream:
    """Sink of a sequence whose tokens are events."""

    def __init__(self, reply: Reply, index: int, wire: Wire) -> None:
        self._reply, self._index, self._wire = reply, index, wire
        self._voice, self._words, self._write = reply.voice, reply.tokenizer.word, wire.write
        self._number = 0
        self._said = 0
        self._arguments: list[str] | None = None
        self._heads: dict[int, bytes] | None = None
        self._tail = b""
        if reply.voice.plain and not reply.stop_text and not reply.plan.echo:
            self._before, after = reply.voice.pieces(index)
            self._after = len(after)
            self._tail = after + b"\r\n"
            self._heads = {}

    def push(self, token: int) -> None:
        """A token that is not the last."""
        if not self._number:
            self._begin(empty=False)
        self._number += 1
        if self._heads is None:
            self._write(self._wire.frame(self._event(token, None)))
            return
        word = self._words(token)
        size = len(word)
        head = self._heads.get(size)
        if head is None:
            head = self._heads[size] = self._head(size)
        self._write(head + word + self._tail)

    def _head(self, size: int) -> bytes:
        if not self._wire.frame(b"x").startswith(b"1\r\n"):  # HTTP/1.0: no chunks
            self._tail = self._tail.removesuffix(b"\r\n")
            return self._before
        return b"%x\r\n%b" % (len(self._before) + size + self._after, self._before)

    def _begin(self, *, empty: bool) -> None:
        first = self._voice.begin(self._index, self._reply.prompt(self._index), empty)
        for event in first.split(b"\n\n")[:-1]:
            self._write(self._wire.frame(event + b"\n\n"))

    def _event(self, token: int, reason: str | None) -> bytes:
        reply, number = self._reply, self._number - 1
        stop = reply.stop_text[self._index][1] if reason and self._index in reply.stop_text else None
        text = self._piece(token, number, last=reason is not None)
        return self._voice.token(self._index, number, token, text, reply.prompt(self._index), reason, stop)

    def _piece(self, token: int, number: int, *, last: bool) -> str:
        """Text of one event: the token's, cut before a stop string; or a piece of a tool call's arguments."""
        reply, index = self._reply, self._index
        if reply.plan.tool is not None:
            if self._arguments is None:
                self._arguments = argument_pieces(reply.arguments, reply.plan.max_tokens[index // reply.plan.n])
            return "".join(self._arguments[number:]) if last else self._arguments[number]
        text = self._words(token).decode()
        if index in reply.stop_text:
            room = reply.stop_text[index][0] - self._said
            self._said += len(text)
            text = text[: max(0, room)]
        if reply.plan.echo and number == 0:
            text = reply.tokenizer.decode(reply.prompt(index)) + text
        return text

    def finish(self, out: list[int], stats: RequestStats, reason: FinishReason) -> None:
        """The last token, and after the last sequence the end of the stream."""
        reply, index = self._reply, self._index
        given = out[: stats.output_tokens]
        # Only the Responses API repeats the whole text at the end of a stream.
        whole = reply.text(index, given) if reply.plan.api == "responses" else ""
        result = reply.result(index, whole, given, stats, reason)
        if not self._number:
            self._begin(empty=reply.plan.tool is None and not reply.text(index, given))
        self._number += 1
        self._write(self._wire.frame(self._event(given[-1], finish_reason(result.reason, reply.plan))))
        reply.ended(index, result)
