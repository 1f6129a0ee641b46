"""A reply as it is walked: where its head ends, how its body is framed, what of it goes to the client. Pure.

Lives here: the choice of the walker, and the state between reads. `take_head`, then `walk` for every read; both raise
FramingError where the engine's bytes are no HTTP that can be trusted. May not know: sockets, clocks, records.
"""

from __future__ import annotations

from proxy.framing import Chunked, Framing, FramingError, UntilClose, response_framing
from proxy.heads import RequestHead, header_value
from proxy.replyhead import ReplyHead, read_reply
from proxy.splice import UsageCut
from traces.tags import NODE, WORKFLOW, Tag

MAX_REPLY_HEAD = 64 << 10
_END = b"\r\n\r\n"
_IN_USAGE = b'"usage"'
_BODILESS = frozenset({*range(100, 200), 204, 304})
_WORKFLOW, _NODE = WORKFLOW.encode() + b": ", NODE.encode() + b": "


def whole_reply(request: RequestHead, data: bytes) -> tuple[ReplyHead, bytes] | None:
    """Head and body of a reply that this read holds from end to end and no byte more; None where
    only a walk can tell. FramingError as from Reply."""
    raw, end, body = data.partition(_END)
    if not end:
        return None
    head = read_reply(raw)
    if head.length != len(body) or head.event_stream or request.method == "HEAD" or head.status in _BODILESS:
        return None
    return head, body


class Reply:
    """The walk over one reply."""

    __slots__ = (
        "_buffer",
        "_cut",
        "_framing",
        "_request",
        "_spliced",
        "closes",
        "done",
        "head",
        "note",
        "unchunk",
        "used",
    )

    def __init__(self, request: RequestHead, spliced: bool) -> None:
        self._request = request
        self._spliced = spliced
        self._buffer = b""
        self._framing: Framing | None = None
        self._cut: UsageCut | None = None
        self.head: ReplyHead | None = None
        self.unchunk = False
        """the client speaks HTTP/1.0: its body goes without chunks"""
        self.closes = False
        """only the end of a connection ends this body"""
        self.done = False
        self.used = 0
        """bytes of the last read that belonged to the body"""
        self.note: str | None = None

    def take_head(self, data: bytes) -> bytes | None:
        """What is left of the read behind the head; None while the head is not whole."""
        if self._buffer:
            data = self._buffer + data
        while True:  # 1xx answers are for this hop
            at = data.find(_END)
            if at < 0:
                if len(data) > MAX_REPLY_HEAD:
                    raise FramingError("the reply head is over 64 KB")
                self._buffer = data
                return None
            head = read_reply(data[:at])
            data = data[at + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                raise FramingError("the engine switched protocols unasked")
        self._buffer = b""
        self.head = head
        self._choose(head)
        return data

    def found(self) -> ReplyHead:
        """The head, once `take_head` gave what is behind it."""
        if self.head is None:
            raise RuntimeError("the head of the reply is not whole yet")
        return self.head

    def _choose(self, head: ReplyHead) -> None:
        request = self._request
        framing = self._framing = response_framing(request.method, head.status, head.length, head.chunked)
        if self._spliced and head.event_stream:
            if head.chunked and not head.encoded:
                self._framing = self._cut = UsageCut()
            else:
                self.note = "reply is not a plain chunked stream: its usage event stays in it"
        self.unchunk = request.http10 and head.chunked
        self.closes = isinstance(framing, UntilClose)

    @property
    def at_border(self) -> bool:
        """Whether whole chunks may pass unseen now: a stream that goes on as it comes, between two of them."""
        framing = self._framing
        return isinstance(framing, UsageCut | Chunked) and framing.at_border and not self.unchunk

    @property
    def special(self) -> bytes | None:
        """Bytes that a chunk which passes unseen must not have in it."""
        return _IN_USAGE if self._cut is not None else None

    def walk(self, data: bytes) -> tuple[bytes, bytes]:
        """One read: the bytes for the client, and the payload in it (without chunk framing)."""
        framing = self._framing
        assert framing is not None
        payload = framing.feed(data)
        used = self.used = framing.used
        self.done = framing.done
        if self._cut is not None:
            return self._cut.out, payload
        if self.unchunk:
            return payload, payload
        return data if used == len(data) else data[:used], payload

    def end(self) -> bytes:
        """The peer is gone: what was held back, which belongs to the client."""
        return self._cut.flush() if self._cut is not None else b""

    @property
    def left_in(self) -> bool:
        """An event grew too long to be held: the usage event was not taken out."""
        return self._cut is not None and self._cut.gave_up


def client_head(head: ReplyHead, request: RequestHead, tag: Tag | None, *, unchunk: bool, closes: bool) -> bytes:
    """The head for the client: the engine's, the request's tag and id, and whether the connection goes on."""
    out = head.passed
    if unchunk:
        lines = [line for line in head.lines if not line.lower().startswith(b"transfer-encoding:")]
        out = head.start + b"".join(lines)
    own = request.request_id.encode() if request.request_id.isascii() else header_value(request.request_id)
    if tag is not None:
        workflow, node = tag[:2]
        if workflow is not None:
            out += _WORKFLOW + (workflow.encode() if workflow.isascii() else header_value(workflow)) + b"\r\n"
        out += _NODE + (own if node is None else header_value(node)) + b"\r\n"
    if not head.request_id:
        out += b"x-request-id: %b\r\n" % own
    if closes:
        return out + b"Connection: close\r\n\r\n"
    return out + (b"Connection: keep-alive\r\n\r\n" if request.http10 else b"\r\n")
