"""Where a reply's body ends: walkers over raw HTTP/1.1 body bytes that never change a byte.

`feed(data)` takes one read and returns the payload in it (what the body says, without chunk framing). Afterwards `done`
tells whether the body is complete and `used` how many bytes of that read belonged to it. The raw bytes go to the client
as they came; a walker only looks. Anything off the grammar raises FramingError: the connection cannot be trusted after.
May not know: sockets, SSE, JSON.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n\x00]*)?\r\n")
MAX_SIZE_LINE: Final = 4096
MAX_TRAILERS: Final = 16_384
CRLF: Final = b"\r\n"
EVENT_CHUNK_END: Final = b"\n\n\r\n"
"""how a chunk ends that ends with a server-sent event"""
MAX_SMALL_CHUNK: Final = 1024


_SIZE_LINES: Final = [b""] * (len(b"%x" % MAX_SMALL_CHUNK) + 5 + MAX_SMALL_CHUNK)
"""bytes of a whole chunk on the wire -> the size line it begins with in plain hexadecimal; empty: there is none"""
for _size in range(1, MAX_SMALL_CHUNK + 1):
    _SIZE_LINES[len(b"%x" % _size) + 4 + _size] = b"%x\r\n" % _size


def payload_at(read: bytes) -> int:
    """Where the payload begins in a read that is exactly one small chunk, as `Chunked` finds too, provided that CRLF
    ends it, which is not looked at; 0 for any other, and where the size line says more than the size."""
    size = len(read)
    if size >= len(_SIZE_LINES):
        return 0
    line = _SIZE_LINES[size]
    at = len(line)
    return at if read[:at] == line or read[:at].lower() == line else 0


class FramingError(Exception):
    """The peer broke HTTP/1.1 body framing; the text says how."""


class Framing(Protocol):
    """What the relay needs of a body."""

    done: bool
    used: int
    """bytes of the last read that belonged to this body"""

    @property
    def at_border(self) -> bool:
        """The next byte begins an HTTP chunk."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Walk one read; the payload in it."""
        ...


class NoBody:
    """HEAD, 204, 304: complete before the first byte."""

    at_border = False

    def __init__(self) -> None:
        self.done = True
        self.used = 0

    def feed(self, data: bytes) -> bytes:
        """Nothing belongs to it."""
        return b""


class Length:
    """Content-Length: a countdown."""

    at_border = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.used = 0

    def feed(self, data: bytes) -> bytes:
        """Count down; the read as it is, cut at the end of the body."""
        size = len(data)
        if size < self._left:
            self._left -= size
            self.used = size
            return data
        self.used = self._left
        self._left = 0
        self.done = True
        return data if self.used == size else data[: self.used]


class UntilClose:
    """Neither length nor chunks: the body is what comes until the peer closes."""

    at_border = False

    def __init__(self) -> None:
        self.done = False
        self.used = 0

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        self.used = len(data)
        return data


class Chunked:
    """Transfer-Encoding: chunked, walked without copying more than the payload."""

    def __init__(self) -> None:
        self.done = False
        self.used = 0
        self._left = 0  # payload bytes still due in the open chunk, plus 2 for its CRLF; 0 between chunks
        self._carry = b""  # start of a size line or of the trailers, cut by a read
        self._trailers = False

    @property
    def at_border(self) -> bool:
        """The next byte begins a chunk."""
        return not (self._left or self._carry or self._trailers or self.done)

    def feed(self, data: bytes) -> bytes:
        """Walk one read; the payload bytes in it."""
        size = len(data)
        self.used = size
        if self._left == 0 and not self._carry and not self._trailers:
            # the usual read of a token stream is exactly one whole chunk
            match = CHUNK_SIZE.match(data)
            if match is not None:
                start = match.end()
                length = int(match[1], 16)
                if length and start + length + 2 == size and data.endswith(CRLF):
                    return data[start:-2]
        return self._walk(data)

    def _walk(self, data: bytes) -> bytes:
        carried = len(self._carry)
        buffer = self._carry + data if carried else data
        self._carry = b""
        at, end = 0, len(buffer)
        pieces: list[bytes] = []
        while at < end and not self.done:
            if self._trailers:
                at = self._end_trailers(buffer, at)
            elif self._left:
                at = self._take(buffer, at, pieces)
            else:
                at = self._size(buffer, at, pieces)
        if self.done:
            self.used = at - carried
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _size(self, buffer: bytes, at: int, pieces: list[bytes]) -> int:
        """A size line, and at once what it says where the buffer holds all of it."""
        match = CHUNK_SIZE.match(buffer, at)
        if match is None:
            rest = buffer[at:]
            if CRLF in rest or len(rest) > MAX_SIZE_LINE:
                raise FramingError(f"bad chunk size line {rest[:32]!r}")
            self._carry = rest
            return len(buffer)
        length, start = int(match[1], 16), match.end()
        if not length:
            self._trailers = True
        elif buffer.startswith(CRLF, start + length):
            pieces.append(buffer[start : start + length])
            return start + length + 2
        else:
            self._left = length + 2
        return start

    def _take(self, buffer: bytes, at: int, pieces: list[bytes]) -> int:
        """Payload, then the CRLF behind it (which a read may cut in two)."""
        size = len(buffer)
        if self._left > 2:
            stop = min(size, at + self._left - 2)
            pieces.append(buffer[at:stop])
            self._left -= stop - at
            at = stop
        while self._left in (1, 2) and at < size:
            if buffer[at] != CRLF[2 - self._left]:
                raise FramingError(f"chunk is longer than its size line says, near {buffer[at : at + 16]!r}")
            self._left -= 1
            at += 1
        return at

    def _end_trailers(self, buffer: bytes, at: int) -> int:
        end = trailers_end(buffer, at)
        if end is None:
            self._carry = buffer[at:]
            return len(buffer)
        self.done = True
        return end


def trailers_end(buffer: bytes, at: int) -> int | None:
    """Where the message ends, `at` being just behind the last-chunk's size line; None while that is not known."""
    if buffer.startswith(CRLF, at):
        return at + 2
    found = buffer.find(b"\r\n\r\n", at)
    if found >= 0:
        return found + 4
    if len(buffer) - at > MAX_TRAILERS:
        raise FramingError("trailers are longer than 16 KB")
    return None


def response_framing(method: str, status: int, length: int | None, chunked: bool) -> Framing:
    """The walker for a reply, by RFC 9112 section 6.3."""
    if method == "HEAD" or status in (204, 304) or status < 200:
        return NoBody()
    if chunked:
        return Chunked()
    return Length(length) if length is not None else UntilClose()
