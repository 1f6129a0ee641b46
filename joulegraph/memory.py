"""Connections that never leave the process: asyncio's transports and listeners in memory, without kernel sockets.

Lives here: delivery in order, backpressure, and how either end closes, as a socket would. May not know: time, and who
connects whom (virtual).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

Address = tuple[str, int]
_HIGH_WATER = 1 << 16


class MemoryTransport(asyncio.Transport):
    """One direction pair of an in-memory connection: each write is one read of the peer, in order, never re-cut."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.Protocol,
        name: Address,
        peer: Address,
        pump_soon: Callable[[MemoryTransport], None],
    ) -> None:
        super().__init__(extra={"sockname": name, "peername": peer, "socket": None, "sslcontext": None})
        self._loop = loop
        self._pump_soon = pump_soon
        """asks for `pump` in the loop's next turn"""
        self._protocol = protocol
        self.peer: MemoryTransport | None = None
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._eof_in = False
        self._closing = False
        self._lost = False
        self._reading = True
        self._pump_due = False
        self._writer_paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    def get_write_buffer_size(self) -> int:
        """What a socket would still hold back: nothing while the peer reads, as a kernel takes it at once."""
        peer = self.peer
        return peer._inbox_bytes if peer is not None and not peer._reading else 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (_HIGH_WATER // 4, _HIGH_WATER)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Limits are fixed in memory."""

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        peer = self.peer
        if self._closing or peer is None or not data:
            return
        piece = bytes(data)
        peer._inbox.append(piece)
        peer._inbox_bytes += len(piece)
        peer._schedule()
        if peer._inbox_bytes > _HIGH_WATER and not self._writer_paused:
            self._writer_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self.peer is not None:
                self.peer._eof_in = True
                self.peer._schedule()
            if not self.get_write_buffer_size():  # else once the peer has read it
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """What the peer has not read yet is lost."""
        peer = self.peer
        if peer is not None and self.get_write_buffer_size():
            peer._inbox.clear()
            peer._inbox_bytes = 0
            peer._schedule()
            if self._closing:
                self._loop.call_soon(self._lose, None)
        self.close()

    def _schedule(self) -> None:
        if not self._pump_due and not self._lost:
            self._pump_due = True
            self._pump_soon(self)

    def pump(self) -> None:
        """Hand the peer's writes to the protocol, one read each. Called by the loop."""
        self._pump_due = False
        if self._closing:
            return
        while self._inbox and self._reading and not self._closing:
            piece = self._inbox.popleft()
            self._inbox_bytes -= len(piece)
            self._protocol.data_received(piece)
        sender = self.peer
        if sender is not None and sender._writer_paused and self._inbox_bytes < _HIGH_WATER // 4:
            sender._writer_paused = False
            self._loop.call_soon(sender._protocol.resume_writing)
        if sender is not None and sender._closing and not self._inbox:
            self._loop.call_soon(sender._lose, None)
        if self._eof_in and not self._inbox and not self._closing:
            self._eof_in = False
            if not self._protocol.eof_received():
                self.close()

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._inbox.clear()
            if self.peer is not None and self.peer._closing:
                self._loop.call_soon(self.peer._lose, None)
            self._protocol.connection_lost(error)
            self.peer = None


class MemoryServer(asyncio.AbstractServer):
    """A listener on a port of this loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.Protocol],
        address: Address,
        listeners: dict[int, MemoryServer],
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        """whoever listens in this loop, by port; a server that closes leaves it"""
        self.factory = factory
        self.address = address
        self.clients: WeakSet[MemoryTransport] = WeakSet()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._listeners.get(self.address[1]) is self

    @property
    def sockets(self) -> tuple[()]:
        """No kernel sockets; aiohttp asks."""
        return ()

    def close(self) -> None:
        self._listeners.pop(self.address[1], None)

    def close_clients(self) -> None:
        """Close every accepted connection (asked for by asyncio since 3.13)."""
        for transport in list(self.clients):
            transport.close()

    def abort_clients(self) -> None:
        """As close_clients: nothing waits in memory for a peer."""
        self.close_clients()

    async def start_serving(self) -> None:
        return None

    async def serve_forever(self) -> None:
        await self._loop.create_future()

    async def wait_closed(self) -> None:
        return None
