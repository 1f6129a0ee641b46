"""A WebSocket through the proxy (/v1/realtime): after the opening handshake went on, raw bytes both ways.

Lives here: connecting, relaying with backpressure, and the record of a tunnel (times and bytes, no content).
May not know: WebSocket frames.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.exchange import Exchange
from proxy.foreign import read_tag
from proxy.heads import upstream_head
from proxy.refusal import Refusal
from proxy.upstream import Pool, Upstream, hold
from traces.records import Outcome

if TYPE_CHECKING:
    from proxy.front import Front
    from proxy.hub import Hub

_UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


class Tunnel:
    """Couples one front connection with one fresh upstream connection until either ends."""

    def __init__(self, hub: Hub, front: Front, exchange: Exchange) -> None:
        self._hub = hub
        self._front = front
        self._exchange = exchange
        self._pool: Pool = hub.choose()
        self._connection: Upstream | None = None
        self._early: list[bytes] = []
        self._opening: asyncio.Task[None] | None = None
        self._ended = False

    def open(self, rest: bytes) -> None:
        """Connect, and send the handshake and what the client sent behind it."""
        exchange = self._exchange
        exchange.tag = read_tag(exchange.head.tags, None)
        exchange.t_body_ns = exchange.t_head_ns
        self._early = [rest] if rest else []
        self._front.pause_upload(True)
        self._opening = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        connection = await self._pool.reach(self._hub.config.connect_timeout_ns)
        self._opening = None
        if isinstance(connection, Refusal):
            self._end("unreachable", connection.message)
            self._front.refuse(connection)
            return
        if self._ended:
            self._pool.discard(connection)
            return
        self._connection = connection
        connection.receiver = self
        target = self._pool.target
        connection.transport.write(upstream_head(self._exchange.head, target.name, target.prefix, _UPGRADE))
        for piece in self._early:
            connection.transport.write(piece)
        self._exchange.bytes_in = sum(map(len, self._early))
        self._exchange.sent(target.name, False, self._hub.now_ns())
        self._front.pause_upload(False)

    def received(self, data: bytes, now: int) -> None:
        """Bytes of the engine."""
        self._front.send(data)
        exchange = self._exchange
        if exchange.t_first_byte_ns is None:
            exchange.t_first_byte_ns = now
            status = data[9:12]
            exchange.status = int(status) if status.isdigit() else None
        exchange.read(now, len(data), b"")

    def settle_reads(self) -> None:
        """A tunnel lets nothing go the short way."""

    def from_client(self, data: bytes) -> None:
        """Bytes of the client."""
        self._exchange.bytes_in += len(data)
        if self._connection is not None:
            self._connection.transport.write(data)

    def upstream_lost(self, error: Exception | None) -> None:
        """The engine closed the tunnel."""
        self._connection = None
        self._end("ok" if error is None else "upstream_died", None if error is None else "the engine broke the tunnel")
        self._front.close()

    def upstream_paused(self, paused: bool) -> None:
        """Backpressure towards the client."""
        self._front.pause_upload(paused)

    def client_paused(self, paused: bool) -> None:
        """Backpressure towards the engine."""
        if self._connection is not None:
            hold(self._connection.transport, paused)

    def client_lost(self) -> None:
        """The client closed the tunnel, the usual end of a WebSocket."""
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._pool.discard(self._connection)
            self._connection = None
        self._end("ok" if self._exchange.status == 101 else "client_left", None)

    def _end(self, outcome: Outcome, why: str | None) -> None:
        if not self._ended:
            self._ended = True
            self._exchange.end(outcome, self._hub.now_ns(), why)
            self._hub.settle(self._exchange)
