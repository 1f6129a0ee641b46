"""One request as it is read from any cut of the bytes: its head judged, its body in pieces, its end, what follows it.

Two ways to the same answer: a head met before (proxy/knownheads.py) with a plain body is not parsed at all; anything
else goes through llhttp, whose callbacks only collect, and proxy/heads.py. Pure: bytes in, state out.
May not know: sockets, clocks, what is done with a request.
"""

from __future__ import annotations

from typing import Final

import httptools

from proxy.config import ProxyConfig
from proxy.heads import Pairs, RequestHead, read_request
from proxy.knownheads import KnownHeads
from proxy.refusal import Refusal

_END: Final = b"\r\n\r\n"
_TUNNELLED: Final = b"/v1/realtime"


class Intake:
    """The request side of one connection; `reset` before the next request."""

    __slots__ = (
        "_config",
        "_extra",
        "_fresh",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_known",
        "_left",
        "_parsed",
        "_parser",
        "_parts",
        "_raw",
        "_start",
        "_target",
        "complete",
        "head",
        "pipelined",
        "refusal",
        "size",
        "tunnel",
    )

    def __init__(self, known: KnownHeads, config: ProxyConfig, extra: frozenset[str]) -> None:
        self._known = known
        self._config = config
        self._extra = extra
        self._parser: httptools.HttpRequestParser | None = None
        self.refusal: Refusal | None = None
        """why this is no request that may go on: its head, or what came of its body"""
        self.pipelined = False
        """something follows the request"""
        self.tunnel: bytes | None = None
        """what came behind the head of a WebSocket handshake"""
        self._parts: list[bytes] = []
        self._forget()
        self.reset()

    def reset(self) -> None:
        """Ready for the next request; none follows one that was refused, pipelined into, or became a tunnel."""
        self._fresh = True
        self._left = 0
        """bytes still due of a plain body"""
        self.size = 0
        """bytes of the body so far"""
        self.complete = False
        self.head: RequestHead | None = None
        if self._parsed:
            self._forget()

    def _forget(self) -> None:
        """What the long way knows of its request."""
        self._parsed = False
        self._raw: bytes | None = None
        self._head_bytes = 0
        self._head_done = False
        self._headers: Pairs = []
        self._target = b""
        self._start = (b"", "", False)  # method, version, keep-alive

    @property
    def path(self) -> str:
        """The target as far as it is known, for the shape of an error."""
        return self.head.path if self.head is not None else self._target.decode("ascii", "replace")

    def feed(self, data: bytes) -> bool:
        """Take one read; whether the request is complete. Look at refusal and head, and take the pieces of the body."""
        if self._left:
            self._more(data)
            return self.complete
        if self._fresh:
            self._fresh = False
            found = self._known.read(data)
            if found is not None:
                head, end = found
                if isinstance(head, Refusal):
                    self.refusal = head
                    self._target = data.split(b" ", 2)[1]
                    return False
                left = head.length - len(data) + end
                if left >= 0:  # no more than its body behind it: llhttp has to see what follows a request
                    self.head = head
                    self._left = left
                    self.complete = not left
                    if len(data) > end:
                        self._parts.append(data[end:])
                        self.size = len(data) - end
                    return not left
            at = data.find(_END)
            self._raw = data[:at] if at > 0 else None
        self._parse(data)
        return self.complete

    def _more(self, data: bytes) -> None:
        due = self._left
        if len(data) > due:
            self.after(data[due:])
            data = data[:due]
        self._parts.append(data)
        self.size += len(data)
        self._left = due - len(data)
        self.complete = not self._left

    def after(self, data: bytes) -> None:
        """Bytes behind a complete request: pipelining, blank lines apart."""
        self.pipelined = self.pipelined or bool(data.strip(b"\r\n"))

    def take(self) -> list[bytes]:
        """The body pieces since the last call."""
        parts, self._parts = self._parts, []
        return parts

    def body(self) -> bytes:
        """The same in one piece."""
        parts = self._parts
        if not parts:
            return b""
        self._parts = []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """The parser holds our callbacks: break the cycle."""
        self._parser = None

    # ---- the long way

    def _parse(self, data: bytes) -> None:
        self._parsed = True
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:  # llhttp's words name a grammar rule, never the offending bytes
            if self.complete:
                self.pipelined = True
            else:
                self.refusal = Refusal(400, "bad_request", f"the request is not valid HTTP/1.1: {str(error)[:100]}")
                return
        if self.head is None and self.refusal is None:
            if self._head_done:
                self._judge()
            elif self._head_bytes > self._config.max_head:
                limit = self._config.max_head
                self.refusal = Refusal(431, "head_too_large", f"the head is over {limit} bytes")

    def _judge(self) -> None:
        method, version, keep_alive = self._start
        headers, self._headers = self._headers, []
        head = read_request(method, self._target, version, headers, keep_alive, self._config, self._extra)
        if isinstance(head, Refusal):
            self.refusal = head
            return
        self.head = head
        if self._raw is not None:
            self._known.learn(self._raw, headers, head)

    def _upgrade(self, rest: bytes) -> None:
        """llhttp stops at an Upgrade header: a WebSocket becomes a tunnel, anything else is read as if it were not."""
        method, target, headers = self._start[0], self._target, self._headers
        self.complete = False
        self._parser = None
        self._raw = None
        wanted = {name.lower(): value.lower() for name, value in headers}.get(b"upgrade")
        if wanted == b"websocket" and method == b"GET" and target.split(b"?", 1)[0] == _TUNNELLED:
            self.complete = True
            self.tunnel = rest
            self._judge()
            return
        if method == b"CONNECT":
            self.refusal = Refusal(400, "bad_target", "this proxy opens no tunnels to other hosts")
            return
        plain = [pair for pair in headers if pair[0].lower() != b"upgrade"]
        again = [method, b" ", target, b" HTTP/1.1\r\n", *(n + b": " + v + b"\r\n" for n, v in plain), b"\r\n", rest]
        self._headers, self._target, self._head_done = [], b"", False
        self._parse(b"".join(again))

    # ---- llhttp: collect only

    def on_message_begin(self) -> None:
        """The start of a message; a second one is pipelining."""
        if self.complete:
            self.pipelined = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        if not self.complete:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field; trailers of a chunked body are dropped."""
        if not self._head_done:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if not self.complete:
            self._head_done = True
            parser = self._parser
            assert parser is not None
            self._start = (parser.get_method(), parser.get_http_version(), parser.should_keep_alive())

    def on_body(self, body: bytes) -> None:
        """A piece of the body, without chunk framing."""
        if not self.complete:
            self._parts.append(body)
            self.size += len(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._head_done:
            self.complete = True
