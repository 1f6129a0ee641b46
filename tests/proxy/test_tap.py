"""The short way of a stream's usual reads: it sees what the long way sees, and takes only what is one whole chunk."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.dialects import observer
from proxy.exchange import Exchange
from proxy.framing import (
    EVENT_CHUNK_END,
    MAX_SMALL_CHUNK,
    NO_CHUNK,
    PAYLOAD_AT,
    SMALL_CHUNKS,
    Chunked,
    FramingError,
)
from tests.proxy.test_exchange import head
from tests.proxy.test_relay import ASKED, DONE, LAST, SSE_HEAD, STREAM, USAGE, body_of, chunk, token


def is_small(data: bytes) -> bool:
    return data.endswith(EVENT_CHUNK_END) and data.startswith(SMALL_CHUNKS.get(len(data), NO_CHUNK))


sized = st.integers(0, MAX_SMALL_CHUNK + 4)


@given(sized, st.integers(-3, 3), st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b"]), st.booleans())
def test_a_small_chunk_is_what_the_walker_takes_for_one(size: int, off: int, form: bytes, ends: bool) -> None:
    payload = (b"x" * size)[: max(size - 2, 0)] + (b"\n\n" if ends and size > 1 else b"xx"[: min(size, 2)])
    data = form % max(size + off, 0) + b"\r\n" + payload + b"\r\n"
    if is_small(data):
        walker = Chunked()
        assert walker.feed(data) == data[PAYLOAD_AT[len(data)] : -2] == payload
        assert walker.at_border
    else:
        assert off != 0 or form not in (b"%x", b"%X") or not ends or size < 2 or size > MAX_SMALL_CHUNK


@given(st.binary(max_size=40).map(lambda b: b + b"\n\n\r\n") | st.binary(max_size=60))
def test_no_bytes_pass_for_a_chunk_that_are_none(data: bytes) -> None:
    if is_small(data):
        walker = Chunked()
        try:
            walker.feed(data)
        except FramingError:
            raise AssertionError(data) from None
        assert walker.at_border


events = st.lists(
    st.sampled_from([token("a"), token("bc"), token(""), token('q"\\'), LAST, b": ping\n\n", b"data: x\r\n\n\n"])
    | st.text(max_size=5).map(token),
    min_size=1,
    max_size=3,
).map(b"".join)


@given(st.lists(st.tuples(st.integers(0, 10**9), events), max_size=12), st.integers(0, 12), st.booleans())
def test_reads_noted_and_looked_at_later_make_the_same_record(
    script: list[tuple[int, bytes]], at: int, text: bool
) -> None:
    one, two = Exchange(head(b"/v1/chat/completions"), 5, 5), Exchange(head(b"/v1/chat/completions"), 5, 5)
    for exchange in (one, two):
        exchange.reply(200, True, False, keep_text=text)
    now, log, total = 5, [], 0
    for k, (gap, payload) in enumerate(script):
        now += gap
        data = chunk(payload)
        total += one.read(now, len(data), payload)
        if k == at and log:
            two.small_chunks(log)
            log = []
        log += [now, data]
    if log:
        two.small_chunks(log)
    for exchange in (one, two):
        exchange.end("ok", now)
    left, right = one.row(), two.row()
    left["request_id"] = right["request_id"]
    assert left == right
    assert sum(right["read_tokens"]) == total


@given(st.lists(events, max_size=6), st.sampled_from(["chat", "completions", "responses", "messages"]))
def test_several_reads_at_once_count_as_one_by_one(bodies: list[bytes], api: str) -> None:
    one, two = observer(api, True), observer(api, True)
    for seen in (one, two):
        seen.feed(token("first"))
    assert [one.feed(body) for body in bodies] == two.feed_all(bodies)
    assert (one.tokens, one.ended, one.malformed) == (two.tokens, two.ended, two.malformed)


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([chunk(token("a")), chunk(token("b") + token("c")), chunk(LAST)]), max_size=80),
    joins=st.lists(st.integers(0, 80), max_size=10),
    asked=st.booleans(),
)
def test_streams_pass_exactly_whichever_way_their_reads_go(
    rig: Any, post: Any, pieces: list[bytes], joins: list[int], asked: bool
) -> None:
    """Whole chunks read by read, some of them joined with the next: bytes and counts are the same."""

    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED if asked else STREAM))
        engine = await r.accepted()
        engine.send(SSE_HEAD)
        await r.sleep(0.001)
        held = b""
        for k, piece in enumerate(pieces):
            held += piece
            if k not in joins:
                engine.send(held)
                held = b""
                await r.sleep(0.001)
        engine.send(held + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
        await client.has(b"\r\n0\r\n\r\n")
        body = b"".join(pieces)
        assert body_of(client.got) == body + (chunk(USAGE) if asked else b"") + chunk(DONE) + b"0\r\n\r\n"
        record = await r.settle()
        assert sum(record.read_tokens) == body.count(b'"content":')
        assert record.bytes_out == len(body + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
        assert (record.prompt_tokens, record.outcome) == (7, "ok")
        assert r.page.get("tokens_out") == sum(record.read_tokens)

    rig(scenario)


def test_a_long_silence_does_not_hide_tokens(rig: Any, post: Any) -> None:
    """Reads noted are looked at within one sweep, so that the live view follows."""

    async def scenario(r: Any) -> None:
        await r.client(post(ASKED))
        engine = await r.accepted()
        engine.send(SSE_HEAD)
        for _ in range(3):
            await r.sleep(0.01)
            engine.send(chunk(token("a")))
        await r.sleep(0.6)
        assert r.page.get("tokens_out") == 3

    rig(scenario)


def test_nothing_after_a_chunk_that_lies(rig: Any, post: Any) -> None:
    """A bad size line in the middle of a stream that went the short way ends it; nothing of it is relayed."""

    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED))
        engine = await r.accepted()
        engine.send(SSE_HEAD)
        for _ in range(3):
            await r.sleep(0.01)
            engine.send(chunk(token("a")))
        await r.sleep(0.01)
        engine.send(b"g" + chunk(token("poison")))
        await client.end()
        assert body_of(client.got) == chunk(token("a")) * 3
        record = await r.settle()
        assert (record.outcome, sum(record.read_tokens)) == ("error", 3)

    rig(scenario)


def test_rows_stay_plain_json() -> None:
    exchange = Exchange(head(b"/v1/chat/completions"), 5, 5)
    exchange.reply(200, True, False, keep_text=False)
    exchange.small_chunks([7, chunk(token("a"))])
    exchange.end("ok", 9)
    assert orjson.loads(orjson.dumps(exchange.row()))["read_dt_ns"] == [2]
