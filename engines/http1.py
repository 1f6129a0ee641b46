"""HTTP/1.1 client on the hot path: one raw asyncio.Protocol per connection, httptools for framing.

Lives here: sending prepared request bytes, reading replies, backpressure, and the rule that every failure after a
connection stood is data (`Reply.lost`). Each read is stamped before anything in it is parsed.
May not know: URLs, JSON, SSE, who asks, or what a retry costs. Retry policy, for callers: once, on a fresh connection
(`Pool.acquire(fresh=True)`), and only where `connection.retryable` is true when `lost` is called.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import httptools

if TYPE_CHECKING:
    from engines.pool import Pool

HEAD_LIMIT = 65_536
"""bytes of one reply head; past it the reply is lost"""
_HEAD_END = b"\r\n\r\n"


class Head(NamedTuple):
    """A reply head, parsed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """names and values as sent; shared between replies, not to be changed"""
    keep: bool
    """the connection may carry another request"""


class Reply(Protocol):
    """What a caller hands in with a request. Exactly one of `done` and `lost` ends it, unless the caller aborts.

    Called from the event loop's read callback; now_ns is the stamp of the read. At most one `body` call per read.
    """

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """Status line and headers (names and values as sent; read only). 1xx other than 101 are swallowed."""

    def body(self, data: bytes, now_ns: int) -> None:
        """De-chunked body bytes of one read; after a 101 the raw tunnel bytes."""

    def done(self, now_ns: int) -> None:
        """The reply is complete; the connection may be released."""

    def lost(self, why: str, now_ns: int) -> None:
        """The connection ended first, or the reply was no HTTP."""


