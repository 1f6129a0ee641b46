"""Connections to one engine: raw reads with backpressure, kept alive and reused last in, first out.

Why not engines.http1.Pool: a relay needs every read as raw bytes, and the place inside them where a body ends, before
it forwards them (llhttp tells neither), and the timing of pause and resume; the seams (Connect, now_ns) are the same.
Lives here: the protocol, the pool and its age limit. May not know: HTTP heads, records, clients.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, Protocol, cast

from engines.shapes import Shape
from proxy.config import Target
from proxy.framing import CRLF, EVENT_CHUNK_END, payload_at
from proxy.health import Health
from proxy.readlog import ReadLog
from proxy.refusal import Refusal
from proxy.straight import Straight
from traces.seams import Connect, NowNs


class Receiver(Protocol):
    """Who gets what an upstream connection reads while it is busy."""

    def received(self, data: bytes, now: int) -> None:
        """One read, as it came, and when."""

    def look(self) -> None:
        """Look at the reads that passed the short way."""

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection ended; error None means a clean end of stream."""

    def upstream_paused(self, paused: bool) -> None:
        """The engine is slow to take the request body."""


MAX_LOG: Final = 32
"""reads of at most 1 KB that are kept before they are looked at"""
EARLY: Final = 2
"""reads that are looked at one by one at the beginning of a stream: what its plain events look like is to be known
soon, and the first event may only name a role"""
MAX_NOTED: Final = 64
"""reads that wait, where the last is one of which only the size is kept"""
_NO_LOG: Final = ReadLog(0)


class Upstream:
    """One connection: busy with a receiver, or idle in the pool. An asyncio.Protocol in all but its base, which a
    compiled class cannot have.

    The usual read of a stream, one whole chunk of whole events, goes a short way while the receiver lets it: stamp,
    relay, note; looked at later. A read that is one plain token event is told by its shape at once, while it is in the
    processor's cache, and only its size is kept.
    """

    __slots__ = (
        "_client", "_early", "_ending", "_log", "_mute", "_now_ns", "_shape", "_special", "idle_since_ns", "pool",
        "receiver", "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._now_ns = pool.now_ns
        self._mute = True
        """no byte came yet"""
        self.receiver: Receiver | None = None
        self._client: Straight | None = None
        """to whom reads go the short way"""
        self._special: bytes | None = None
        self._shape: Shape | None = None
        """of plain token events, while everything that passed was whole events"""
        self._ending = b""
        """its own, and that of the chunk around it"""
        self._log = _NO_LOG
        self._early = 0
        """so many reads more are looked at one by one"""
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.idle_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.open.add(self)

    def data_received(self, data: bytes) -> None:
        now = self._now_ns()
        client = self._client
        if client is not None:
            at = payload_at(data)
            shape = self._shape
            if at and shape is not None and shape.is_event(data, at, self._ending):
                client.again(data)
                if self._log.token(now, len(data)) >= MAX_NOTED:
                    self._look()
                return
            special = self._special
            if at and data.endswith(EVENT_CHUNK_END) and (special is None or data.rfind(special) < 0):
                client.again(data)
                if self._log.keep(now, data) >= MAX_LOG or self._early:
                    self._early = max(self._early - 1, 0)
                    self._look()
                return
        if self.receiver is not None:
            if self._mute:
                self._mute = False
                self.pool.health.answered()
            self.receiver.received(data, now)
        else:
            # bytes nobody asked for: whatever they are, they must not become the start of the next reply
            self.pool.discard(self)

    def _look(self) -> None:
        if self.receiver is not None:
            self.receiver.look()

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.forget(self)
        receiver, self.receiver, self._client = self.receiver, None, None
        if receiver is not None:
            if self._mute:
                self.pool.health.died(self._now_ns())
            receiver.upstream_lost(error)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def pause_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upstream_paused(True)

    def resume_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upstream_paused(False)

    def abort(self) -> None:
        """Leave at once; the receiver is not told."""
        self.receiver = self._client = None
        self.transport.abort()

    def shorten(self, client: Straight, special: bytes | None, log: ReadLog, shape: Shape | None) -> None:
        """The reply is between two chunks: whole ones may go the short way, unless these bytes are in them. Of a
        read of that shape the log gets the size."""
        self._client, self._special, self._log = client, special, log
        self.recognise(shape)
        self._early = EARLY if shape is None else 0

    def recognise(self, shape: Shape | None) -> None:
        """What plain token events look like by now."""
        if shape is not self._shape:
            self._shape = shape
            self._ending = b"" if shape is None else shape.ending + CRLF

    def lengthen(self) -> None:
        """Every read goes to the receiver."""
        self._client = None


def hold(transport: asyncio.Transport, paused: bool) -> None:
    """Backpressure: stop or go on reading."""
    if paused:
        transport.pause_reading()
    else:
        transport.resume_reading()


class Pool:
    """The connections to one target."""

    def __init__(
        self, target: Target, *, connect: Connect, now_ns: NowNs, idle_ns: int, tls: ssl.SSLContext | None
    ) -> None:
        self.target = target
        self.name = target.name
        self.busy = 0
        """requests under way"""
        self.health = Health()
        self.open: set[Upstream] = set()
        self._idle: list[Upstream] = []
        self._connect = connect
        self.now_ns = now_ns
        self._idle_ns = idle_ns
        self._tls = tls

    @property
    def idle(self) -> int:
        """Connections waiting for work."""
        return len(self._idle)

    def take(self, now_ns: int) -> Upstream | None:
        """The idle connection used last, if one is young enough to trust."""
        oldest = now_ns - self._idle_ns
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_ns > oldest and not connection.transport.is_closing():
                return connection
            connection.transport.close()
        return None

    async def connect(self) -> Upstream:
        """A fresh connection. OSError (or ssl.SSLError, which is one) when there is none."""
        options: dict[str, Any] = {"ssl": self._tls} if self._tls is not None else {}
        connect: Any = self._connect  # the protocol is one by its methods alone
        _, protocol = await connect(lambda: Upstream(self), self.target.host, self.target.port, **options)
        return cast(Upstream, protocol)

    async def reach(self, limit_ns: int) -> Upstream | Refusal:
        """A fresh connection within that time, or why there is none."""
        self.health.tried(self.now_ns())
        try:
            async with asyncio.timeout(limit_ns / 1e9):
                connection = await self.connect()
        except TimeoutError:
            self.health.unreachable(self.now_ns())
            return Refusal(504, "unreachable", f"no connection to {self.name} in time")
        except OSError as error:
            self.health.unreachable(self.now_ns())
            why = error.strerror or type(error).__name__
            return Refusal(502, "unreachable", f"no connection to {self.name}: {why}")
        self.health.reached()
        return connection

    def give(self, connection: Upstream, now_ns: int) -> None:
        """Back from a complete exchange."""
        connection.receiver = None
        connection.lengthen()
        if self.health.deaths:
            self.health.answered()
        if connection.transport.is_closing():
            return
        connection.idle_since_ns = now_ns
        self._idle.append(connection)

    def discard(self, connection: Upstream) -> None:
        """Not to be used again."""
        self.forget(connection)
        connection.abort()

    def forget(self, connection: Upstream) -> None:
        """It is gone."""
        self.open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now_ns: int) -> None:
        """Close connections that were idle for too long (oldest first in the list)."""
        while self._idle and now_ns - self._idle[0].idle_since_ns >= self._idle_ns:
            self._idle.pop(0).transport.close()

    def close(self) -> None:
        """Close every connection."""
        self._idle.clear()
        for connection in list(self.open):
            connection.abort()
