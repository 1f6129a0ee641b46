"""What a request says of itself, read after it went on: its tag, its facts, its exact edges to earlier requests.

The body is parsed at most once, and not for the tag when the headers alone decide. Functions over an exchange, which
keeps its body until it is read. May not know: sockets, clocks.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from proxy.config import ProxyConfig
from proxy.content import NOTHING_NAMED, parse_body, read_facts
from proxy.exchange import Exchange
from proxy.foreign import read_tag
from proxy.heads import plain_reply
from proxy.lineage import Lineage
from proxy.splice import SPLICED_APIS, splice
from traces.tags import from_headers

_MAYBE_OBJECT: Final = (b"{", b" ", b"\n", b"\r", b"\t")


def spliced(exchange: Exchange, config: ProxyConfig) -> bytes:
    """The body as it goes on: with include_usage where the client's stream did not ask for it."""
    body, head = exchange.body, exchange.head
    if body.rfind(b'"stream"') < 0 or not config.splice_usage or head.api not in SPLICED_APIS:
        return body
    exchange.parsed = parse_body(body)
    made = None if head.http10 else splice(body, exchange.parsed)
    if made is None:
        return body
    exchange.usage_spliced = True
    head.lines = plain_reply(head.lines)
    return made


def find_tag(exchange: Exchange, lineage: Lineage) -> None:
    """The tag, once; the body is parsed only when the headers alone do not decide."""
    if exchange.tagged:
        return
    exchange.tagged = True
    headers = exchange.head.tags
    tag = from_headers(headers) if headers else None
    if tag is None:
        tag = read_tag(headers, _parse(exchange))
        if tag is None:
            return
    exchange.tag = tag if tag.agent_id is None and tag.parent_agent_id is None else lineage.place(tag)


def read_request(exchange: Exchange, config: ProxyConfig, lineage: Lineage) -> None:
    """The facts of the request and its exact edges, once. Nothing here may fail a request."""
    if not exchange.unread:
        return
    exchange.unread = False
    if not exchange.tagged:
        find_tag(exchange, lineage)
    parsed = _parse(exchange)
    exchange.parsed, exchange.body = None, b""
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
        exchange.edges = lineage.edges(facts.named, workflow, declared)


def _parse(exchange: Exchange) -> Any:
    parsed = exchange.parsed
    if parsed is None and exchange.body[:1] in _MAYBE_OBJECT:
        try:
            parsed = exchange.parsed = orjson.loads(exchange.body)
        except orjson.JSONDecodeError:
            return None
    return parsed
