"""The reply side of one exchange: from "the request may go" to "the last byte was relayed", on one upstream connection.

Order of work on every read: stamp, relay, then look. Lives here: sending, the one retry, the reply head, relaying, and
every way an exchange can end. May not know: how requests are read (front), tags, journals.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from proxy.content import parse_body, read_facts
from proxy.exchange import Exchange, node_id
from proxy.foreign import read_tag
from proxy.framing import Framing, FramingError, UntilClose, response_framing
from proxy.heads import Refusal, ReplyHead, RequestHead, header_value, read_reply, upstream_head
from proxy.splice import SPLICED_APIS, UsageCut, splice
from proxy.upstream import Pool, Upstream
from traces.records import Outcome
from traces.tags import NODE, REQUEST_ID, WORKFLOW, from_headers

if TYPE_CHECKING:
    from proxy.front import Front
    from proxy.hub import Hub

MAX_REPLY_HEAD = 64 << 10
LARGE_BODY = 16 << 10
STUDY_LATER_S = 0.005
"""a large body is hashed this much later (or at the end), so that the reply does not wait for it"""
_END = b"\r\n\r\n"
_MAYBE_OBJECT = (b"{", b" ", b"\n", b"\r", b"\t")


class Relay:
    """Couples one front connection with one upstream connection for one exchange."""

    __slots__ = (
        "_body",
        "_buffer",
        "_cut",
        "_done",
        "_framing",
        "_head",
        "_hub",
        "_keep_upstream",
        "_now_ns",
        "_opening",
        "_parsed",
        "_raw_relay",
        "_request",
        "_retried",
        "_streamed",
        "_studied",
        "_tagged",
        "_upload_ended",
        "connection",
        "exchange",
        "front",
        "gated",
        "pool",
        "replied",
    )

    def __init__(self, hub: Hub, front: Front, exchange: Exchange) -> None:
        self._hub = hub
        self._now_ns = hub.now_ns
        self.front = front
        self.exchange = exchange
        self.connection: Upstream | None = None
        self.pool: Pool | None = None
        self.replied = False
        """the reply's head went to the client"""
        self.gated: Literal["in", "queued", "full"] = "full"
        """where the concurrency limit has it: inside, waiting, or neither"""
        self._request: list[bytes] = []
        self._body = b""
        self._parsed: Any = None
        self._tagged = False
        self._studied = False
        self._streamed = False
        self._upload_ended = True
        self._opening: asyncio.Task[None] | None = None
        self._retried = False
        self._done = False
        self._buffer = b""
        self._head: ReplyHead | None = None
        self._framing: Framing | None = None
        self._cut: UsageCut | None = None
        self._raw_relay = True
        self._keep_upstream = False

    # ---- towards the engine

    def prepare(self, body: bytes, *, streamed: bool, whole: bool) -> None:
        """Take the request body: all of it, or its beginning when it is streamed on."""
        self._streamed = streamed
        self._upload_ended = whole
        self.exchange.bytes_in = len(body)
        if not streamed:
            self._body = body
            body = self._spliced(body)
        self._request = [body] if body else []

    def _spliced(self, body: bytes) -> bytes:
        """The body with include_usage where the client's stream did not ask for it."""
        exchange, config = self.exchange, self._hub.config
        if not config.splice_usage or exchange.head.api not in SPLICED_APIS or b'"stream"' not in body:
            return body
        self._parsed = parse_body(body)
        spliced = None if exchange.head.http10 else splice(body, self._parsed)
        if spliced is None:
            return body
        exchange.usage_spliced = True
        return spliced

    def start(self, *, waited: bool = False) -> None:
        """The concurrency limit lets it go: choose an engine and send."""
        now = self._now_ns()
        if waited:
            self.exchange.left_queue(now)
        self.pool = pool = self._hub.choose()
        pool.busy += 1
        connection = None if self._streamed or self.exchange.fresh else pool.take()
        if connection is not None:
            self._attach(connection, reused=True)
        else:
            self._open()
        # forward first, look later: uvloop writes before it runs what call_soon queues
        self._hub.loop.call_soon(self.look)

    def upload(self, parts: list[bytes], *, last: bool) -> None:
        """More of a streamed request body."""
        self._upload_ended = last
        self.exchange.bytes_in += sum(map(len, parts))
        if self.connection is None:
            self._request += parts
            return
        for piece in self._framed(parts, last=last):
            self.connection.transport.write(piece)

    def _framed(self, parts: list[bytes], *, last: bool) -> list[bytes]:
        """Body pieces as they go on the wire: chunks where a chunked body is streamed on, else as they are."""
        if not (self._streamed and self.exchange.head.chunked):
            return parts
        chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part]
        return [*chunks, b"0\r\n\r\n"] if last else chunks

    def _open(self) -> None:
        self._opening = self._hub.loop.create_task(self._connect())

    async def _connect(self) -> None:
        pool = self.pool
        assert pool is not None
        try:
            async with asyncio.timeout(self._hub.config.connect_timeout_ns / 1e9):
                connection = await pool.connect()
        except TimeoutError:
            self._fail(504, "unreachable", f"no connection to {pool.target.name} in time")
        except OSError as error:
            why = error.strerror or type(error).__name__
            self._fail(502, "unreachable", f"no connection to {pool.target.name}: {why}")
        else:
            self._opening = None
            if self._done:
                pool.discard(connection)
            else:
                self._attach(connection, reused=False)

    def _attach(self, connection: Upstream, *, reused: bool) -> None:
        self.connection = connection
        connection.receiver = self
        transport = connection.transport
        if self.front.paused:
            transport.pause_reading()
        exchange, target = self.exchange, connection.pool.target
        body = self._request
        line = _framing_line(exchange.head, sum(map(len, body)), self._streamed)
        first = upstream_head(exchange.head, target.name, target.prefix, line)
        if not self._streamed and len(body) == 1 and len(body[0]) <= 16384:
            self._hub.later(transport, first + body[0])
        else:
            transport.write(first)
            for piece in self._framed(body, last=self._upload_ended):
                transport.write(piece)
        exchange.sent(target.name, reused, self._now_ns())
        if self._streamed:
            self._request = []
            self.front.pause_upload(False)

    def look(self) -> None:
        """Read the request's tag and, unless the body is large, its facts; once, after it went on."""
        self.find_tag()
        if len(self._body) > LARGE_BODY:
            self._hub.loop.call_later(STUDY_LATER_S, self.study)
        else:
            self.study()

    def find_tag(self) -> None:
        """The tag; the body is parsed only when the headers alone do not decide."""
        if self._tagged:
            return
        self._tagged = True
        tag = from_headers(self.exchange.head.tags)
        if tag is None:
            tag = read_tag(self.exchange.head.tags, self._parse())
        self.exchange.tag = self._hub.lineage.place(tag) if tag is not None else None

    def study(self) -> None:
        """The facts of the request and its exact edges, once. Nothing here may fail a request."""
        if self._studied:
            return
        self._studied = True
        exchange, config = self.exchange, self._hub.config
        parsed = self._parse()
        self._parsed, self._body = None, b""
        try:
            exchange.facts = read_facts(
                parsed, mode=config.record_content, key=config.run_key, block_bytes=config.block_bytes
            )
        except (TypeError, ValueError, RecursionError, AttributeError) as error:
            exchange.add_note(f"request body not understood ({type(error).__name__})")
            return
        tag = exchange.tag
        workflow, declared = (tag.workflow_id, tag.parents) if tag is not None else (None, ())
        exchange.edges = self._hub.lineage.edges(exchange.facts.named, workflow, declared)

    def understand(self) -> None:
        """All of the above, at the latest when the record is made."""
        self.find_tag()
        self.study()

    def _parse(self) -> Any:
        if self._parsed is None and self._body[:1] in _MAYBE_OBJECT:
            self._parsed = parse_body(self._body)
        return self._parsed

    # ---- from the engine

    def received(self, data: bytes) -> None:
        """One read of the reply: stamp, relay, look."""
        now = self._now_ns()
        first = b""
        if self._framing is None:
            started = self._receive_head(data, now)
            if started is None:
                return
            first, data = started
        framing = self._framing
        assert framing is not None
        try:
            payload = framing.feed(data)
        except FramingError as error:
            self._broken(str(error), now)
            return
        used = framing.used
        if self._raw_relay:
            out = data if used == len(data) else data[:used]
        else:
            out = self._cut.out if self._cut is not None else payload
        if first:
            self.replied = True
            out = first + out
        self.front.write(out)
        tokens = self.exchange.read(now, used, payload)
        if tokens:
            self._hub.page.tokens(tokens)
        if framing.done:
            self._complete(now, extra=used != len(data))

    def _receive_head(self, data: bytes, now: int) -> tuple[bytes, bytes] | None:
        """The head for the client and what is left of the read, once the engine's head is whole."""
        exchange = self.exchange
        if exchange.t_first_byte_ns is None:
            exchange.t_first_byte_ns = now
            if not self._streamed:
                self._request = []
        data = self._buffer + data if self._buffer else data
        try:
            head = None
            while head is None or head.status < 200:  # 1xx answers are for this hop
                at = data.find(_END)
                if at < 0:
                    if len(data) > MAX_REPLY_HEAD:
                        raise FramingError("the reply head is over 64 KB")
                    self._buffer = data
                    return None
                head = read_reply(data[:at])
                if head.status == 101:
                    raise FramingError("the engine switched protocols unasked")
                data = data[at + 4 :]
        except FramingError as error:
            self._broken(str(error), now)
            return None
        self._buffer = b""
        self._take_head(head)
        return self._reply_head(head, exchange.head), data

    def _take_head(self, head: ReplyHead) -> None:
        """Choose how the body is walked and relayed."""
        exchange = self.exchange
        request = exchange.head
        self._head = head
        self._framing = response_framing(request.method, head.status, head.length, head.chunked)
        if exchange.usage_spliced and head.event_stream:
            if head.chunked and not head.encoded:
                self._framing = self._cut = UsageCut()
            else:
                exchange.add_note("reply is not a plain chunked stream: its usage event stays in it")
        unchunk = request.http10 and head.chunked
        self._raw_relay = self._cut is None and not unchunk
        until_close = isinstance(self._framing, UntilClose)
        if unchunk or until_close:
            self.front.close_after = True
        self._keep_upstream = head.keep_alive and not until_close
        text = self._hub.config.record_content == "text"
        exchange.reply(head.status, head.event_stream, head.encoded, keep_text=text)

    def _reply_head(self, head: ReplyHead, request: RequestHead) -> bytes:
        lines = head.lines
        if request.http10 and head.chunked:
            lines = [line for line in lines if not line.lower().startswith(b"transfer-encoding:")]
        out = [head.start, *lines]
        self.find_tag()
        tag = self.exchange.tag
        if tag is not None:
            if tag.workflow_id is not None:
                out.append(_line(WORKFLOW, tag.workflow_id))
            out.append(_line(NODE, node_id(request, tag) or ""))
        if not head.request_id:
            out.append(_line(REQUEST_ID, request.request_id))
        if self.front.will_close():
            out.append(b"Connection: close\r\n")
        elif request.http10:
            out.append(b"Connection: keep-alive\r\n")
        out.append(b"\r\n")
        return b"".join(out)

    # ---- ends

    def _complete(self, now: int, *, extra: bool) -> None:
        connection = self.connection
        assert connection is not None
        self.connection = None
        if self._keep_upstream and not extra and self._upload_ended:
            connection.transport.resume_reading()
            connection.pool.give(connection)
        else:
            connection.pool.discard(connection)
        self._note_cut()
        status = self.exchange.status or 0
        self._end("ok" if status < 400 else "rejected" if status < 500 else "error", now)
        self.front.reply_done()

    def _note_cut(self) -> None:
        if self._cut is not None and self._cut.gave_up:
            self.exchange.add_note("an event over 256 KB: the usage event was left in the reply")

    def upstream_lost(self, error: Exception | None) -> None:
        """The engine's connection ended while this exchange was on it."""
        now = self._now_ns()
        exchange = self.exchange
        self.connection = None
        if self._head is not None and self._head.length is None and not self._head.chunked and error is None:
            self._note_cut()
            self._end("ok", now)
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
            if paused:
                self.connection.transport.pause_reading()
            else:
                self.connection.transport.resume_reading()

    def client_left(self, now: int) -> None:
        """The client is gone: so is its request at the engine."""
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
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.pool.discard(connection)
        self._end(outcome, now, why)

    def _broken(self, why: str, now: int) -> None:
        """The engine's bytes are no HTTP we can trust."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.pool.discard(connection)
        self._fail(502, "error", why, now)

    def _fail(self, status: int, outcome: Outcome, why: str, now: int | None = None) -> None:
        self._opening = None
        self._end(outcome, self._now_ns() if now is None else now, why)
        if self.replied:
            if self._cut is not None:
                self.front.write(self._cut.flush())
            self.front.close()
        else:
            self.front.refuse(Refusal(status, outcome, why))

    def _end(self, outcome: Outcome, now: int, error: str | None = None) -> None:
        if self._done:
            return
        self._done = True
        if self.pool is not None:
            self.pool.busy -= 1
        self.exchange.end(outcome, now, error)
        self._hub.leave(self)
        self._hub.settle(self.exchange, self.understand)


def _framing_line(head: RequestHead, size: int, streamed: bool) -> bytes:
    """The request's framing towards the engine: as it came, except that a whole chunked body gets its length."""
    if streamed and head.chunked:
        return b"Transfer-Encoding: chunked\r\n"
    length = head.length if streamed else size
    if length == 0 and head.method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        return b""
    return b"Content-Length: %d\r\n" % length


def _line(name: str, value: str) -> bytes:
    return name.encode() + b": " + header_value(value) + b"\r\n"
