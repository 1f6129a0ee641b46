"""A scripted engine and a raw client on the virtual loop: every byte in and out of the proxy is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from joulegraph.virtual import VirtualLoop, run_virtual
from proxy.config import ProxyConfig
from proxy.server import RunningProxy, start
from traces.records import RequestRecord
from traces.status import StatusPage, StatusReader


class Wire(asyncio.Protocol):
    """One connection end that keeps what it reads, and when."""

    def __init__(self, loop: VirtualLoop, on_data: Callable[[Wire], None] | None = None) -> None:
        self.loop = loop
        self.got = b""
        self.reads: list[tuple[int, bytes]] = []
        self.lost_ns: int | None = None
        self.on_data = on_data
        self.changed = asyncio.Event()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.reads.append((self.loop.now_ns(), data))
        self.changed.set()
        if self.on_data is not None:
            self.on_data(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost_ns = self.loop.now_ns()
        self.changed.set()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def until(self, true: Callable[[Wire], bool], limit_s: float = 200.0) -> None:
        """Wait until something holds of this end (virtual seconds)."""
        async with asyncio.timeout(limit_s):
            while not true(self):
                self.changed.clear()
                await self.changed.wait()

    async def has(self, piece: bytes) -> None:
        """Wait until `piece` was read."""
        await self.until(lambda w: piece in w.got)

    async def end(self) -> None:
        """Wait until the peer closed."""
        await self.until(lambda w: w.lost_ns is not None)


@dataclass
class Rig:
    """The proxy between a scripted engine and raw clients, in virtual time."""

    loop: VirtualLoop
    config: dict[str, Any] = field(default_factory=dict)
    on_data: Callable[[Wire], None] | None = None
    records: list[RequestRecord] = field(default_factory=list)
    engine: list[Wire] = field(default_factory=list)
    proxy: RunningProxy = None  # type: ignore[assignment]
    page: StatusReader = None  # type: ignore[assignment]
    listen: bool = True

    async def __aenter__(self) -> Rig:
        from proxy.page import slot_names

        if self.listen:
            await self.loop.create_server(self._accept, "127.0.0.1", 9000)
        status = StatusPage(slot_names())
        self.page = StatusReader(status)
        self.proxy = await start(
            ProxyConfig(**{"upstreams": ("http://127.0.0.1:9000",), "run_key": b"test key", **self.config}),
            host="127.0.0.1",
            port=0,
            now_ns=self.loop.now_ns,
            connect=self.loop.create_connection,
            serve=self.loop.create_server,
            write=self.records.append,
            status=status,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.proxy.close()

    def _accept(self) -> Wire:
        wire = Wire(self.loop, self.on_data)
        self.engine.append(wire)
        return wire

    def wire(self) -> Wire:
        """A client's end for a connection that the test opens itself."""
        return Wire(self.loop)

    async def client(self, data: bytes = b"") -> Wire:
        """A client connection, with its first bytes sent."""
        _, wire = await self.loop.create_connection(lambda: Wire(self.loop), "127.0.0.1", self.proxy.port)
        if data:
            wire.send(data)
        return wire

    async def accepted(self) -> Wire:
        """Wait until the proxy connected to the engine; the first connection."""
        async with asyncio.timeout(10):
            while not self.engine:
                await asyncio.sleep(0.001)
        return self.engine[0]

    async def settle(self, count: int = 1) -> RequestRecord:
        """Wait until `count` records were written; the last of them."""
        async with asyncio.timeout(200):
            while len(self.records) < count:
                await asyncio.sleep(0.001)
        return self.records[-1]

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture(scope="session")
def rig() -> Callable[..., Any]:
    """rig(scenario, **config): run `scenario(rig)` in virtual time."""

    def run(
        scenario: Callable[[Rig], Any],
        *,
        on_data: Callable[[Wire], None] | None = None,
        listen: bool = True,
        **config: Any,
    ) -> Any:
        async def main(loop: VirtualLoop) -> Any:
            async with Rig(loop, config, on_data, listen=listen) as made:
                return await scenario(made)

        return run_virtual(main)

    return run


def _post(body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    lines = "".join(f"{h}\r\n" for h in headers)
    return f"POST {path} HTTP/1.1\r\nHost: p\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


@pytest.fixture(scope="session")
def post() -> Callable[..., bytes]:
    """post(body, path, *header_lines): the bytes of a POST."""
    return _post
