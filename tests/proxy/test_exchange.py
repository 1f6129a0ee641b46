"""One request's life as events: the row holds every field of RequestRecord, and what is not known is None."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import ProxyConfig
from proxy.exchange import Exchange
from proxy.heads import RequestHead, read_request
from proxy.page import Page
from proxy.row import row as row_of
from traces.records import RequestRecord, from_row
from traces.status import StatusReader


def head(path: bytes = b"/v1/completions") -> RequestHead:
    config = ProxyConfig(("http://127.0.0.1:1",))
    made = read_request(b"POST", path, "1.1", [(b"Host", b"p"), (b"X-Request-Id", b"r1")], True, config, frozenset())
    assert isinstance(made, RequestHead)
    return made


def token(text: str) -> bytes:
    return b"data: " + orjson.dumps({"id": "c1", "choices": [{"text": text, "finish_reason": None}]}) + b"\n\n"


def test_a_request_that_never_reached_the_engine() -> None:
    exchange = Exchange(head(), 100, 110)
    exchange.end("rejected", 150, "too large")
    exchange.end("ok", 999)  # only the first end counts
    row = row_of(exchange)
    assert row.keys() == {f.name for f in fields(RequestRecord)}
    record = from_row(RequestRecord, row)
    assert (record.outcome, record.t_end_ns, record.error) == ("rejected", 150, "too large")
    for name in ("t_first_byte_ns", "t_first_token_ns", "status", "prompt_tokens", "completion_tokens", "upstream"):
        assert getattr(record, name) is None


def test_no_row_before_the_end() -> None:
    with pytest.raises(RuntimeError):
        row_of(Exchange(head(), 1, 1))


reads = st.lists(st.tuples(st.integers(0, 10**9), st.lists(st.text(max_size=3), max_size=3)), max_size=12)


@given(reads, st.integers(0, 10**6))
def test_reads_add_up(script: list[tuple[int, list[str]]], framing: int) -> None:
    exchange = Exchange(head(), 1_000, 1_000)
    exchange.reply(200, True, False, keep_text=False)
    now, size, tokens, first, last = 1_000, 0, 0, None, None
    for gap, texts in script:
        now += gap
        payload = b"".join(map(token, texts))
        seen = exchange.read(now, len(payload) + framing, payload)
        size += len(payload) + framing
        count = sum(bool(t) for t in texts)
        assert seen == count
        tokens += count
        if count:
            first, last = now if first is None else first, now
    exchange.end("ok", now)
    record: Any = from_row(RequestRecord, orjson.loads(orjson.dumps(row_of(exchange))))
    assert sum(record.read_dt_ns) == now - 1_000
    assert (sum(record.read_bytes), record.bytes_out) == (size, size)
    assert sum(record.read_tokens) == tokens
    assert (record.t_first_token_ns, record.t_last_token_ns) == (first, last)
    assert len(record.read_dt_ns) == len(record.read_bytes) == len(record.read_tokens) == len(script)
    page = Page(None)
    page.ended(exchange, 0)
    shown = StatusReader(page.status)
    assert sum(shown.histogram("e2e")) == 1
    assert sum(shown.histogram("ttft")) == (1 if tokens else 0)
    assert shown.get("e2e_sum_ns") == now - 1_000
    assert shown.get("itl_sum_ns") == (last - first if first is not None and last is not None else 0)
    with_tokens = [n for n in record.read_tokens if n]
    assert sum(shown.histogram("itl")) == sum(with_tokens[1:])


def test_a_compressed_reply_is_not_understood_and_says_so() -> None:
    exchange = Exchange(head(), 1, 1)
    exchange.reply(200, False, True, keep_text=False)
    exchange.read(5, 10, b"\x1f\x8b")
    exchange.end("ok", 6)
    assert "compressed" in row_of(exchange)["note"]
    assert row_of(exchange)["completion_tokens"] is None


def test_a_reply_is_read_to_its_end_once() -> None:
    exchange = Exchange(head(), 1, 1)
    exchange.reply(200, False, False, keep_text=False)
    exchange.read(5, 10, b'{"id":"r1","choices":[]}')
    exchange.end("ok", 6)
    for _ in range(2):
        seen = exchange.settled()
        assert seen is not None
        assert (seen.malformed, seen.ended, seen.response_id) == (0, True, "r1")
