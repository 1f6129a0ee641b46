"""HTTP/1.1 client on the hot path: one raw asyncio.Protocol per connection, httptools for framing, a keep-alive pool.

Lives here: sending prepared request bytes, reading replies, reuse of connections, backpressure, and the rule that every
failure after a connection stood is data (`Reply.lost`). Each read is stamped before anything in it is parsed.
May not know: URLs, JSON, SSE, who asks, or what a retry costs. Retry policy, for callers: once, on a fresh connection
(`acquire(fresh=True)`), and only where `connection.retryable` is true when `lost` is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from traces.seams import Connect, NowNs

HEAD_LIMIT = 65_536
"""bytes of one reply head; past it the reply is lost"""
IDLE_NS = 4_000_000_000
"""vLLM's server closes idle connections at 5 s; ours must go first"""


class Unreachable(ConnectionError):
    """No connection to the engine: one sentence saying where and why."""


class Reply(Protocol):
    """What a caller hands in with a request. Exactly one of `done` and `lost` ends it, unless the caller aborts.

    Called from the event loop's read callback; now_ns is the stamp of the read. At most one `body` call per read.
    """

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """Status line and headers (names and values as sent). 1xx other than 101 are swallowed."""

    def body(self, data: bytes, now_ns: int) -> None:
        """De-chunked body bytes of one read; after a 101 the raw tunnel bytes."""

    def done(self, now_ns: int) -> None:
        """The reply is complete; the connection may be released."""

    def lost(self, why: str, now_ns: int) -> None:
        """The connection ended first, or the reply was no HTTP."""


class Connection(asyncio.Protocol):
    """One connection to the engine; carries one request at a time. States: idle, busy, closed."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._now_ns = pool.now_ns
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._head_method = False
        self._parser_spent = False
        self.reused = False
        """carried a request before this one"""
        self.answered = False
        """a byte of the present reply has arrived"""
        self.closed = False
        self.idle_since_ns = 0
        self.flow: Callable[[bool], None] | None = None
        """called with False when the engine stops taking our bytes, True when it takes them again"""
        self.wire: Callable[[bytes, int], None] | None = None
        """called with every read as it came (head, chunk framing and all) before it is parsed"""
        self._reset()

    def _reset(self) -> None:
        self.answered = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._status = 0
        self._headed = False
        self._complete = False
        self._tunnel = False
        self._framed = False
        self._keep = False
        self._extra = False
        self._why: str | None = None

    # ------------------------------------------------------------------ the caller's side

    @property
    def retryable(self) -> bool:
        """True when a fresh connection may repeat the request: reused, and died before any byte of the reply."""
        return self.reused and not self.answered

    def send(self, data: bytes, reply: Reply) -> None:
        """Write a request (head and whatever of the body is there); what comes back goes to `reply`."""
        self._reset()
        if self._parser_spent:
            self._parser, self._parser_spent = httptools.HttpResponseParser(self), False
        self._head_method = data.startswith(b"HEAD ")
        self._reply = reply
        transport = self._transport
        if transport is None or self.closed or transport.is_closing():
            self._reply = None
            why = "the connection was closed before the request was sent"
            asyncio.get_running_loop().call_soon(reply.lost, why, self._now_ns())
            return
        transport.write(data)

    def write(self, data: bytes) -> None:
        """More of the request body (or of a tunnel). Silently nothing once the connection is gone: `lost` says so."""
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Our consumer is slow: stop reading the reply."""
        if self._transport is not None and not self.closed:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and not self.closed:
            self._transport.resume_reading()

    @property
    def write_buffer_size(self) -> int:
        """Request bytes not yet taken by the kernel."""
        return 0 if self._transport is None or self.closed else self._transport.get_write_buffer_size()

    def ready(self) -> None:
        """Mark a fresh connection as fit to wait in the pool."""
        self._complete = self._keep = True

    def abort(self) -> None:
        """Drop the connection now (the engine sees the client leave); no further callback."""
        self._reply = None
        self.flow = self.wire = None
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
        """The last reply is complete, the engine keeps the connection, nothing is left over in either direction."""
        if self.closed or not self._complete or not self._keep or self._extra or self._tunnel:
            return False
        transport = self._transport
        return transport is not None and not transport.is_closing() and transport.get_write_buffer_size() == 0

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = self._now_ns()
        reply = self._reply
        if reply is None or self._complete:
            # Bytes that no request asked for: the connection cannot be trusted any more.
            self._extra = True
            self._pool.forget(self)
            if reply is None:
                self.close()
            return
        self.answered = True
        if self.wire is not None:
            self.wire(data, now)
        if not self._headed or self._tunnel:
            self._received(data, now, reply)
            return
        # The hot path: one more read of a body.
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._trouble(error)
        pieces = self._pieces
        if pieces:
            self._pieces = []
            reply.body(pieces[0] if len(pieces) == 1 else b"".join(pieces), now)
        if self._serves(reply) and (self._finished() or self._why is not None):
            self._over(reply, now)

    def _received(self, data: bytes, now: int, reply: Reply) -> None:
        """A read that holds (part of) the reply's head, or tunnel bytes."""
        if self._tunnel:
            reply.body(data, now)
            return
        self._feed(data)
        if not self._serves(reply):  # `wire` aborted
            return
        if self._headed:
            reply.head(self._status, self._headers, now)
        if self._pieces and self._serves(reply):
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            reply.body(body, now)
        if self._serves(reply):  # else the callback aborted
            self._over(reply, now)

    def _over(self, reply: Reply, now: int) -> None:
        """End the reply if this read ended it."""
        if self._why is not None:
            self._lose(self._why)
        elif self._finished():
            reply.done(now)

    def _finished(self) -> bool:
        return self._complete

    def _serves(self, reply: Reply) -> bool:
        return self._reply is reply

    def _feed(self, data: bytes) -> None:
        """Parse a read that begins in the head."""
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._trouble(error)
        if not self._headed and self._head_bytes > HEAD_LIMIT:
            self._why = f"the reply head is over {HEAD_LIMIT} bytes"

    def _trouble(self, error: httptools.HttpParserError) -> None:
        """Not HTTP: the reply is lost, or it is complete and what follows it is surplus."""
        if self._complete:
            self._extra = True
        else:
            self._why = f"the reply is not valid HTTP/1.1 ({error})"

    def _after_upgrade(self, rest: bytes) -> None:
        if self._headed and self._status == 101:
            self._tunnel = True
            self._complete = False
            if rest:
                self._pieces.append(rest)
        else:  # an Upgrade header on an ordinary reply
            self._extra = True

    def pause_writing(self) -> None:
        if self.flow is not None:
            self.flow(False)

    def resume_writing(self) -> None:
        if self.flow is not None:
            self.flow(True)

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
        reply = self._reply
        if reply is None or self._complete:
            return
        if self._headed and not self._framed:
            self._complete = True
            reply.done(self._now_ns())
        else:
            stage = "in the middle of the reply" if self._headed else "before a complete reply head"
            self._lose(f"{why} {stage}")

    def _lose(self, why: str) -> None:
        reply, self._reply = self._reply, None
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if reply is not None:
            reply.lost(why, self._now_ns())

    # ------------------------------------------------------------------ httptools' side (collects, never calls out)

    def on_message_begin(self) -> None:
        if self._complete:
            self._extra = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._complete:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            return
        self._headed = True
        self._status = status
        self._keep = self._parser.should_keep_alive()
        self._framed = status in (204, 304) or any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        )
        if self._head_method:
            # llhttp would wait for the body that a HEAD reply announces but never sends.
            self._framed = self._complete = self._parser_spent = True

    def on_body(self, data: bytes) -> None:
        if self._complete:
            self._extra = True
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self._headed:
            self._complete = True
        else:  # 1xx: another head follows
            self._headers = []


