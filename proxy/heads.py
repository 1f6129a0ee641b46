"""Heads of requests and replies: what is refused, what is stripped, what goes on. Pure functions over header pairs.

Lives here: framing rules against smuggling beyond what llhttp already refuses, hop-by-hop stripping, the proxy's key,
the request id, and the text of our own error replies. Header values are never logged and never part of an error text.
May not know: sockets, clocks, bodies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hmac import compare_digest
from itertools import count
from secrets import token_hex
from urllib.parse import quote

import orjson

from proxy.config import ProxyConfig
from proxy.foreign import TAG_HEADERS
from proxy.framing import FramingError
from proxy.routes import allowed, api_of
from traces import tags

Pairs = list[tuple[bytes, bytes]]

_HOP = (
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    "upgrade http2-settings expect"
)
_PASSED, _DROPPED, _TAKEN, _NOTED = 0, 1, 2, 3
_REQUEST: dict[bytes, int] = {
    **{name.encode(): _NOTED for name in TAG_HEADERS},
    **{name.encode(): _DROPPED for name in _HOP.split()},
    **{name.encode(): _TAKEN for name in tags.OWN_HEADERS},
    **dict.fromkeys(
        [b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"x-request-id"],
        _TAKEN,
    ),
    **dict.fromkeys([b"authorization", b"x-api-key"], _TAKEN),
}
_SECRET = frozenset({b"authorization", b"x-api-key", b"cookie"})
_SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key"})
_REPLY_DROPPED = frozenset(n.encode() for n in _HOP.split() if n not in ("transfer-encoding", "trailer"))
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n\x00]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*\Z")
_COUNTER = count()
_ID_PREFIX = token_hex(6)
REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    417: "Expectation Failed",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is answered by the proxy itself: status, a code for programs, a sentence for people."""

    status: int
    code: str
    message: str


@dataclass(slots=True)
class RequestHead:
    """A request head as the proxy understood it. `lines` are the header lines that go on to the engine."""

    method: str
    target: bytes
    path: str
    api: str | None
    keep_alive: bool
    http10: bool
    length: int
    chunked: bool
    expect: bool
    upgrade: bytes
    request_id: str
    lines: list[bytes]
    tags: dict[str, str] = field(default_factory=dict)
    """header fields that may carry a tag, lower-case names"""


def new_request_id() -> str:
    """An X-Request-Id of our own: a random prefix per process and a counter."""
    return f"jg-{_ID_PREFIX}-{next(_COUNTER):x}"


MAX_CACHED, MAX_CACHED_LINE = 4096, 128
_PAIRS: dict[tuple[bytes, bytes], tuple[bytes, bytes, int]] = {}
"""request header fields met before -> lower-case name, line, what to do with it; SDKs repeat most of theirs"""


def _request_field(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes, int]:
    name, value = pair
    low = name.lower()
    known = (low, name + b": " + value + b"\r\n", _REQUEST.get(low, _PASSED))
    if len(name) + len(value) <= MAX_CACHED_LINE and low not in _SECRET:
        if len(_PAIRS) >= MAX_CACHED:
            _PAIRS.clear()
        _PAIRS[pair] = known
    return known


def read_request(
    method: bytes,
    target: bytes,
    version: str,
    headers: Pairs,
    keep_alive: bool,
    config: ProxyConfig,
    extra: frozenset[str],
) -> RequestHead | Refusal:
    """Judge one request head. `extra` are the paths the operator allowed by name."""
    lines: list[bytes] = []
    seen: dict[bytes, bytes] = {}
    size = len(target)
    for pair in headers:
        low, line, noted = _PAIRS.get(pair) or _request_field(pair)
        size += len(line)
        if not noted:
            lines.append(line)
            continue
        if noted == _DROPPED:
            continue
        if low in seen and low in _SINGLE:
            return Refusal(400, "duplicate_header", f"{low.decode()} is given twice")
        seen[low] = pair[1]
        if noted == _NOTED:
            lines.append(line)
    refusal = _check_head(target, version, seen, size, config)
    if refusal is not None:
        return refusal
    path = target.split(b"?", 1)[0].decode("ascii", "replace")
    lines += _credentials(seen, config)
    named = seen.get(b"connection")
    if named is not None and named.lower() not in (b"keep-alive", b"close"):
        lines = _without_named(lines, named)
    if not allowed(path, extra, config.engine):
        return Refusal(404, "path_not_allowed", f"{path[:200]} is not passed on by this proxy")
    length = int(seen.get(b"content-length", b"0"))
    if length > config.max_body:
        return Refusal(413, "body_too_large", f"the body has {length} bytes, the limit is {config.max_body}")
    request_id = tags.clean(seen.get(b"x-request-id", b"").decode("latin-1")) or new_request_id()
    return RequestHead(
        method=method.decode(),
        target=target,
        path=path,
        api=api_of(path) if method == b"POST" else None,
        keep_alive=keep_alive,
        http10=version == "1.0",
        length=length,
        chunked=b"transfer-encoding" in seen,
        expect=b"expect" in seen,
        upgrade=seen.get(b"upgrade", b"").lower(),
        request_id=request_id,
        lines=lines,
        tags={n.decode(): v.decode("latin-1") for n, v in seen.items() if _REQUEST[n] == _NOTED or n in _OWN},
    )


