"""Virtual time: a stock asyncio loop with a clock of its own and in-memory transports; no kernel sockets, no threads.

When nothing is ready the clock jumps to the next timer, so an hour of replay takes what its computing takes and gives
the same figures every time. Product code runs unchanged: it takes `now_ns` and `sleep_until` from the loop and opens
connections through create_connection/create_server, which here never leave the process.
May not know: what runs in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")
_HIGH_WATER = 1 << 16


class _IdleSelector(selectors.BaseSelector):
    """A selector that polls nothing: instead of sleeping it moves the loop's clock."""

    def __init__(self) -> None:
        self.clock_ns = 0
        self._map: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._map[fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("virtual time: every task waits for something that will never happen (deadlock)")
        if timeout > 0:
            self.clock_ns += max(1, round(timeout * 1e9))
        return []

    def get_map(self) -> Any:
        return self._map


class MemoryTransport(asyncio.Transport):
    """One direction pair of an in-memory connection: each write is one read of the peer, in order, never re-cut."""

    def __init__(
        self, loop: VirtualLoop, protocol: asyncio.Protocol, name: tuple[str, int], peer: tuple[str, int]
    ) -> None:
        super().__init__(extra={"sockname": name, "peername": peer, "socket": None, "sslcontext": None})
        self._loop = loop
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
            self._loop.pump_soon(self)

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
    """A listener of the virtual loop."""

    def __init__(self, loop: VirtualLoop, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> None:
        self._loop = loop
        self.factory = factory
        self.address = (host, port)
        self.clients: WeakSet[MemoryTransport] = WeakSet()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._loop.listeners.get(self.address[1]) is self

    @property
    def sockets(self) -> tuple[()]:
        """No kernel sockets; aiohttp asks."""
        return ()

    def close(self) -> None:
        self._loop.listeners.pop(self.address[1], None)

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


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at start_ns and moves only when everything waits."""

    def __init__(self, start_ns: int = 1_000_000_000_000) -> None:
        self._idle = _IdleSelector()
        self._idle.clock_ns = start_ns
        self.listeners: dict[int, MemoryServer] = {}
        self._next_port = 20_000
        self._to_pump: list[MemoryTransport] = []
        super().__init__(self._idle)

    def pump_soon(self, transport: MemoryTransport) -> None:
        """Deliver what lies in a transport's inbox in the loop's next turn: one callback for all of them."""
        if not self._to_pump:
            self.call_soon(self._pump_all)
        self._to_pump.append(transport)

    def _pump_all(self) -> None:
        transports, self._to_pump = self._to_pump, []
        for transport in transports:
            transport.pump()

    def time(self) -> float:
        return self._idle.clock_ns / 1e9

    def now_ns(self) -> int:
        """The virtual time.monotonic_ns."""
        return self._idle.clock_ns

    async def sleep_until(self, due_ns: int) -> None:
        """Exact: the clock lands on due_ns or later, never before."""
        while self._idle.clock_ns < due_ns:
            future = self.create_future()
            handle = self.call_at(due_ns / 1e9, _wake, future)
            try:
                await future
            finally:
                handle.cancel()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Threads have no place in virtual time: run inline."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to the awaiting caller, as an executor would
            future.set_exception(error)
        return future

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        server = self.listeners.get(port)
        if server is None:
            raise ConnectionRefusedError(111, f"nothing listens on {host}:{port} in virtual time")
        self._next_port += 1
        here = (str(host), self._next_port)
        near_protocol, far_protocol = protocol_factory(), server.factory()
        near = MemoryTransport(self, near_protocol, here, server.address)
        far = MemoryTransport(self, far_protocol, server.address, here)
        near.peer, far.peer = far, near
        server.clients.add(far)
        far_protocol.connection_made(far)
        near_protocol.connection_made(near)
        return near, near_protocol

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        if not port:
            self._next_port += 1
            port = self._next_port
        if port in self.listeners:
            raise OSError(98, f"address {host}:{port} already in use")
        server = MemoryServer(self, protocol_factory, str(host), port)
        self.listeners[port] = server
        return server

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, ssl: Any = None
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """create_connection in the shape of traces.seams.Connect. There is no TLS in memory."""
        pair: tuple[asyncio.BaseTransport, asyncio.BaseProtocol] = await self.create_connection(factory, host, port)
        return pair

    async def serve(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, ssl: Any = None
    ) -> asyncio.AbstractServer:
        """create_server in the shape of traces.seams.Serve."""
        server: asyncio.AbstractServer = await self.create_server(factory, host, port)
        return server


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, start_ns: int = 1_000_000_000_000) -> T:
    """Run `main(loop)` to its end in virtual time."""
    loop = VirtualLoop(start_ns)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))
