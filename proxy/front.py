"""The client side: one asyncio.Protocol per connection, llhttp for the request, timers against slow clients.

Lives here: reading one request at a time, the choice between holding a body and streaming it up, refusals, keep-alive,
and the end of the connection. Pipelining is refused: the first request is answered, then the connection closes with a
400. May not know: the engine's connection (relay), tags, journals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from proxy.exchange import Exchange
from proxy.heads import Refusal, RequestHead, read_request, refusal_reply
from proxy.hub import Hub
from proxy.relay import Relay
from proxy.tunnel import Tunnel
from traces.records import Outcome

LINGER_NS = 1_000_000_000
MIN_BODY_RATE = 1024
"""bytes per second below which an upload counts as an attack"""
STALL_NS = 60_000_000_000
"""a client that takes no byte of its reply for this long is cut off"""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Front(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body_size",
        "_closing_ns",
        "_complete",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_hub",
        "_idle_ns",
        "_now_ns",
        "_parser",
        "_parts",
        "_paused_ns",
        "_pipelined",
        "_start",
        "_streaming",
        "_t_first_ns",
        "_target",
        "_transport",
        "_tunnel",
        "_upload_paused",
        "close_after",
        "exchange",
        "head",
        "paused",
        "relay",
        "write",
    )

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._now_ns = hub.now_ns
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.write: Callable[[bytes], None]
        self._tunnel: Tunnel | None = None
        self._closing_ns: int | None = None
        self._paused_ns = 0
        self.paused = False
        self._reset(0)

    def _reset(self, now: int) -> None:
        """Ready for the next request."""
        self._idle_ns = now
        self._t_first_ns: int | None = None
        self._head_bytes = 0
        self._head_done = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._parts: list[bytes] = []
        self._body_size = 0
        self._complete = False
        self._pipelined = False
        self._streaming = False
        self._upload_paused = False
        self._start = (b"", "", False)  # method, version, keep-alive
        self.close_after = False
        self.head: RequestHead | None = None
        self.exchange: Exchange | None = None
        self.relay: Relay | None = None

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self._idle_ns = self._now_ns()
        hub = self._hub
        hub.fronts.add(self)
        hub.watch()
        if len(hub.fronts) > hub.config.max_connections:
            self.refuse(Refusal(503, "too_many_connections", "this proxy holds as many connections as it may"))

    def connection_lost(self, error: Exception | None) -> None:
        self._hub.fronts.discard(self)
        self._closing_ns = 0
        if self._tunnel is not None:
            self._tunnel.client_lost()
        elif self.relay is not None:
            self.relay.client_left(self._now_ns())
        elif self.exchange is not None:
            self._end_exchange("client_left", "the client left before its request was complete")
        del self._parser  # it holds our callbacks: break the cycle

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
        if self._tunnel is not None:
            self._tunnel.from_client(data)
            return
        if self._closing_ns is not None:
            return
        if self._complete:
            self._pipelined = self._pipelined or bool(data.strip(b"\r\n"))
            return
        now = self._now_ns()
        if self._t_first_ns is None:
            self._t_first_ns = now
        self._feed(data, now)

    def _feed(self, data: bytes, now: int) -> None:
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :], now)
            return
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:
            if not self._complete:
                self.refuse(Refusal(400, "bad_request", f"the request is not valid HTTP/1.1: {_safe(error)}"))
                return
            self._pipelined = True
        self._progress(now)

    # ---- llhttp: collect only, decide in _progress

    def on_message_begin(self) -> None:
        """The start of a message; a second one is pipelining."""
        if self._complete:
            self._pipelined = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        if not self._complete:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field; trailers of a chunked body are dropped."""
        if not self._head_done:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if not self._complete:
            self._head_done = True
            parser = self._parser
            self._start = (parser.get_method(), parser.get_http_version(), parser.should_keep_alive())

    def on_body(self, body: bytes) -> None:
        """A piece of the body, without chunk framing."""
        if not self._complete:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._head_done:
            self._complete = True

    # ---- decisions

    def _progress(self, now: int) -> None:
        """Act on what the parser collected from one read."""
        if self.head is None:
            if self._head_done:
                self._open(now)
            elif self._head_bytes > self._hub.config.max_head:
                limit = self._hub.config.max_head
                self.refuse(Refusal(431, "head_too_large", f"the head is over {limit} bytes"))
        if self.exchange is not None and self._closing_ns is None:
            self._take_body(now)

    def _open(self, now: int) -> None:
        hub = self._hub
        method, version, keep_alive = self._start
        head = read_request(method, self._target, version, self._headers, keep_alive, hub.config, hub.extra_paths)
        self._headers = []
        if isinstance(head, Refusal):
            self.refuse(head)
            return
        if hub.draining:
            self.refuse(Refusal(503, "draining", "this proxy is shutting down"))
            return
        self.head = head
        self.exchange = Exchange(head, self._t_first_ns or now, now)
        hub.begun()
        self._streaming = head.length > hub.config.buffer_body
        if head.expect and not self._complete and not head.http10:
            self.write(_CONTINUE)

    def _take_body(self, now: int) -> None:
        parts, self._parts = self._parts, []
        if parts:
            self._body_size += sum(map(len, parts))
        config = self._hub.config
        if self._body_size > config.max_body:
            self._too_large(now)
            return
        if not self._streaming and self._body_size > config.buffer_body:
            self._streaming = True
        if not self._streaming and not self._complete:
            self._parts = parts
            return
        if self._complete and self.exchange is not None:
            self.exchange.body_complete(now)
        if self.relay is None:
            self._dispatch(parts[0] if len(parts) == 1 else b"".join(parts))
        else:
            self.relay.upload(parts, last=self._complete)

    def _dispatch(self, body: bytes) -> None:
        exchange, parrot = self.exchange, self._hub.parrot
        assert exchange is not None
        if parrot is not None and (refusal := parrot.judge(exchange, body)) is not None:
            self._end_exchange("rejected", refusal.message)
            self.refuse(refusal)
            return
        relay = self.relay = Relay(self._hub, self, exchange)
        if self._streaming:
            exchange.add_note("body over the buffering limit: not parsed, usage not asked for")
            if not self._complete:
                self.pause_upload(True)
        relay.prepare(body, streamed=self._streaming, whole=self._complete)
        if not self._hub.admit(relay):
            relay.abandon("rejected", self._now_ns(), "the queue of the concurrency limit is full")
            self.refuse(Refusal(503, "queue_full", "too many requests wait already; try again later"))

    def _too_large(self, now: int) -> None:
        limit = self._hub.config.max_body
        refusal = Refusal(413, "body_too_large", f"the body is over {limit} bytes")
        self._stop("rejected", refusal, now)

    def _upgrade(self, rest: bytes, now: int) -> None:
        """llhttp stops at an Upgrade header: a WebSocket becomes a tunnel, anything else is read as if it were not."""
        method, target, headers = self._start[0], self._target, self._headers
        self._complete = False
        self._parser = httptools.HttpRequestParser(self)
        wanted = {name.lower(): value.lower() for name, value in headers}.get(b"upgrade")
        if wanted == b"websocket" and method == b"GET" and target.split(b"?", 1)[0] == b"/v1/realtime":
            self._complete = True
            self._open(now)
            self._open_tunnel(rest)
            return
        if method == b"CONNECT":
            self.refuse(Refusal(400, "bad_target", "this proxy opens no tunnels to other hosts"))
            return
        plain = [pair for pair in headers if pair[0].lower() != b"upgrade"]
        again = b"".join(
            [method, b" ", target, b" HTTP/1.1\r\n", *(n + b": " + v + b"\r\n" for n, v in plain), b"\r\n"]
        )
        self._headers, self._target, self._head_done = [], b"", False
        self._feed(again + rest, now)

    def _open_tunnel(self, rest: bytes) -> None:
        if self.exchange is not None and self._closing_ns is None:
            self._tunnel = Tunnel(self._hub, self, self.exchange)
            self._tunnel.open(rest)

    # ---- the reply side calls these

    def will_close(self) -> bool:
        """Whether this connection ends with the present reply."""
        head = self.head
        return (
            self.close_after
            or not self._complete
            or self._pipelined
            or self._hub.draining
            or head is None
            or not head.keep_alive
        )

    def reply_done(self) -> None:
        """The reply was relayed whole."""
        if self._closing_ns is not None:
            return
        if self._pipelined:
            self.relay = self.exchange = None
            self.refuse(Refusal(400, "pipelining", "send the next request after the reply to this one"))
        elif self.will_close():
            self.close()
        else:
            self.pause_upload(False)
            self._reset(self._now_ns())

    def refuse(self, refusal: Refusal) -> None:
        """Answer with our own error and close."""
        if self._closing_ns is not None:
            return
        if self.exchange is None:
            self._hub.page.add("refused")
        head = self.head
        path = head.path if head is not None else self._target.decode("ascii", "replace")
        method = head.method if head is not None else "POST"
        self.write(refusal_reply(refusal, path, head.request_id if head is not None else None, method))
        self.close()

    def close(self) -> None:
        """Close after what was written; while the request is still coming, read it into the void for a moment."""
        self.relay = self.exchange = None
        if self._complete or self._transport.is_closing():
            self._closing_ns = 0
            self._transport.close()
        elif self._closing_ns is None:
            self._closing_ns = self._now_ns() + LINGER_NS
            self._transport.resume_reading()

    def pause_upload(self, paused: bool) -> None:
        """Backpressure on the request body."""
        if self._transport.is_closing() or paused == self._upload_paused:
            return
        self._upload_paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # ---- timers

    def sweep(self, now: int) -> None:
        """Called twice a second."""
        config = self._hub.config
        exchange = self.exchange
        if self._tunnel is not None:
            return
        if self._closing_ns is not None:
            if now > self._closing_ns:
                self._transport.abort()
        elif self.paused and now - self._paused_ns > STALL_NS:
            self._transport.abort()
        elif exchange is not None and _past(now, exchange.t_arrival_ns, exchange.deadline_ns or config.deadline_ns):
            self._expire(now)
        elif exchange is not None:
            if not self._complete and not self._upload_paused and self._too_slow(exchange, now):
                self._give_up(now)
        elif self._t_first_ns is not None:
            if now - self._t_first_ns > config.head_timeout_ns:
                self.refuse(Refusal(408, "slow_head", "the request head did not arrive in time"))
        elif now - self._idle_ns > config.idle_timeout_ns or self._hub.draining:
            self._complete = True
            self.close()

    def _too_slow(self, exchange: Exchange, now: int) -> bool:
        allowed = self._hub.config.body_timeout_ns + self._body_size * 1_000_000_000 // MIN_BODY_RATE
        return now - exchange.t_head_ns > allowed

    def _give_up(self, now: int) -> None:
        refusal = Refusal(408, "slow_body", "the request body did not arrive in time")
        self._stop("client_left", refusal, now)

    def _expire(self, now: int) -> None:
        self._stop("timeout", Refusal(504, "deadline", "the proxy's deadline for this request has passed"), now)

    def _stop(self, outcome: Outcome, refusal: Refusal, now: int) -> None:
        """End the exchange from our side: an error reply where none has begun, a cut connection otherwise."""
        relay = self.relay
        if relay is None:
            self._end_exchange(outcome, refusal.message)
            self.refuse(refusal)
            return
        relay.abandon(outcome, now, refusal.message)
        if relay.replied:
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
            exchange.bytes_in = self._body_size
            exchange.end(outcome, self._now_ns(), why)
            self._hub.settle(exchange)


def _past(now: int, since: int, limit_ns: int | None) -> bool:
    return limit_ns is not None and now - since > limit_ns


def _safe(error: Exception) -> str:
    """llhttp's own words, which name a grammar rule and never the offending bytes."""
    return str(error)[:100]