class Pool:
    """Keep-alive connections to one engine. Last in, first out, so that a quiet spell lets the surplus age away."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect: Connect,
        now_ns: NowNs,
        ssl: Any = None,
        idle_ns: int = IDLE_NS,
    ) -> None:
        self.host = host
        self.port = port
        self.now_ns = now_ns
        self.opened = 0
        """connections opened so far"""
        self._connect = connect
        self._ssl = ssl
        self._idle_ns = idle_ns
        self._idle: dict[Connection, None] = {}

    @property
    def idle(self) -> int:
        """Connections waiting for a request."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """An idle connection still young enough, or None. Never waits."""
        now = self.now_ns()
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.clean and now - connection.idle_since_ns < self._idle_ns:
                connection.reused = True
                return connection
            connection.close()
        return None

    async def acquire(self, *, fresh: bool = False) -> Connection:
        """An idle connection, else a new one. Raises Unreachable (an OSError) with one sentence."""
        connection = None if fresh else self.take()
        return connection if connection is not None else await self._open()

    async def _open(self) -> Connection:
        try:
            _, protocol = await self._connect(lambda: Connection(self), self.host, self.port, ssl=self._ssl)
        except OSError as error:
            raise Unreachable(f"cannot connect to {self.host}:{self.port} ({error.strerror or error})") from error
        self.opened += 1
        return cast(Connection, protocol)

    def release(self, connection: Connection) -> None:
        """Give a connection back after `done`; one that cannot carry another request is closed."""
        connection._reply = None
        connection.flow = connection.wire = None
        if not connection.clean:
            connection.close()
            return
        connection.resume_reading()
        now = connection.idle_since_ns = self.now_ns()
        self._idle[connection] = None
        self._expire(now)

    def _expire(self, now: int) -> None:
        """Close what has aged past the limit; the oldest come first in the dict."""
        while self._idle:
            oldest = next(iter(self._idle))
            if now - oldest.idle_since_ns < self._idle_ns:
                return
            del self._idle[oldest]
            oldest.close()

    def forget(self, connection: Connection) -> None:
        """Called by a connection that ended."""
        self._idle.pop(connection, None)

    async def prewarm(self, n: int) -> None:
        """Open connections until n are idle. Raises Unreachable."""
        missing = n - len(self._idle)
        opened = await asyncio.gather(*(self._open() for _ in range(missing)), return_exceptions=True)
        for result in opened:
            if isinstance(result, Connection):
                result.ready()
                self.release(result)
        for result in opened:
            if isinstance(result, BaseException):
                raise result

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            connection, _ = self._idle.popitem()
            connection.close()
