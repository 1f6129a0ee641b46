"""Request heads: what is refused, what is stripped, what goes on. Pure functions over header pairs.

Lives here: framing rules against smuggling beyond what llhttp already refuses, hop-by-hop stripping, the proxy's key,
the request id, the head for the engine. Header values are never logged and never part of an error text.
May not know: sockets, clocks, bodies, which heads were met before (knownheads).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hmac import compare_digest
from itertools import count
from secrets import token_hex
from typing import Final
from urllib.parse import quote

from proxy.config import ProxyConfig
from proxy.foreign import TAG_HEADERS
from proxy.refusal import Refusal
from proxy.replyhead import DIGITS, without_named
from proxy.routes import allowed, api_of
from traces import tags

Pairs = list[tuple[bytes, bytes]]

_HOP: Final = (
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    "upgrade http2-settings expect"
)
PASSED: Final = 0
DROPPED: Final = 1
TAKEN: Final = 2
NOTED: Final = 3
"""what happens to a header field: goes on; is left out; is read and left out; is read and goes on"""
KINDS: Final[dict[bytes, int]] = {
    **{name.encode(): NOTED for name in TAG_HEADERS},
    **{name.encode(): DROPPED for name in _HOP.split()},
    **{name.encode(): TAKEN for name in tags.OWN_HEADERS},
    **dict.fromkeys(
        [b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"x-request-id"],
        TAKEN,
    ),
    **dict.fromkeys([b"authorization", b"x-api-key"], TAKEN),
}
MAX_JOINED: Final = 16_384
"""bytes of a body that are copied to go out with their head in one write"""
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key"})
_CODINGS: Final = b"accept-encoding:"
_COUNTER: Final = count()
_ID: Final = f"jg-{token_hex(6)}-%x"
TAGGED: Final = frozenset(n.encode() for n in tags.OWN_HEADERS | TAG_HEADERS)
"""header fields that may carry a tag"""


@dataclass(slots=True)
class RequestHead:
    """A request head as the proxy understood it. `lines`: the header lines that go on to the engine, in one piece."""

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
    lines: bytes
    tags: dict[str, str] = field(default_factory=dict)
    """header fields that may carry a tag, lower-case names"""


def new_request_id() -> str:
    """An X-Request-Id of our own: a random prefix per process and a counter."""
    return _ID % next(_COUNTER)


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
    for name, value in headers:
        low = name.lower()
        line = field_line(name, value)
        noted = KINDS.get(low, PASSED)
        size += len(line)
        if not noted:
            lines.append(line)
            continue
        if noted == DROPPED:
            continue
        if low in seen and low in _SINGLE:
            return Refusal(400, "duplicate_header", f"{low.decode()} is given twice")
        seen[low] = value
        if noted == NOTED:
            lines.append(line)
    refusal = _check_head(target, version, seen, size, config)
    if refusal is not None:
        return refusal
    path = target.split(b"?", 1)[0].decode("ascii", "replace")
    lines += credentials(seen, config)
    named = seen.get(b"connection")
    if named is not None and named.lower() not in (b"keep-alive", b"close"):
        lines = without_named(lines, named)
    if not allowed(path, extra, config.engine):
        return Refusal(404, "path_not_allowed", f"{path[:200]} is not passed on by this proxy")
    length = int(seen.get(b"content-length", b"0"))
    if length > config.max_body:
        return Refusal(413, "body_too_large", f"the body has {length} bytes, the limit is {config.max_body}")
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
        request_id=tags.clean(seen.get(b"x-request-id", b"").decode("latin-1")) or new_request_id(),
        lines=b"".join(lines),
        tags={n.decode(): v.decode("latin-1") for n, v in seen.items() if n in TAGGED},
    )


def field_line(name: bytes, value: bytes) -> bytes:
    """A header field as it goes on."""
    return name + b": " + value + b"\r\n"


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
    if length is not None and not DIGITS.match(length):
        return Refusal(400, "bad_framing", "Content-Length is not a number")
    expect = seen.get(b"expect")
    if expect is not None and expect.strip().lower() != b"100-continue":
        return Refusal(417, "bad_expectation", "the only expectation understood here is 100-continue")
    return check_key(seen, config)


def check_key(seen: dict[bytes, bytes], config: ProxyConfig) -> Refusal | None:
    """The proxy's own key, where one is configured."""
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


