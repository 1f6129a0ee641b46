"""Virtual time: a stock asyncio loop with a clock of its own and in-memory transports; no kernel sockets, no threads.

When nothing is ready the clock jumps to the next timer, so an hour of replay takes what its computing takes and gives
the same figures every time. Product code runs unchanged: it takes `now_ns` and `sleep_until` from the loop and opens
connections through create_connection/create_server, which here never leave the process.
May not know: what runs in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from joulegraph.memory import MemoryServer, MemoryTransport

T = TypeVar("T")


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


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at start_ns and moves only when everything waits."""

    def __init__(self, start_ns: int = 1_000_000_000_000) -> None:
        self._idle = _IdleSelector()
        self._idle.clock_ns = start_ns
        self.listeners: dict[int, MemoryServer] = {}
        self._next_port = 20_000
        self._to_pump: list[MemoryTransport] = []
        super().__init__(self._idle)

    def _pump_soon(self, transport: MemoryTransport) -> None:
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
        near = MemoryTransport(self, near_protocol, here, server.address, self._pump_soon)
        far = MemoryTransport(self, far_protocol, server.address, here, self._pump_soon)
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
        server = MemoryServer(self, protocol_factory, (str(host), port), self.listeners)
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
