"""A reply as it is walked: where its head ends, how its body is framed, what of it goes to the client. Pure.

Lives here: the choice of the walker, and the state between reads. `read_head`, then `walk` for every read; both raise
FramingError where the engine's bytes are no HTTP that can be trusted. May not know: sockets, clocks, records.
"""

from __future__ import annotations

from typing import Final

from proxy.framing import Framing, FramingError, UntilClose, response_framing
from proxy.heads import RequestHead, header_value
from proxy.replyhead import ReplyHead, read_reply
from proxy.splice import UsageCut
from traces.tags import NODE, WORKFLOW, Tag

MAX_REPLY_HEAD: Final = 64 << 10
_END: Final = b"\r\n\r\n"
_IN_USAGE: Final = b'"usage"'
_BODILESS: Final = frozenset({*range(100, 200), 204, 304})
_WORKFLOW: Final = WORKFLOW.encode() + b": "
_NODE: Final = NODE.encode() + b": "


def read_head(data: bytes) -> tuple[ReplyHead | None, bytes]:
    """The final head at the start of a reply, and what is behind it; None while it is not whole, with what has to come
    again in front of the next read. FramingError when it cannot be trusted."""
    while True:  # 1xx answers are for this hop
        raw, end, rest = data.partition(_END)
        if not end:
            if len(data) > MAX_REPLY_HEAD:
                raise FramingError("the reply head is over 64 KB")
            return None, data
        head = read_reply(raw)
        if head.status >= 200:
            return head, rest
        if head.status == 101:
            raise FramingError("the engine switched protocols unasked")
        data = rest


def is_whole(head: ReplyHead, request: RequestHead, rest: bytes) -> bool:
    """Whether what is behind the head is its body from end to end and no byte more, so that no walk is needed."""
    return (
        head.length == len(rest) and not head.event_stream and request.method != "HEAD" and head.status not in _BODILESS
    )


class Reply:
    """The walk over the body of one reply."""

    __slots__ = ("_cut", "_framing", "closes", "done", "head", "note", "unchunk", "used")

    def __init__(self, head: ReplyHead, request: RequestHead, spliced: bool) -> None:
        self.head = head
        framing: Framing = response_framing(request.method, head.status, head.length, head.chunked)
        self._framing = framing
        self._cut: UsageCut | None = None
        self.note: str | None = None
        if spliced and head.event_stream:
            if head.chunked and not head.encoded:
                self._framing = self._cut = UsageCut()
            else:
                self.note = "reply is not a plain chunked stream: its usage event stays in it"
        self.unchunk = request.http10 and head.chunked
        """the client speaks HTTP/1.0: its body goes without chunks"""
        self.closes = isinstance(framing, UntilClose)
        """only the end of a connection ends this body"""
        self.done = framing.done
        self.used = 0
        """bytes of the last read that belonged to the body"""

    @property
    def at_border(self) -> bool:
        """Whether whole chunks may pass unseen now: a stream that goes on as it comes, between two of them."""
        return self._framing.at_border and not self.unchunk

    @property
    def special(self) -> bytes | None:
        """Bytes that a chunk which passes unseen must not have in it."""
        return _IN_USAGE if self._cut is not None else None

    def walk(self, data: bytes) -> tuple[bytes, bytes]:
        """One read: the bytes for the client, and the payload in it (without chunk framing)."""
        if not data:  # the head came alone
            return data, data
        framing = self._framing
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