class Connection(asyncio.Protocol):
    """One connection to the engine; carries one request at a time. States: idle, busy, closed."""

    __slots__ = (
        "_body_pieces", "_complete", "_extra", "_fd", "_framed", "_head_bytes", "_head_method", "_headed", "_headers",
        "_keep", "_known", "_now_ns", "_parser", "_paused", "_pieces", "_pool", "_reply", "_status", "_transport",
        "_tunnel", "_whole", "_why", "answered", "closed", "flow", "idle_since_ns", "on_body", "reused", "taken",
        "wire",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._now_ns = pool.now_ns
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        """of the plain socket, where there is one: requests are written to it without a turn of the loop"""
        self.taken = False
        """the kernel took the whole request at once (known for plain sockets only)"""
        self._reply: Reply | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        """httptools puts body pieces straight into the list: no Python frame per chunk"""
        self._whole = httptools.HttpResponseParser(self)
        self._known: httptools.HttpResponseParser | None = None
        """for replies whose head is known by its bytes"""
        self._parser = self._whole
        self._head_method = False
        self._paused = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._status = 0
        self._head_bytes = 0
        self._body_pieces = 0
        """pieces of this read that belong to the reply, once it is complete"""
        self._headed = self._complete = self._tunnel = self._framed = self._keep = self._extra = False
        self._why: str | None = None
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

    # ------------------------------------------------------------------ the caller's side

    @property
    def retryable(self) -> bool:
        """True when a fresh connection may repeat the request: reused, and died before any byte of the reply."""
        return self.reused and not self.answered

    def send(self, data: bytes, reply: Reply) -> None:
        """Write a request (head and whatever of the body is there); what comes back goes to `reply`."""
        self.answered = self._headed = self._complete = self._framed = False
        self._head_bytes = 0
        self._reply = reply
        if self._head_method or data.startswith(b"HEAD "):
            self._begin_odd(data)
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

    def _begin_odd(self, data: bytes) -> None:
        """After or before a HEAD, whose reply ends with its head while the parser still waits for a body."""
        if self._head_method:
            self._whole = httptools.HttpResponseParser(self)
        self._head_method = data.startswith(b"HEAD ")

    def write(self, data: bytes) -> None:
        """More of the request body (or of a tunnel). Silently nothing once the connection is gone: `lost` says so."""
        if self._transport is not None and not self.closed:
            self._transport.write(data)

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

    def ready(self) -> None:
        """Mark a fresh connection as fit to wait in the pool."""
        self._complete = self._keep = True

    def rest(self) -> bool:
        """Let go of the caller; whether the connection is fit to wait for the next one."""
        self._reply = self.flow = self.wire = None
        if not self.clean:
            return False
        if self._paused:
            self.resume_reading()
        return True

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
        plain = transport.get_extra_info("sslcontext") is None
        if plain and (socket := transport.get_extra_info("socket")) is not None:
            self._fd = socket.fileno()

    def data_received(self, data: bytes) -> None:
        now = self._now_ns()
        reply = self._reply
        if reply is None or self._complete:
            self._surplus(reply)
            return
        self.answered = True
        if self.wire is not None:
            self.wire(data, now)
            if self._reply is not reply:  # `wire` aborted
                return
        if self._tunnel:
            reply.body(data, now)
            return
        if not self._headed and not self._begin(data, now, reply):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._trouble(error)
        self._deliver(reply, now)

    def _deliver(self, reply: Reply, now: int) -> None:
        """Hand on what a read brought of the body, and the end if it was in it."""
        pieces = self._pieces
        if self._complete and len(pieces) > self._body_pieces:
            del pieces[self._body_pieces :]
            self._extra = True
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            reply.body(body, now)
        if (self._complete or self._why is not None) and self._reply is reply:  # else the callback aborted
            if self._why is not None:
                self._lose(self._why)
            else:
                reply.done(now)

    def _begin(self, data: bytes, now: int, reply: Reply) -> bool:
        """A read that holds (part of) the reply's head. True: the head is known, the read is still to be parsed."""
        cut = 0
        if not self._head_bytes and not self._head_method:
            cut = data.find(_HEAD_END) + 4
            known = self._pool.heads.get(data[:cut])
            if known is not None:
                self._parser = self._known or self._for_known()
                self._status, self._headers, self._keep = known
                self._headed = self._framed = True
                reply.head(known.status, known.headers, now)
                return self._reply is reply
        self._parser = self._whole
        self._feed(data)
        if self._headed:
            if cut > 4 and data[9:12] == b"200" and self._plain():  # not the head of an interim reply before it
                self._pool.learn(data[:cut], Head(self._status, self._headers, self._keep))
            reply.head(self._status, self._headers, now)
        if self._reply is reply:  # else the callback aborted
            self._deliver(reply, now)
        return False

    def _plain(self) -> bool:
        """A reply whose head decides nothing but what stands in it: worth remembering."""
        framed = self._status == 200 and self._framed
        return framed and self._why is None and not any(name.lower() == b"upgrade" for name, _ in self._headers)

    def _for_known(self) -> httptools.HttpResponseParser:
        self._known = httptools.HttpResponseParser(_BodyOnly(self))
        return self._known

    def _surplus(self, reply: Reply | None) -> None:
        """Bytes that no request asked for: the connection cannot be trusted any more."""
        self._extra = True
        self._pool.forget(self)
        if reply is None:
            self.close()

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
        elif not self._headed:
            self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._complete:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._whole.get_status_code()
        if status < 200 and status != 101:
            return
        self._headed = True
        self._status = status
        self._keep = self._whole.should_keep_alive()
        self._framed = status in (204, 304) or any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        )
        if self._head_method:
            # llhttp would wait for the body that a HEAD reply announces but never sends.
            self._framed = self._complete = True
            self._body_pieces = 0

    def on_message_complete(self) -> None:
        if self._headed and not self._complete:
            self._complete = True
            self._body_pieces = len(self._pieces)


def _write_now(fd: int, data: bytes) -> int:
    """Bytes the kernel took; 0 also on an error, which the transport then meets itself."""
    try:
        return os.write(fd, data)
    except OSError:
        return 0


class _BodyOnly:
    """httptools' view of a connection whose reply head is known: nothing is called for its lines."""

    def __init__(self, connection: Connection) -> None:
        self.on_body = connection.on_body
        self.on_message_begin = connection.on_message_begin
        self.on_message_complete = connection.on_message_complete
