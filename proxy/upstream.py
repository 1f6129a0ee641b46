"""Connections to one engine: raw reads with backpressure, kept alive and reused last in, first out.

Why not engines.http1.Pool: a relay needs every read as raw bytes, and the place inside them where a body ends, before
it forwards them (llhttp tells neither), and the timing of pause and resume; the seams (Connect, now_ns) are the same.
Lives here: the protocol, the pool and its age limit. May not know: HTTP heads, records, clients.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from engines.shapes import Shape
from proxy.config import Target
from proxy.framing import EVENT_CHUNK_END, payload_at
from proxy.health import Health
from proxy.refusal import Refusal
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


MAX_LOG: Final = 64
"""entries of a log: 32 reads of at most 1 KB are kept before they are looked at"""
FIRST_LOG: Final = 2
"""entries of the first log of a stream: what its plain events look like is to be known soon"""
MAX_NOTED: Final = 128
"""entries of a log that ends with a read of which only the size is kept"""


class Upstream:
    """One connection: busy with a receiver, or idle in the pool. An asyncio.Protocol in all but its base, which a
    compiled class cannot have.

    The usual read of a stream, one whole chunk of whole events, goes a short way while the receiver lets it: stamp,
    relay, note; looked at later. A read that is one plain token event is told by its shape at once, while it is in the
    processor's cache, and only its size is kept.
    """

    __slots__ = (
        "_log", "_most", "_mute", "_now_ns", "_pass_on", "_special", "idle_since_ns", "pool", "receiver", "shape",
        "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._now_ns = pool.now_ns
        self._mute = True
        """no byte came yet"""
        self.receiver: Receiver | None = None
        self._pass_on: Callable[[bytes], None] | None = None
        self._special: bytes | None = None
        self.shape: Shape | None = None
        """of plain token events, while everything that passed was whole events"""
        self._log: list[Any] = []
        self._most = MAX_LOG
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.idle_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.open.add(self)

    def data_received(self, data: bytes) -> None:
        now = self._now_ns()
        pass_on = self._pass_on
        if pass_on is not None:
            at = payload_at(data)
            shape = self.shape
            if at and shape is not None and shape.is_event(data, at, len(data) - 2):
                pass_on(data)
                self._note(now, len(data), MAX_NOTED)
                return
            special = self._special
            if at and data.endswith(EVENT_CHUNK_END) and (special is None or data.rfind(special) < 0):
                pass_on(data)
                self._note(now, data, self._most)
                return
        if self.receiver is not None:
            if self._mute:
                self._mute = False
                self.pool.health.answered()
            self.receiver.received(data, now)
        else:
            # bytes nobody asked for: whatever they are, they must not become the start of the next reply
            self.pool.discard(self)

    def _note(self, now: int, kept: int | bytes, most: int) -> None:
        """A read went on; its receiver looks when the log has so many entries."""
        log = self._log
        log.append(now)
        log.append(kept)
        if len(log) >= most and self.receiver is not None:
            self._most = MAX_LOG
            self.receiver.look()

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.forget(self)
        receiver, self.receiver, self._pass_on = self.receiver, None, None
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
        self.receiver = self._pass_on = None
        self.transport.abort()

    def shorten(
        self, pass_on: Callable[[bytes], None], special: bytes | None, log: list[Any], shape: Shape | None
    ) -> None:
        """The reply is between two chunks: whole ones may go the short way, unless these bytes are in them. The log is
        flat: instant, read, instant, read ...; in place of a read of that shape stands its size."""
        self._pass_on, self._special, self._log, self.shape = pass_on, special, log, shape
        self._most = MAX_LOG if shape is not None else FIRST_LOG

    def lengthen(self) -> None:
        """Every read goes to the receiver."""
        self._pass_on = None


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
