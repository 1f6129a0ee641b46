"""What a request says of itself, read after it went on: its tag, its facts, its exact edges to earlier requests.

The body is parsed at most once, and not for the tag when the headers alone decide. May not know: sockets, clocks.
"""

from __future__ import annotations

from typing import Any

from proxy.config import ProxyConfig
from proxy.content import NOTHING_NAMED, parse_body, read_facts
from proxy.exchange import Exchange
from proxy.foreign import read_tag
from proxy.lineage import Lineage
from proxy.splice import SPLICED_APIS, splice
from traces.tags import from_headers

LARGE_BODY = 16 << 10
_MAYBE_OBJECT = (b"{", b" ", b"\n", b"\r", b"\t")


class Study:
    """Reads one exchange's request body (empty where it was streamed on unread)."""

    __slots__ = ("_body", "_config", "_exchange", "_lineage", "_parsed", "_studied", "_tagged")

    def __init__(self, exchange: Exchange, body: bytes, config: ProxyConfig, lineage: Lineage) -> None:
        self._exchange = exchange
        self._body = body
        self._config = config
        self._lineage = lineage
        self._parsed: Any = None
        self._tagged = False
        self._studied = False

    @property
    def is_large(self) -> bool:
        """Too long to be hashed while a reply may be on its way."""
        return len(self._body) > LARGE_BODY

    def spliced(self) -> bytes:
        """The body as it goes on: with include_usage where the client's stream did not ask for it."""
        exchange, body = self._exchange, self._body
        if b'"stream"' not in body or not self._config.splice_usage or exchange.head.api not in SPLICED_APIS:
            return body
        self._parsed = parse_body(body)
        spliced = None if exchange.head.http10 else splice(body, self._parsed)
        if spliced is None:
            return body
        exchange.usage_spliced = True
        return spliced

    def find_tag(self) -> None:
        """The tag, once; the body is parsed only when the headers alone do not decide."""
        if self._tagged:
            return
        self._tagged = True
        headers = self._exchange.head.tags
        tag = from_headers(headers) if headers else None
        if tag is None:
            tag = read_tag(headers, self._parse())
        if tag is not None:
            self._exchange.tag = self._lineage.place(tag)

    def read(self) -> None:
        """The facts of the request and its exact edges, once. Nothing here may fail a request."""
        if self._studied:
            return
        self._studied = True
        self.find_tag()
        exchange, config = self._exchange, self._config
        parsed = self._parse()
        self._parsed, self._body = None, b""
        try:
            facts = exchange.facts = read_facts(
                parsed, mode=config.record_content, key=config.run_key, block_bytes=config.block_bytes
            )
        except (TypeError, ValueError, RecursionError, AttributeError) as error:
            exchange.add_note(f"request body not understood ({type(error).__name__})")
            return
        if facts.named is not NOTHING_NAMED:
            tag = exchange.tag
            workflow, declared = (tag.workflow_id, tag.parents) if tag is not None else (None, ())
            exchange.edges = self._lineage.edges(facts.named, workflow, declared)

    def _parse(self) -> Any:
        if self._parsed is None and self._body[:1] in _MAYBE_OBJECT:
            self._parsed = parse_body(self._body)
        return self._parsed
