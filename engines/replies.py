"""The replies of one HTTP/1.1 connection out of its reads: head, body pieces, end, and what is wrong. Pure.

Framing is httptools'. An engine repeats its reply head byte for byte for up to a second, so a head seen before is taken
from memory and only the body is walked. May not know: sockets, time, who asks, what a reply means.
"""

from __future__ import annotations

from typing import NamedTuple

import httptools

HEAD_LIMIT = 65_536
"""bytes of one reply head; past it the reply is lost"""
_HEADS_LIMIT = 64
"""reply heads kept"""
_HEAD_END = b"\r\n\r\n"


class Head(NamedTuple):
    """A reply head, parsed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """names and values as sent; shared between replies, not to be changed"""
    keep: bool
    """the connection may carry another request"""
    framed: bool
    """it says where the body ends; else the connection's end does"""


class ReplyParser:
    """`start` before each request, `feed` each read; the rest is what it found."""

    __slots__ = (
        "_known", "_of_known", "_ours", "_parser", "_seen", "_size", "_whole", "complete", "extra", "head", "on_body",
        "pieces", "why",
    )  # fmt: skip

    def __init__(self, known: dict[bytes, Head]) -> None:
        """known: heads by their bytes, shared by the connections to one engine; kept small."""
        self.head: Head | None = None
        """of the present reply, once it is whole; interim replies (1xx) leave no trace"""
        self.pieces: list[bytes] = []
        """body of the last read, without its framing; the caller clears it"""
        self.complete = True
        """the present reply is"""
        self.extra = False
        """something came that belongs to no reply"""
        self.why: str | None = None
        """the bytes are no HTTP/1.1 reply, in words"""
        self.on_body = self.pieces.append
        """httptools puts body pieces straight into the list: no Python frame per chunk"""
        self._known = known
        self._whole = httptools.HttpResponseParser(self)
        self._of_known: httptools.HttpResponseParser | None = None
        """for replies whose head is known by its bytes"""
        self._parser = self._whole
        self._seen: list[tuple[bytes, bytes]] = []
        """headers so far"""
        self._size = 0
        """bytes of the head so far"""
        self._ours = 0
        """pieces of this read that belong to the reply, once it is complete"""

    def start(self) -> None:
        """A request goes out: what comes now is its reply."""
        self.head = None
        self.complete = False
        self._size = 0

    def feed(self, data: bytes) -> bool:
        """One read of a reply that is not complete yet; whether it is now."""
        if self.head is None:
            cut = 0 if self._size else data.find(_HEAD_END) + 4
            known = self._known.get(data[:cut])
            if known is None:
                self._begin(data, cut)
                return self.complete
            self.head = known
            self._parser = self._of_known or self._for_known()
        self._walk(data)
        return self.complete

    def _walk(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._trouble(error)
        if self.complete and len(self.pieces) > self._ours:
            del self.pieces[self._ours :]
            self.extra = True

    def _begin(self, data: bytes, cut: int) -> None:
        """A read that begins in the head."""
        self._parser = self._whole
        self._size += len(data)
        self._walk(data)
        head = self.head
        if head is not None:
            if cut > 4 and data[9:12] == b"200" and self._plain(head):  # not the head of an interim reply before it
                self._learn(data[:cut], head)
        elif self._size > HEAD_LIMIT:
            self.why = f"the reply head is over {HEAD_LIMIT} bytes"

    def _plain(self, head: Head) -> bool:
        """A reply whose head decides nothing but what stands in it: worth remembering."""
        good = head.status == 200 and head.framed and self.why is None
        return good and not any(name.lower() == b"upgrade" for name, _ in head.headers)

    def _learn(self, raw: bytes, head: Head) -> None:
        if len(self._known) >= _HEADS_LIMIT:
            self._known.clear()
        self._known[raw] = head

    def _for_known(self) -> httptools.HttpResponseParser:
        self._of_known = httptools.HttpResponseParser(_BodyOnly(self))
        return self._of_known

    def _trouble(self, error: httptools.HttpParserError) -> None:
        """Not HTTP: the reply is lost, or it is complete and what follows it is surplus."""
        if self.complete:
            self.extra = True
        elif self.why is None:
            self.why = f"the reply is not valid HTTP/1.1 ({error})"

    # ------------------------------------------------------------------ httptools' side (collects, never calls out)

    def on_message_begin(self) -> None:
        if self.complete:
            self.extra = True
        elif self.head is None:
            self._seen = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self._seen.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._whole.get_status_code()
        if status == 101:
            self.why = "the reply is not valid HTTP/1.1 (protocols switched unasked)"
        elif status >= 200:
            framed = status in (204, 304) or any(
                name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._seen
            )
            self.head = Head(status, self._seen, self._whole.should_keep_alive(), framed)

    def on_message_complete(self) -> None:
        if self.head is not None and not self.complete:
            self.complete = True
            self._ours = len(self.pieces)


class _BodyOnly:
    """httptools' view of a reply whose head is known: nothing is called for its lines."""

    def __init__(self, parser: ReplyParser) -> None:
        self.on_body = parser.on_body
        self.on_message_begin = parser.on_message_begin
        self.on_message_complete = parser.on_message_complete
