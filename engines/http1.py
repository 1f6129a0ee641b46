"""HTTP/1.1 client on the hot path: one raw asyncio.Protocol per connection.

Lives here: sending prepared request bytes, stamping each read before anything in it is parsed (replies), and the rule
that every failure after a connection stood is data (`Reply.lost`). GET and POST only: a HEAD's reply is not understood.
May not know: URLs, JSON, SSE, who asks, or what a retry costs. Retry policy, for callers: once, on a fresh connection
(`Pool.acquire(fresh=True)`), and only where `connection.retryable` is true when `lost` is called.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from engines.replies import ReplyParser

if TYPE_CHECKING:
    from engines.pool import Pool


class Reply(Protocol):
    """What a caller hands in with a request. Exactly one of `done` and `lost` ends it, unless the caller aborts.

    Called from the event loop's read callback; now_ns is the stamp of the read. At most one `body` call per read.
    """

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """Status line and headers (names and values as sent; read only). Interim replies (1xx) are swallowed."""

    def body(self, data: bytes, now_ns: int) -> None:
        """De-chunked body bytes of one read."""

    def done(self, now_ns: int) -> None:
        """The reply is complete; the connection may be released."""

    def lost(self, why: str, now_ns: int) -> None:
        """The connection ended first, or the reply was no HTTP."""


class Connection(asyncio.Protocol):
    """One connection to the engine; carries one request at a time. States: idle, busy, closed."""

    __slots__ = (
        "_fd", "_now_ns", "_parser", "_paused", "_pool", "_reply", "_transport", "answered", "closed", "idle_since_ns",
        "reused", "taken", "wire",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._now_ns = pool.now_ns
        self._parser = ReplyParser(pool.heads)
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        """of the plain socket, where there is one: requests are written to it without a turn of the loop"""
        self._reply: Reply | None = None
        self._paused = False
        self.taken = False
        """the kernel took the whole request at once (known for plain sockets only)"""
        self.reused = False
        """carried a request before this one"""
        self.answered = False
        """a byte of the present reply has arrived"""
        self.closed = False
        self.idle_since_ns = 0
        self.wire: Callable[[bytes, int], None] | None = None
        """called with every read as it came (head, chunk framing and all) before it is parsed"""

    # ------------------------------------------------------------------ the caller's side

    @property
    def retryable(self) -> bool:
        """True when a fresh connection may repeat the request: reused, and died before any byte of the reply."""
        return self.reused and not self.answered

    def send(self, data: bytes, reply: Reply) -> None:
        """Write a whole request; what comes back goes to `reply`."""
        self.answered = False
        self._parser.start()
        self._reply = reply
        transport = self._transport
        if transport is None or self.closed or transport.is_closing():
            self._reply = None
            why = "the connection was closed before the request was sent"
            asyncio.get_running_loop().call_soon(reply.lost, why, self._now_ns())
            return
        # Nothing is buffered: a connection is idle only while its transport's buffer is empty.
        sent = _write_now(self._fd, data) if self._fd >= 0 else 0
        self.taken = sent == len(data)
        if not self.taken:
            transport.write(data[sent:] if sent else data)

    def pause_reading(self) -> None:
        """Our consumer is slow: stop reading the reply."""
        if self._transport is not None and not self.closed:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    @property
    def write_buffer_size(self) -> int:
        """Request bytes not yet taken by the kernel."""
        return 0 if self._transport is None or self.closed else self._transport.get_write_buffer_size()

    def rest(self) -> bool:
        """Let go of the caller; whether the connection is fit to wait for the next one."""
        self._reply = self.wire = None
        if not self.clean:
            return False
        if self._paused:
            self.resume_reading()
        return True

    def abort(self) -> None:
        """Drop the connection now (the engine sees the client leave); no further callback."""
        self._reply = self.wire = None
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close without a word; used by the pool on idle connections."""
        self._reply = None
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    @property
    def clean(self) -> bool:
        """No reply is awaited, the engine keeps the connection, nothing is left over in either direction."""
        parser, transport = self._parser, self._transport
        if self.closed or transport is None or not parser.complete or parser.extra:
            return False
        if parser.head is not None and not parser.head.keep:
            return False
        return not transport.is_closing() and (self.taken or transport.get_write_buffer_size() == 0)

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        plain = transport.get_extra_info("sslcontext") is None
        if plain and (socket := transport.get_extra_info("socket")) is not None:
            self._fd = socket.fileno()

    def data_received(self, data: bytes) -> None:
        now = self._now_ns()
        reply, parser = self._reply, self._parser
        if reply is None or parser.complete:
            self._surplus(reply)
            return
        self.answered = True
        if self.wire is not None:
            self.wire(data, now)
            if self._reply is not reply:  # `wire` aborted
                return
        headed = parser.head is not None
        complete = parser.feed(data)
        if not headed and (head := parser.head) is not None:
            reply.head(head.status, head.headers, now)
        pieces = parser.pieces
        if pieces and self._reply is reply:  # else the callback aborted
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            reply.body(body, now)
        if self._reply is reply:
            if complete:
                reply.done(now)
            elif parser.why is not None:
                self._lose(parser.why)

    def _surplus(self, reply: Reply | None) -> None:
        """Bytes that no request asked for: the connection cannot be trusted any more."""
        self._parser.extra = True
        self._pool.forget(self)
        if reply is None:
            self.close()

    def eof_received(self) -> None:
        """The engine closed its side: whatever state we are in, this connection is over (asyncio closes it)."""
        self._pool.forget(self)
        self._end("the engine closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        self._end(f"the connection to the engine broke ({exc})" if exc else "the engine closed the connection")
        self.closed = True
        self._transport = None

    def _end(self, why: str) -> None:
        """A reply without a length ends with the connection; any other is lost."""
        self.closed = True
        reply, parser = self._reply, self._parser
        if reply is None or parser.complete:
            return
        if parser.head is not None and not parser.head.framed:
            parser.complete = True
            reply.done(self._now_ns())
        else:
            stage = "before a complete reply head" if parser.head is None else "in the middle of the reply"
            self._lose(f"{why} {stage}")

    def _lose(self, why: str) -> None:
        reply, self._reply = self._reply, None
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if reply is not None:
            reply.lost(why, self._now_ns())


def _write_now(fd: int, data: bytes) -> int:
    """Bytes the kernel took; 0 also on an error, which the transport then meets itself."""
    try:
        return os.write(fd, data)
    except OSError:
        return 0
