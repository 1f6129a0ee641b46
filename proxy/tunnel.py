"""A WebSocket through the proxy (/v1/realtime): once the engine has switched protocols, raw bytes both ways.

Until it says 101 nothing of what the client sends goes on, and any other answer ends the connection: bytes that an
engine would still read as HTTP are requests that no allow-list has seen. Lives here: connecting, the answer to the
handshake, relaying with backpressure, and the record of a tunnel (times and bytes, no content).
May not know: WebSocket frames.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from proxy.exchange import Exchange
from proxy.foreign import read_tag
from proxy.framing import FramingError
from proxy.heads import upstream_head
from proxy.refusal import Refusal
from proxy.reply import MAX_REPLY_HEAD, Reply, client_head, read_head
from proxy.upstream import Pool, Upstream, hold
from traces.records import Outcome

if TYPE_CHECKING:
    from proxy.front import Front
    from proxy.hub import Hub

_UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
MAX_EARLY = 64 << 10
"""bytes kept of a client that does not wait for the answer to its handshake"""
_SWITCHED = re.compile(rb"HTTP/1\.1 101(?: [^\r\n\x00]*)?\r\n")


class Tunnel:
    """Couples one front connection with one fresh upstream connection until either ends."""

    def __init__(self, hub: Hub, front: Front, exchange: Exchange) -> None:
        self._hub = hub
        self._front = front
        self._exchange = exchange
        self._pool: Pool = hub.choose()
        self._connection: Upstream | None = None
        self._early = bytearray()
        """what the client sent before the engine had switched"""
        self._answer = b""
        """the engine's answer to the handshake, as far as it came"""
        self._reply: Reply | None = None
        """the walk over an answer other than 101"""
        self._open = False
        self._opening: asyncio.Task[None] | None = None
        self._ended = False

    def open(self, rest: bytes) -> None:
        """Connect, and send the handshake. `rest`: what the client sent behind it."""
        exchange = self._exchange
        exchange.tag = read_tag(exchange.head.tags, None)
        exchange.t_body_ns = exchange.t_head_ns
        self._pool.busy += 1
        self._opening = asyncio.get_running_loop().create_task(self._connect())
        self.from_client(rest)

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
        self._exchange.sent(target.name, False, self._hub.now_ns())

    def received(self, data: bytes, now: int) -> None:
        """Bytes of the engine."""
        exchange = self._exchange
        if exchange.t_first_byte_ns is None:
            exchange.t_first_byte_ns = now
        if self._open:
            self._front.send(data)
            exchange.read(now, len(data), b"")
            return
        try:
            self._answered(data, now)
        except FramingError as error:
            self._fail("error", str(error))

    def _answered(self, data: bytes, now: int) -> None:
        """The answer to the handshake: 101 opens the tunnel, anything else is passed on as the reply it is."""
        reply = self._reply
        if reply is None:
            self._answer += data
            if _SWITCHED.match(self._answer):
                if b"\r\n\r\n" in self._answer:
                    self._switch(now)
                elif len(self._answer) > MAX_REPLY_HEAD:
                    raise FramingError("the reply head is over 64 KB")
                return
            head, data = read_head(self._answer)
            if head is None:
                return
            reply = self._reply = Reply(head, self._exchange.head, False)
            self._exchange.reply(head.status, False, False, keep_text=False)
            self._front.send(client_head(head, self._exchange.head, self._exchange.tag, unchunk=False, closes=True))
        out, _ = reply.walk(data)
        self._front.send(out)
        self._exchange.read(now, reply.used, b"")
        if reply.done:
            self._unopened(reply)

    def _switch(self, now: int) -> None:
        connection, exchange, answer = self._connection, self._exchange, self._answer
        assert connection is not None
        self._open = True
        exchange.status = 101
        self._front.send(answer)
        exchange.read(now, len(answer), b"")
        connection.transport.write(bytes(self._early))
        self._early.clear()
        self._front.pause_upload(False)

    def look(self) -> None:
        """A tunnel lets nothing go the short way."""

    def from_client(self, data: bytes) -> None:
        """Bytes of the client."""
        self._exchange.bytes_in += len(data)
        if self._open and self._connection is not None:
            self._connection.transport.write(data)
        else:
            self._early += data
            if len(self._early) > MAX_EARLY:
                self._front.pause_upload(True)

    def upstream_lost(self, error: Exception | None) -> None:
        """The engine closed the tunnel."""
        self._connection = None
        reply = self._reply
        if self._open:
            self._end(
                "ok" if error is None else "upstream_died", None if error is None else "the engine broke the tunnel"
            )
            self._front.close()
        elif reply is not None and reply.closes and error is None:
            self._unopened(reply)
        else:
            self._fail("upstream_died", "the engine closed the connection before it had answered the handshake")

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
        self._leave()
        self._end("ok" if self._open else "client_left", None)

    def _leave(self) -> None:
        if self._connection is not None:
            self._pool.discard(self._connection)
            self._connection = None

    def _unopened(self, reply: Reply) -> None:
        """The engine's answer is whole, and is not 101."""
        self._leave()
        self._end("rejected" if reply.head.status < 500 else "error", "the engine opened no WebSocket")
        self._front.close()

    def _fail(self, outcome: Outcome, why: str) -> None:
        self._leave()
        self._end(outcome, why)
        if self._reply is None:
            self._front.refuse(Refusal(502, outcome, why))
        else:
            self._front.close()

    def _end(self, outcome: Outcome, why: str | None) -> None:
        if not self._ended:
            self._ended = True
            self._pool.busy -= 1
            self._exchange.end(outcome, self._hub.now_ns(), why)
            self._hub.settle(self._exchange)
