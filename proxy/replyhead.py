"""Heads of replies: which can be trusted, what is stripped, what goes on to the client. Pure functions over bytes.

An engine repeats most of its head: a head met before, byte for byte, is not parsed again; of others, lines met before
are not. May not know: sockets, clocks, bodies, requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from proxy.framing import FramingError

Line = tuple[bytes, bytes, bytes | None]
"""name in lower case, value, the line to pass on (None: not passed on)"""

DIGITS: Final = re.compile(rb"[0-9]{1,18}\Z")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n\x00]*)?\Z")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*\Z")
_DROPPED: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te upgrade http2-settings "
    b"expect".split()
)
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
MAX_LINES: Final = 4096
MAX_LINE: Final = 128
MAX_HEADS: Final = 256
MAX_HEAD: Final = 1024
_LINES: Final[dict[bytes, Line]] = {}
_HEADS: Final[dict[bytes, ReplyHead]] = {}


@dataclass(slots=True)
class ReplyHead:
    """A reply head as the proxy understood it; shared between replies with the same head, so never changed."""

    status: int
    start: bytes
    lines: list[bytes]
    """header lines that go on to the client"""
    length: int | None
    chunked: bool
    keep_alive: bool
    event_stream: bool
    encoded: bool
    request_id: bool
    passed: bytes
    """start and lines in one piece"""


def read_reply(raw: bytes) -> ReplyHead:
    """Parse a reply head (without its final blank line). FramingError when it cannot be trusted."""
    head = _HEADS.get(raw)
    if head is None:
        head = _read(raw)
        if len(raw) <= MAX_HEAD and b"cookie" not in raw.lower():
            if len(_HEADS) >= MAX_HEADS:
                _HEADS.clear()
            _HEADS[raw] = head
    return head


def _read(raw: bytes) -> ReplyHead:
    first, *rest = raw.split(b"\r\n")
    match = _STATUS_LINE.match(first)
    if match is None:
        raise FramingError("the reply does not start with an HTTP/1.x status line")
    lines: list[bytes] = []
    seen: dict[bytes, bytes] = {}
    for line in rest:
        name, value, kept = _LINES.get(line) or _line(line)
        if name in _FRAMING and name in seen:
            raise FramingError(f"the reply gives {name.decode()} twice")
        seen[name] = value
        if kept is not None:
            lines.append(kept)
    length, chunked = _framing(seen)
    connection = seen.get(b"connection", b"").lower()
    if connection not in (b"", b"keep-alive", b"close"):
        lines = without_named(lines, connection)
    start = b"HTTP/1.1" + first[8:] + b"\r\n"
    return ReplyHead(
        status=int(match[2]),
        start=start,
        lines=lines,
        length=length,
        chunked=chunked,
        keep_alive=b"close" not in connection if match[1] == b"1" else connection == b"keep-alive",
        event_stream=seen.get(b"content-type", b"").lower().startswith(b"text/event-stream"),
        encoded=seen.get(b"content-encoding", b"identity").lower() != b"identity",
        request_id=b"x-request-id" in seen,
        passed=start + b"".join(lines),
    )


def _line(line: bytes) -> Line:
    parts = _FIELD.match(line)
    if parts is None:
        raise FramingError("a reply header line is malformed")
    name = parts[1].lower()
    known = (name, parts[2], None if name in _DROPPED else line + b"\r\n")
    if len(line) <= MAX_LINE:
        if len(_LINES) >= MAX_LINES:
            _LINES.clear()
        _LINES[line] = known
    return known


def _framing(seen: dict[bytes, bytes]) -> tuple[int | None, bool]:
    length, coding = seen.get(b"content-length"), seen.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise FramingError("the reply has a transfer coding other than chunked")
    if coding is not None and length is not None:
        raise FramingError("the reply gives both Content-Length and Transfer-Encoding")
    if length is not None and not DIGITS.match(length):
        raise FramingError("the reply's Content-Length is not a number")
    return (int(length) if length is not None else None), coding is not None


def without_named(lines: list[bytes], connection: bytes) -> list[bytes]:
    """Drop the headers that Connection names: they are meant for this hop only."""
    named = {token.strip().lower() for token in connection.split(b",")}
    return [line for line in lines if line.partition(b":")[0].lower() not in named]