def credentials(seen: dict[bytes, bytes], config: ProxyConfig) -> list[bytes]:
    """What the engine gets to see: the client's own credentials, never the proxy's key; or the configured one."""
    if config.upstream_key is not None:
        return [b"Authorization: Bearer " + config.upstream_key.encode() + b"\r\n"]
    if b"authorization" not in seen and b"x-api-key" not in seen:
        return []
    used = _key_header(seen, config.key) if config.key is not None else None
    return [
        shown + b": " + seen[name] + b"\r\n"
        for name, shown in ((b"authorization", b"Authorization"), (b"x-api-key", b"X-Api-Key"))
        if name in seen and name != used and not _is_key(seen[name], config.key)
    ]


def _is_key(value: bytes, key: str | None) -> bool:
    return key is not None and key.encode() in value


def upstream_head(head: RequestHead, host: str, prefix: str, framing: bytes, body: bytes = b"") -> bytes:
    """The head that goes to the engine, and what is to go in one piece with it. `framing`: its Content-Length or
    Transfer-Encoding line, or empty."""
    pieces = (
        head.method.encode(),
        b" ",
        prefix.encode(),
        head.target,
        b" HTTP/1.1\r\nHost: ",
        host.encode(),
        b"\r\n",
        head.lines,
        b"X-Request-Id: ",
        head.request_id.encode("latin-1", "replace"),
        b"\r\n",
        framing,
        b"\r\n",
        body,
    )
    return b"".join(pieces)


def plain_reply(lines: bytes) -> bytes:
    """The lines of a head with no wish for a compressed reply: of such a one no event could be taken out."""
    low, at, done = lines.lower(), -1, 0
    out = b""
    while (at := low.find(_CODINGS, at + 1)) >= 0:
        if at == 0 or low[at - 1] == 10:
            out += lines[done:at] + b"Accept-Encoding: identity"
            done = at = lines.index(b"\r\n", at)
    return out + lines[done:] if out else lines


def outgoing(
    head: RequestHead, host: str, prefix: str, body: list[bytes], *, streamed: bool, whole: bool
) -> list[bytes]:
    """A request as it goes to the engine, or its beginning; in one piece where it is short and whole."""
    size = len(body[0]) if len(body) == 1 else sum(map(len, body))
    if len(body) == 1 and size <= MAX_JOINED and not streamed:
        return [upstream_head(head, host, prefix, b"Content-Length: %d\r\n" % size, body[0])]
    first = upstream_head(head, host, prefix, framing_line(head, size, streamed))
    return [first, *(body_pieces(body, last=whole) if streamed and head.chunked else body)]


def framing_line(head: RequestHead, size: int, streamed: bool) -> bytes:
    """The request's framing towards the engine: as it came, except that a whole chunked body gets its length."""
    if size and not streamed:
        return b"Content-Length: %d\r\n" % size
    if streamed and head.chunked:
        return b"Transfer-Encoding: chunked\r\n"
    length = head.length if streamed else size
    if length == 0 and head.method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        return b""
    return b"Content-Length: %d\r\n" % length


def body_pieces(parts: list[bytes], *, last: bool) -> list[bytes]:
    """Pieces of a streamed body as chunks, the last-chunk behind them where the body ends."""
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part]
    return [*chunks, b"0\r\n\r\n"] if last else chunks


def header_value(value: str) -> bytes:
    """A tag as a header value: percent-encoded where it is not ASCII."""
    return value.encode() if value.isascii() else quote(value).encode()
