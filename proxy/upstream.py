"""Connections to one engine: raw reads with backpressure, kept alive and reused last in, first out.

Why not engines.http1.Pool: a relay needs every read as raw bytes, and the place inside them where a body ends, before
it forwards them (llhttp tells neither), and the timing of pause and resume; the seams (Connect, now_ns) are the same.
Lives here: the protocol, the pool and its age limit. May not know: HTTP heads, records, clients.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol, cast

from proxy.config import Target
from traces.seams import Connect, NowNs


class Receiver(Protocol):
    """Who gets what an upstream connection reads while it is busy."""

    def received(self, data: bytes) -> None:
        """One read, as it came."""

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection ended; error None means a clean end of stream."""

    def upstream_paused(self, paused: bool) -> None:
        """The engine is slow to take the request body."""


class Upstream(asyncio.Protocol):
    """One connection: busy with a receiver, or idle in the pool."""

    __slots__ = ("idle_since_ns", "pool", "receiver", "transport")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.receiver: Receiver | None = None
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.idle_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.open.add(self)

    def data_received(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver.received(data)
        else:
            # bytes nobody asked for: whatever they are, they must not become the start of the next reply
            self.pool.discard(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.forget(self)
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.upstream_lost(error)

    def pause_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upstream_paused(True)

    def resume_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upstream_paused(False)

    def abort(self) -> None:
        """Leave at once; the receiver is not told."""
        self.receiver = None
        self.transport.abort()


class Pool:
    """The connections to one target."""

    def __init__(
        self, target: Target, *, connect: Connect, now_ns: NowNs, idle_ns: int, tls: ssl.SSLContext | None
    ) -> None:
        self.target = target
        self.busy = 0
        """requests under way"""
        self.open: set[Upstream] = set()
        self._idle: list[Upstream] = []
        self._connect = connect
        self._now_ns = now_ns
        self._idle_ns = idle_ns
        self._tls = tls

    @property
    def idle(self) -> int:
        """Connections waiting for work."""
        return len(self._idle)

    def take(self) -> Upstream | None:
        """The idle connection used last, if one is young enough to trust."""
        oldest = self._now_ns() - self._idle_ns
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_ns > oldest and not connection.transport.is_closing():
                return connection
            connection.transport.close()
        return None

    async def connect(self) -> Upstream:
        """A fresh connection. OSError (or ssl.SSLError, which is one) when there is none."""
        options: dict[str, Any] = {"ssl": self._tls} if self._tls is not None else {}
        _, protocol = await self._connect(lambda: Upstream(self), self.target.host, self.target.port, **options)
        return cast(Upstream, protocol)

    def give(self, connection: Upstream) -> None:
        """Back from a complete exchange."""
        connection.receiver = None
        if connection.transport.is_closing():
            return
        connection.idle_since_ns = self._now_ns()
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