_OWN = frozenset(n.encode() for n in tags.OWN_HEADERS)


def _check_head(
    target: bytes, version: str, seen: dict[bytes, bytes], size: int, config: ProxyConfig
) -> Refusal | None:
    if size > config.max_head:
        return Refusal(431, "head_too_large", f"the head is over {config.max_head} bytes")
    if version not in ("1.0", "1.1"):
        return Refusal(400, "bad_version", "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if not target.startswith(b"/"):
        return Refusal(400, "bad_target", "the request target must be a path; the upstream is fixed by configuration")
    if version == "1.1" and b"host" not in seen:
        return Refusal(400, "no_host", "HTTP/1.1 needs a Host header")
    coding = seen.get(b"transfer-encoding")
    if coding is not None:
        if b"content-length" in seen or version == "1.0":
            return Refusal(400, "bad_framing", "Transfer-Encoding does not go with Content-Length or HTTP/1.0")
        if coding.strip().lower() != b"chunked":
            return Refusal(501, "bad_framing", "the only transfer coding understood here is chunked")
    length = seen.get(b"content-length")
    if length is not None and not _DIGITS.match(length):
        return Refusal(400, "bad_framing", "Content-Length is not a number")
    expect = seen.get(b"expect")
    if expect is not None and expect.strip().lower() != b"100-continue":
        return Refusal(417, "bad_expectation", "the only expectation understood here is 100-continue")
    return _check_key(seen, config)


def _check_key(seen: dict[bytes, bytes], config: ProxyConfig) -> Refusal | None:
    if config.key is None or _key_header(seen, config.key) is not None:
        return None
    return Refusal(401, "bad_key", "this proxy needs its key, as Authorization: Bearer or x-api-key")


def _key_header(seen: dict[bytes, bytes], key: str) -> bytes | None:
    """Which header carried the proxy's key. Both are compared, in constant time."""
    wanted = key.encode()
    bearer = seen.get(b"authorization", b"")
    given = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else b""
    by_bearer = compare_digest(given, wanted)
    by_header = compare_digest(seen.get(b"x-api-key", b""), wanted)
    if by_bearer:
        return b"authorization"
    return b"x-api-key" if by_header else None


def _credentials(seen: dict[bytes, bytes], config: ProxyConfig) -> list[bytes]:
    """What the engine gets to see: the client's own credentials, never the proxy's key; or the configured one."""
    if config.upstream_key is not None:
        return [b"Authorization: Bearer " + config.upstream_key.encode() + b"\r\n"]
    used = _key_header(seen, config.key) if config.key is not None else None
    return [
        shown + b": " + seen[name] + b"\r\n"
        for name, shown in ((b"authorization", b"Authorization"), (b"x-api-key", b"X-Api-Key"))
        if name in seen and name != used and not _is_key(seen[name], config.key)
    ]


def _is_key(value: bytes, key: str | None) -> bool:
    return key is not None and key.encode() in value


def _without_named(lines: list[bytes], connection: bytes) -> list[bytes]:
    """Drop the headers that Connection names: they are meant for this hop only."""
    named = {token.strip().lower() for token in connection.split(b",")}
    return [line for line in lines if line.partition(b":")[0].lower() not in named]


def upstream_head(head: RequestHead, host: str, prefix: str, framing: bytes) -> bytes:
    """The head that goes to the engine. `framing` is its Content-Length or Transfer-Encoding line, or empty."""
    return b"".join(
        [
            head.method.encode(),
            b" ",
            prefix.encode(),
            head.target,
            b" HTTP/1.1\r\nHost: ",
            host.encode(),
            b"\r\n",
            *head.lines,
            b"X-Request-Id: ",
            head.request_id.encode("latin-1", "replace"),
            b"\r\n",
            framing,
            b"\r\n",
        ]
    )


@dataclass(slots=True)
class ReplyHead:
    """A reply head as the proxy understood it. `lines` are the header lines that go on to the client."""

    status: int
    start: bytes
    lines: list[bytes]
    length: int | None
    chunked: bool
    keep_alive: bool
    event_stream: bool
    encoded: bool
    request_id: bool


def read_reply(raw: bytes) -> ReplyHead:
    """Parse a reply head (without its final blank line). FramingError when it cannot be trusted."""
    first, *rest = raw.split(b"\r\n")
    match = _STATUS_LINE.match(first)
    if match is None:
        raise FramingError("the reply does not start with an HTTP/1.x status line")
    lines: list[bytes] = []
    seen: dict[bytes, bytes] = {}
    for line in rest:
        name, value, kept = _LINES.get(line) or _reply_line(line)
        if name in _FRAMING and name in seen:
            raise FramingError(f"the reply gives {name.decode()} twice")
        seen[name] = value
        if kept is not None:
            lines.append(kept)
    length, chunked = _reply_framing(seen)
    connection = seen.get(b"connection", b"").lower()
    if connection not in (b"", b"keep-alive", b"close"):
        lines = _without_named(lines, connection)
    return ReplyHead(
        status=int(match[2]),
        start=b"HTTP/1.1" + first[8:] + b"\r\n",
        lines=lines,
        length=length,
        chunked=chunked,
        keep_alive=b"close" not in connection if match[1] == b"1" else connection == b"keep-alive",
        event_stream=seen.get(b"content-type", b"").lower().startswith(b"text/event-stream"),
        encoded=seen.get(b"content-encoding", b"identity").lower() != b"identity",
        request_id=b"x-request-id" in seen,
    )


_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_LINES: dict[bytes, tuple[bytes, bytes, bytes | None]] = {}
"""reply header lines met before -> name, value, the line to pass on; engines repeat most of theirs"""


def _reply_line(line: bytes) -> tuple[bytes, bytes, bytes | None]:
    parts = _FIELD.match(line)
    if parts is None:
        raise FramingError("a reply header line is malformed")
    name = parts[1].lower()
    known = (name, parts[2], None if name in _REPLY_DROPPED else line + b"\r\n")
    if len(line) <= MAX_CACHED_LINE:
        if len(_LINES) >= MAX_CACHED:
            _LINES.clear()
        _LINES[line] = known
    return known


def _reply_framing(seen: dict[bytes, bytes]) -> tuple[int | None, bool]:
    length, coding = seen.get(b"content-length"), seen.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise FramingError("the reply has a transfer coding other than chunked")
    if coding is not None and length is not None:
        raise FramingError("the reply gives both Content-Length and Transfer-Encoding")
    if length is not None and not _DIGITS.match(length):
        raise FramingError("the reply's Content-Length is not a number")
    return (int(length) if length is not None else None), coding is not None


def header_value(value: str) -> bytes:
    """A tag as a header value: percent-encoded where it is not ASCII."""
    return value.encode() if value.isascii() else quote(value).encode()


def refusal_reply(refusal: Refusal, path: str, request_id: str | None, method: str = "POST") -> bytes:
    """Our own error, in the shape the client's SDK reads; the connection closes after it."""
    error = {"message": refusal.message, "type": "proxy_error", "param": None, "code": refusal.code}
    shape = {"type": "error", "error": error} if path.startswith("/v1/messages") else {"error": error}
    body = orjson.dumps(shape)
    reason = REASONS.get(refusal.status, "Error")
    named = f"X-Request-Id: {request_id}\r\n" if request_id and request_id.isascii() else ""
    retry = "Retry-After: 1\r\n" if refusal.status == 503 else ""
    head = (
        f"HTTP/1.1 {refusal.status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{named}{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
