"""The client side: one asyncio.Protocol per connection, what to do with its request, timers against slow clients.

Lives here: one request at a time, the choice between holding a body and streaming it up, refusals, keep-alive, and the
end of the connection. Pipelining is refused: the first request is answered, then the connection closes with a 400.
May not know: how a request is read (reading), the engine's connection (relay), tags, journals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from proxy.exchange import Exchange
from proxy.heads import RequestHead
from proxy.hub import Hub
from proxy.reading import Intake
from proxy.refusal import Refusal, refusal_reply
from proxy.relay import Relay
from proxy.straight import Straight
from proxy.timers import LINGER_NS, STALL_NS, overdue
from proxy.tunnel import Tunnel
from proxy.upstream import hold
from traces.records import Outcome

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Front:
    """One client connection. An asyncio.Protocol in all but its base, which a compiled class cannot have."""

    __slots__ = (
        "_buffer_body", "_closing_ns", "_held_ns", "_hub", "_idle_ns", "_intake", "_now_ns", "_paused_ns", "_streaming",
        "_t_first_ns", "_transport", "_tunnel", "_upload_paused", "close_after", "exchange", "paused", "relay", "send",
        "straight",
    )  # fmt: skip

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._now_ns = hub.now_ns
        self._buffer_body = hub.config.buffer_body
        self._intake = Intake(hub.known, hub.config, hub.extra_paths)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.send: Callable[[bytes], None]
        """write to the client at the end of this turn of the loop"""
        self.straight: Straight
        """write to the client now: only where the outbox keeps nothing for it"""
        self._tunnel: Tunnel | None = None
        self._closing_ns: int | None = None
        self._paused_ns = 0
        self.paused = False
        self._begin(0)

    def _begin(self, now: int) -> None:
        """Ready for the next request."""
        self._idle_ns = now
        self._t_first_ns: int | None = None
        self._streaming = False
        self._upload_paused = False
        self._held_ns = 0
        """how long the body was not read, because it could not go on; less the instant while it is not"""
        self.close_after = False
        self.exchange: Exchange | None = None
        self.relay: Relay | None = None

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send = partial(self._hub.outbox.put, self._transport)
        self.straight = Straight(self._transport)
        self._idle_ns = self._now_ns()
        hub = self._hub
        hub.fronts.add(self)
        hub.watch()
        if len(hub.fronts) > hub.config.max_connections:
            self.refuse(Refusal(503, "too_many_connections", "this proxy holds as many connections as it may"))

    def connection_lost(self, error: Exception | None) -> None:
        self._hub.fronts.discard(self)
        self.straight.close()
        self._closing_ns = 0
        if self._tunnel is not None:
            self._tunnel.client_lost()
        elif self.relay is not None:
            self.relay.client_left(self._now_ns())
        elif self.exchange is not None:
            self._end_exchange("client_left", "the client left before its request was complete")
        self._intake.close()

    def eof_received(self) -> None:
        """A client that says it has no more to say is gone: the transport closes itself."""

    def pause_writing(self) -> None:
        self.paused = True
        self._paused_ns = self._now_ns()
        if self._tunnel is not None:
            self._tunnel.client_paused(True)
        elif self.relay is not None:
            self.relay.client_paused(True)

    def resume_writing(self) -> None:
        self.paused = False
        if self._tunnel is not None:
            self._tunnel.client_paused(False)
        elif self.relay is not None:
            self.relay.client_paused(False)

    def data_received(self, data: bytes) -> None:
        now = self._now_ns()
        intake = self._intake
        if self._tunnel is not None:
            self._tunnel.from_client(data)
        elif self._closing_ns is not None:
            return
        elif intake.complete:
            intake.after(data)
        else:
            if self._t_first_ns is None:
                self._t_first_ns = now
            whole = intake.feed(data)
            if intake.refusal is not None:
                self._stop("rejected", intake.refusal, now)
            elif self.exchange is not None or (intake.head is not None and self._open(intake.head, now)):
                if whole and self.relay is None and intake.size <= self._buffer_body:
                    self._dispatch(intake.body(), now)
                else:
                    self._take_body(now)

    # ---- decisions

    def _open(self, head: RequestHead, now: int) -> bool:
        """The head is whole and may go on; whether its body is wanted now."""
        hub, intake = self._hub, self._intake
        if hub.draining:
            self.refuse(Refusal(503, "draining", "this proxy is shutting down"))
            return False
        exchange = self.exchange = Exchange(head, self._t_first_ns or now, now)
        hub.begun()
        if intake.tunnel is not None:
            self._tunnel = Tunnel(hub, self, exchange)
            self._tunnel.open(intake.tunnel)
            return False
        self._streaming = head.length > self._buffer_body
        if head.expect and not intake.complete and not head.http10:
            self.send(_CONTINUE)
        return True

    def _take_body(self, now: int) -> None:
        """A body that is not whole yet, or longer than is held."""
        intake = self._intake
        if intake.size > self._buffer_body:
            if intake.size > (limit := self._hub.config.max_body):
                self._stop("rejected", Refusal(413, "body_too_large", f"the body is over {limit} bytes"), now)
                return
            self._streaming = True
        if not intake.complete and not self._streaming:
            return
        if self.relay is None:
            self._dispatch(intake.body(), now)
        else:
            if intake.complete and self.exchange is not None:
                self.exchange.t_body_ns = now
            self.relay.upload(intake.take(), last=intake.complete)

    def _dispatch(self, body: bytes, now: int) -> None:
        exchange, hub = self.exchange, self._hub
        assert exchange is not None
        if hub.parrot is not None and (refusal := hub.parrot.judge(exchange, body)) is not None:
            self._end_exchange("rejected", refusal.message)
            self.refuse(refusal)
            return
        whole = self._intake.complete
        if whole:
            exchange.t_body_ns = now
        relay = self.relay = Relay(hub, self, exchange, body, streamed=self._streaming, whole=whole)
        if self._streaming:
            exchange.add_note("body over the buffering limit: not parsed, usage not asked for")
            if not whole:
                self.pause_upload(True)
        if not hub.admit(relay, now):
            relay.abandon("rejected", now, "the queue of the concurrency limit is full")
            self.refuse(Refusal(503, "queue_full", "too many requests wait already; try again later"))

    # ---- the reply side calls these

    def will_close(self) -> bool:
        """Whether this connection ends with the present reply."""
        intake = self._intake
        ends = self.close_after or not intake.complete or intake.pipelined or self._hub.draining
        return ends or intake.head is None or not intake.head.keep_alive

    def reply_done(self, now: int) -> None:
        """The reply was relayed whole."""
        if self._closing_ns is not None:
            return
        if self._intake.pipelined:
            self.relay = self.exchange = None
            self.refuse(Refusal(400, "pipelining", "send the next request after the reply to this one"))
        elif self.will_close():
            self.close()
        else:
            self.pause_upload(False)
            self._intake.reset()
            self._begin(now)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with our own error and close."""
        if self._closing_ns is not None:
            return
        if self.exchange is None:
            self._hub.page.add("refused")
        head = self._intake.head
        method = head.method if head is not None else "POST"
        self.send(refusal_reply(refusal, self._intake.path, head.request_id if head is not None else None, method))
        self.close()

    def close(self) -> None:
        """Close after what was written; while the request is still coming, read it into the void for a moment."""
        self.relay = self.exchange = None
        self._hub.outbox.send()
        if self._intake.complete or self._transport.is_closing():
            self._flush()
        elif self._closing_ns is None:
            self._closing_ns = self._now_ns() + LINGER_NS
            self._transport.resume_reading()

    def _flush(self) -> None:
        """Close as soon as everything is out; a client that takes none of it for long is cut off."""
        self._closing_ns = self._now_ns() + STALL_NS
        self._transport.close()

    def flushing(self) -> bool:
        """It closes, and not everything is out yet."""
        return self._closing_ns is not None and self._transport.get_write_buffer_size() > 0

    def pause_upload(self, paused: bool) -> None:
        """Backpressure on the request body."""
        if self._transport.is_closing() or paused == self._upload_paused:
            return
        self._upload_paused = paused
        self._held_ns += -self._now_ns() if paused else self._now_ns()
        hold(self._transport, paused)

    # ---- timers

    def sweep(self, now: int) -> None:
        """Called twice a second."""
        config = self._hub.config
        exchange = self.exchange
        if self.relay is not None:
            self.relay.look()
        if self._closing_ns is not None:
            if now > self._closing_ns:
                if self._transport.is_closing():
                    self._transport.abort()
                else:
                    self._flush()
        elif self.paused and now - self._paused_ns > STALL_NS:
            self._transport.abort()
        elif self._tunnel is not None:
            return
        elif exchange is not None:
            waiting = not self._intake.complete and not self._upload_paused
            end = overdue(exchange, self._intake.size, waiting, config, now, self._held_ns)
            if end is not None:
                self._stop(*end, now)
        elif self._t_first_ns is not None:
            if now - self._t_first_ns > config.head_timeout_ns:
                self.refuse(Refusal(408, "slow_head", "the request head did not arrive in time"))
        elif now - self._idle_ns > config.idle_timeout_ns or self._hub.draining:
            self._intake.complete = True
            self.close()

    # ---- ends of our own making

    def _stop(self, outcome: Outcome, refusal: Refusal, now: int) -> None:
        """End the exchange from our side: an error reply where none has begun, a cut connection otherwise."""
        relay = self.relay
        if relay is None:
            self._end_exchange(outcome, refusal.message)
        else:
            relay.abandon(outcome, now, refusal.message)
        if relay is not None and relay.replied:
            self._hub.outbox.send()
            self._transport.abort()
        else:
            self.refuse(refusal)

    def stop(self, why: str) -> None:
        """The proxy is leaving: end whatever is under way."""
        if self.exchange is not None and self._tunnel is None:
            self._stop("cancelled", Refusal(503, "draining", why), self._now_ns())
        self._transport.abort()

    def _end_exchange(self, outcome: Outcome, why: str) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.outcome is None:
            exchange.bytes_in = self._intake.size
            exchange.end(outcome, self._now_ns(), why)
            self._hub.settle(exchange)
