"""One exchange with an engine: from "the request may go" to "the last byte was relayed", on one upstream connection.

Order of work on every read: stamp, relay, then look. Lives here: sending, the one retry, relaying, and every way an
exchange can end. May not know: how requests are read (reading), how replies are framed (reply), what requests say
(study), journals.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from proxy.exchange import Exchange
from proxy.framing import FramingError
from proxy.heads import body_pieces, outgoing
from proxy.refusal import Refusal
from proxy.reply import Reply, client_head, is_whole, read_head
from proxy.replyhead import ReplyHead
from proxy.study import find_tag, spliced
from proxy.upstream import Pool, Upstream, hold
from traces.records import Outcome

if TYPE_CHECKING:
    from proxy.front import Front
    from proxy.hub import Hub


class Relay:
    """Couples one front connection with one upstream connection for one exchange."""

    __slots__ = (
        "_begun", "_done", "_hub", "_opening", "_reply", "_request", "_retried", "_streamed", "_upload_ended",
        "connection", "exchange", "front", "gated", "pool", "replied",
    )  # fmt: skip

    def __init__(self, hub: Hub, front: Front, exchange: Exchange, body: bytes, *, streamed: bool, whole: bool) -> None:
        """`body` is the request's: all of it, or its beginning when it is streamed on."""
        self._hub = hub
        self.front = front
        self.exchange = exchange
        self.connection: Upstream | None = None
        self.pool: Pool | None = None
        self.replied = False
        """the reply's head went to the client"""
        self.gated: Literal["in", "queued", "full"] = "full"
        """where the concurrency limit has it: inside, waiting, or neither"""
        self._streamed = streamed
        self._upload_ended = whole
        self._opening: asyncio.Task[None] | None = None
        self._retried = False
        self._done = False
        exchange.bytes_in = len(body)
        exchange.unread = True
        if not streamed:
            exchange.body = body
            body = spliced(exchange, hub.config)
        self._request = [body] if body else []
        self._begun = b""
        """the start of a head that is not whole yet"""
        self._reply: Reply | None = None
        """the walk over the reply; none where it came in one piece"""

    # ---- towards the engine

    def start(self, now: int, *, waited: bool = False) -> None:
        """The concurrency limit lets it go: choose an engine and send."""
        if waited:
            self.exchange.left_queue(now)
        hub = self._hub
        self.pool = pool = hub.pools[0] if hub.single else hub.choose()
        pool.busy += 1
        connection = None if self._streamed or self.exchange.fresh else pool.take(now)
        if connection is not None:
            self._attach(connection, reused=True)
        else:
            self._open()

    def upload(self, parts: list[bytes], *, last: bool) -> None:
        """More of a streamed request body."""
        self._upload_ended = last
        self.exchange.bytes_in += sum(map(len, parts))
        if self.connection is None:
            self._request += parts
            return
        for piece in body_pieces(parts, last=last) if self.exchange.head.chunked else parts:
            self._hub.outbox.put(self.connection.transport, piece)

    def _open(self) -> None:
        self._opening = self._hub.loop.create_task(self._connect())

    async def _connect(self) -> None:
        pool = first = self.pool
        assert pool is not None
        limit = self._hub.config.connect_timeout_ns
        found = await pool.reach(limit)
        for other in self._hub.ranked():
            if not isinstance(found, Refusal):
                break
            if other is not first:  # nothing was sent on a connection that does not stand: another engine may have it
                self.exchange.add_note(f"{found.message}; given to another engine")
                pool.busy -= 1
                other.busy += 1
                self.pool = pool = other
                found = await pool.reach(limit)
        self._opening = None
        if isinstance(found, Refusal):
            self._fail(found.status, "unreachable", found.message)
        elif self._done:
            pool.discard(found)
        else:
            self._attach(found, reused=False)

    def _attach(self, connection: Upstream, *, reused: bool) -> None:
        self.connection = connection
        connection.receiver = self
        transport = connection.transport
        if self.front.paused:
            transport.pause_reading()
        exchange, pool, hub = self.exchange, connection.pool, self._hub
        head, prefix, ended = exchange.head, pool.target.prefix, self._upload_ended
        for piece in outgoing(head, pool.name, prefix, self._request, streamed=self._streamed, whole=ended):
            hub.outbox.put(transport, piece)
        if not exchange.tagged:
            hub.look_later(exchange)
        exchange.upstream, exchange.reused, exchange.t_upstream_ns = pool.name, reused, hub.now_ns()
        if self._streamed:
            self._request = []
            self.front.pause_upload(False)

    # ---- from the engine

    def received(self, data: bytes, now: int) -> None:
        """One read of the reply that is not the usual one of a stream: relay, look."""
        try:
            if self._reply is None:
                self._begin(data, now)
            else:
                self._walk(self._reply, data, now)
        except FramingError as error:
            self._leave_engine()  # the engine's bytes are no HTTP we can trust
            self._fail(502, "error", str(error), now)

    def _begin(self, data: bytes, now: int) -> None:
        """Until the head is whole."""
        exchange = self.exchange
        if exchange.t_first_byte_ns is None:
            exchange.t_first_byte_ns = now
            if not self._streamed:
                self._request = []
        head, rest = read_head(self._begun + data if self._begun else data)
        if head is None:
            self._begun = rest
            return
        if is_whole(head, exchange.head, rest):
            self.replied = True
            self.front.send(self._client_head(head, unchunk=False, closes=False) + rest)
            exchange.read(now, len(rest), rest)
            self._complete(head, now, reusable=head.keep_alive)
            return
        reply = self._reply = Reply(head, exchange.head, exchange.usage_spliced is True)
        if reply.note is not None:
            exchange.add_note(reply.note)
        self._walk(reply, rest, now, self._client_head(head, unchunk=reply.unchunk, closes=reply.closes))

    def _walk(self, reply: Reply, data: bytes, now: int, first: bytes = b"") -> None:
        out, payload = reply.walk(data)
        if first:
            self.replied = True
            out = first + out
        if out:
            self._pass_on(out)
        exchange = self.exchange
        if reply.done:  # with the last reads it is looked at when the exchange is recorded
            exchange.last_read = (now, reply.used, payload)
            reusable = reply.head.keep_alive and not reply.closes and reply.used == len(data)
            self._complete(reply.head, now, reusable=reusable)
            return
        if exchange.reads.waits():
            self.look()
        self._hub.page.tokens(exchange.read(now, reply.used, payload))
        if exchange.stream:
            self._shorten(reply)

    def _pass_on(self, data: bytes) -> None:
        """A stream's bytes go out at once, in order; others with those of this turn."""
        if self.exchange.stream:
            self._hub.outbox.send()
            self.front.straight.write(data)
        else:
            self.front.send(data)

    def _shorten(self, reply: Reply) -> None:
        """Let whole chunks pass the short way while the stream is between two of them."""
        connection = self.connection
        if connection is None:
            return
        if reply.at_border:
            exchange, special = self.exchange, reply.special
            connection.shorten(self.front.straight, special, exchange.reads, exchange.plain(special))
        else:
            connection.lengthen()

    def look(self) -> None:
        """Look at the reads that passed the short way."""
        self._hub.look_at_reads(self.exchange)
        if self.connection is not None and self._reply is not None:
            self.connection.recognise(self.exchange.plain(self._reply.special))

    def _client_head(self, head: ReplyHead, *, unchunk: bool, closes: bool) -> bytes:
        """The reply's head for the client, once it is whole. `closes`: only the connection's end ends the body."""
        exchange, front = self.exchange, self.front
        if unchunk or closes:
            front.close_after = True
        exchange.reply(head.status, head.event_stream, head.encoded, keep_text=self._hub.keep_text)
        if not exchange.tagged:
            find_tag(exchange, self._hub.lineage)
        return client_head(head, exchange.head, exchange.tag, unchunk=unchunk, closes=front.will_close())

    # ---- ends

    def _complete(self, head: ReplyHead, now: int, *, reusable: bool) -> None:
        connection = self.connection
        assert connection is not None
        self.connection = None
        if reusable and self._upload_ended:
            connection.pool.give(connection, now)
            if self.front.paused:
                connection.transport.resume_reading()
        else:
            connection.pool.discard(connection)
        status = head.status
        self._end("ok" if status < 400 else "rejected" if status < 500 else "error", now)
        self.front.reply_done(now)

    def upstream_lost(self, error: Exception | None) -> None:
        """The engine's connection ended while this exchange was on it."""
        exchange, reply = self.exchange, self._reply
        self.connection = None
        if reply is not None and reply.closes and error is None:
            self._end("ok", self._hub.now_ns())
            self.front.close()
            return
        if exchange.t_first_byte_ns is None and exchange.reused and not self._retried and not self._streamed:
            self._retried = True
            exchange.add_note("sent again: a kept-alive connection was gone before any byte of a reply")
            self._open()
            return
        self._fail(502, "upstream_died", "the engine closed the connection before its reply was complete")

    def upstream_paused(self, paused: bool) -> None:
        """Backpressure on a request body that is streamed up; a held one is in memory already."""
        if self._streamed:
            self.front.pause_upload(paused)

    def client_paused(self, paused: bool) -> None:
        """Backpressure on the reply."""
        if self.connection is not None:
            hold(self.connection.transport, paused)

    def client_left(self, now: int) -> None:
        """The client is gone: so is its request at the engine."""
        self.look()
        if self.exchange.said_all:
            self.exchange.add_note("the client closed right after the end marker")
            self.abandon("ok", now, None)
        else:
            self.abandon("client_left", now, "the client left")

    def abandon(self, outcome: Outcome, now: int, why: str | None) -> None:
        """End from our side: leave the engine at once."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        self._leave_engine()
        self._end(outcome, now, why)

    def _leave_engine(self) -> None:
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.pool.discard(connection)

    def _fail(self, status: int, outcome: Outcome, why: str, now: int | None = None) -> None:
        self._end(outcome, self._hub.now_ns() if now is None else now, why)
        if self.replied:
            held = self._reply.end() if self._reply is not None else b""
            if held:
                self.front.send(held)
            self.front.close()
        else:
            self.front.refuse(Refusal(status, outcome, why))

    def _end(self, outcome: Outcome, now: int, error: str | None = None) -> None:
        if self._done:
            return
        self._done = True
        if self.pool is not None:
            self.pool.busy -= 1
        if self._reply is not None and self._reply.left_in:
            self.exchange.add_note("an event over 256 KB: the usage event was left in the reply")
        self.exchange.end(outcome, now, error)
        self._hub.leave(self)
        self._hub.settle(self.exchange)
