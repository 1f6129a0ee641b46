"""The short way of a stream's usual reads: it sees what the long way sees, and takes only what is one whole chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.dialects import Observer, observer
from proxy.config import parse_target
from proxy.exchange import Exchange
from proxy.framing import (
    EVENT_CHUNK_END,
    MAX_SMALL_CHUNK,
    Chunked,
    FramingError,
    payload_at,
)
from proxy.row import row as row_of
from proxy.straight import Straight
from proxy.upstream import MAX_NOTED, Pool, Upstream
from tests.proxy.test_exchange import head
from tests.proxy.test_relay import ASKED, DONE, LAST, SSE_HEAD, STREAM, USAGE, body_of, chunk, token


def is_small(data: bytes) -> bool:
    return data.endswith(EVENT_CHUNK_END) and payload_at(data) > 0


REASONING = token("r").replace(b'"content"', b'"reasoning"')
sized = st.integers(0, MAX_SMALL_CHUNK + 4)


@given(sized, st.integers(-3, 3), st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b"]), st.booleans())
def test_a_small_chunk_is_what_the_walker_takes_for_one(size: int, off: int, form: bytes, ends: bool) -> None:
    payload = (b"x" * size)[: max(size - 2, 0)] + (b"\n\n" if ends and size > 1 else b"xx"[: min(size, 2)])
    data = form % max(size + off, 0) + b"\r\n" + payload + b"\r\n"
    if is_small(data):
        walker = Chunked()
        assert walker.feed(data) == data[payload_at(data) : -2] == payload
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


@given(sized, st.integers(-3, 3), st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b""]), st.binary(max_size=4))
def test_a_payload_begins_where_the_walker_finds_it(size: int, off: int, form: bytes, end: bytes) -> None:
    line = form % max(size + off, 0) if form else b""
    data = line + b"\r\n" + b"x" * size + (end if len(end) != 2 else b"\r\n")
    at = payload_at(data)
    if at and data.endswith(b"\r\n"):
        walker = Chunked()
        assert walker.feed(data) == data[at:-2]
        assert walker.at_border
    elif data.endswith(b"\r\n") and form in (b"%x", b"%X") and off == 0 and len(end) == 2:
        assert not 1 <= size <= MAX_SMALL_CHUNK


TEXTS = st.text(max_size=12) | st.sampled_from(["usage", '"usage"', 'a","x":"b', "a\nb", "\r", "{", "\\"])


@given(TEXTS, st.sampled_from([b"", b"\n", b"\r", b"\n\n", b" ", b'"']), st.integers(0, 250))
def test_what_has_the_shape_of_a_plain_token_is_one(text: str, more: bytes, at: int) -> None:
    """Whatever stands in the middle: the observer, fed with it, says the same and nothing else."""
    seen = observer("chat", True)
    seen.feed(token("a"))
    shape = seen.plain()
    assert shape is not None
    event = token(text)
    event = event[:at] + more + event[at:]
    if shape.is_event(b"1f\r\n" + event + b"\r\n", 4, shape.ending + b"\r\n"):
        before = vars_of(seen)
        assert seen.feed(event) == 1
        assert vars_of(seen) == before | {"tokens": before["tokens"] + 1}
        assert seen.plain() is shape


def vars_of(seen: Observer) -> dict[str, Any]:
    """All that a record takes from it."""
    names = ("tokens", "ended", "error", "finish_reason", "malformed", "metrics", "response_id")
    return {name: getattr(seen, name) for name in names} | {"usage": replace(seen.usage)}


def test_no_read_passes_unread_where_each_says_usage() -> None:
    exchange = Exchange(head(b"/v1/chat/completions"), 5, 5)
    exchange.reply(200, True, False, keep_text=False)
    said = token("a").replace(b'"finish_reason"', b'"usage":null,"finish_reason"')
    exchange.read(6, len(said), said)
    assert exchange.plain(None) is not None
    assert exchange.plain(b'"usage"') is None


events = st.lists(
    st.sampled_from([token("a"), token("bc"), token(""), token('q"\\'), LAST, b": ping\n\n", b"data: x\r\n\n\n"])
    | st.text(max_size=5).map(token),
    min_size=1,
    max_size=3,
).map(b"".join)


class Through:
    """A transport with nothing behind it: there is no socket to write to past it."""

    def __init__(self, took: list[bytes]) -> None:
        self.write = took.append

    def get_extra_info(self, _: str) -> None:
        return None


class Reading:
    """A receiver as a relay is one: whole chunks go by it, and it looks at them later."""

    def __init__(self, text: bool, api: bytes = b"/v1/chat/completions") -> None:
        self.exchange = Exchange(head(api), 5, 5)
        self.exchange.reply(200, True, False, keep_text=text)
        self.now = 5
        self.upstream = Upstream(Pool(parse_target("http://h:1"), connect=never, now_ns=self.time, idle_ns=1, tls=None))
        self.upstream.receiver = self  # type: ignore[assignment]
        self.passed: list[bytes] = []
        self.client = Straight(Through(self.passed))  # type: ignore[arg-type]
        self.walker = Chunked()
        self.long = 0
        self._shorten()

    def time(self) -> int:
        return self.now

    def _shorten(self) -> None:
        if self.walker.at_border:
            self.upstream.shorten(self.client, None, self.exchange.reads, self.exchange.plain(None))
        else:
            self.upstream.lengthen()

    def received(self, data: bytes, now: int) -> None:
        self.long += 1
        self.look()
        self.passed.append(data)
        self.exchange.read(now, len(data), self.walker.feed(data))
        self._shorten()

    def look(self) -> None:
        self.exchange.look()
        self.upstream.recognise(self.exchange.plain(None))


async def never(*_: Any, **__: Any) -> Any:
    raise OSError


pieces = events | st.sampled_from([b"data: half", b" an event\n\n", token("x")[:40], token("x")[40:], REASONING, DONE])


@given(st.lists(st.tuples(st.integers(0, 10**9), pieces), max_size=12), st.integers(0, 12), st.booleans())
def test_reads_noted_and_looked_at_later_make_the_same_record(
    script: list[tuple[int, bytes]], at: int, text: bool
) -> None:
    one, two = Exchange(head(b"/v1/chat/completions"), 5, 5), Reading(text)
    one.reply(200, True, False, keep_text=text)
    for k, (gap, payload) in enumerate(script):
        two.now += gap
        data = chunk(payload)
        one.read(two.now, len(data), payload)
        two.upstream.data_received(data)
        if k == at:
            two.look()
    two.look()
    for exchange in (one, two.exchange):
        exchange.end("ok", two.now)
    left, right = row_of(one), row_of(two.exchange)
    left["request_id"] = right["request_id"]
    assert left == right
    assert two.passed == [chunk(payload) for _, payload in script]
    assert (one.settled().malformed, one.tokens) == (two.exchange.settled().malformed, two.exchange.tokens)  # type: ignore[union-attr]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2))
def test_whole_chunks_are_looked_at_together(texts: list[str]) -> None:
    two = Reading(False)
    for text in texts:
        two.upstream.data_received(chunk(token(text)))
    assert two.long == 0
    reads = two.exchange.reads
    assert len(reads.plain) // 2 == (len(texts) - 1) % MAX_NOTED
    assert not reads.kept
    two.look()
    assert two.exchange.tokens == len(texts)


def messages_token(text: str) -> bytes:
    row = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return b"event: content_block_delta\ndata: " + orjson.dumps(row) + b"\n\n"


PREFIX, _, SUFFIX = token("~").partition(b"~")
ODD = (
    *(PREFIX + SUFFIX, PREFIX[:-1] + SUFFIX, SUFFIX, b"\n\n", PREFIX + b"a\n\n", PREFIX + b"a\r" + SUFFIX, LAST),
    *(PREFIX + b"a" + SUFFIX + PREFIX + b"b" + SUFFIX, PREFIX + b"a" + SUFFIX + b"\n\n", PREFIX + b"\n" + SUFFIX),
    *(b"data: [DONE]\n\n", b"event: ping\ndata: {}\n\n", messages_token("a"), messages_token("")),
)


@given(
    st.sampled_from(["chat", "messages"]),
    st.lists(
        st.text(max_size=3).map(token) | st.text(max_size=3).map(messages_token) | st.sampled_from(ODD), max_size=24
    ),
    st.integers(0, 24),
)
def test_reads_fed_together_count_as_they_do_one_by_one(api: str, reads: list[bytes], at: int) -> None:
    one, two = observer(api, True), observer(api, True)
    usual = token if api == "chat" else messages_token
    bodies = [usual("x"), usual("y"), *reads[:at], usual("z"), *reads[at:]]
    cut = 1 + at % 3
    counts = [one.feed(body) for body in bodies]
    assert two.feed_each(bodies[:cut]) + two.feed_each(bodies[cut:]) == counts
    for seen in (one, two):
        seen.finish()
    assert (one.tokens, one.malformed, one.ended) == (two.tokens, two.malformed, two.ended)
    assert (one.finish_reason, one.response_id) == (two.finish_reason, two.response_id)


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
    exchange.reads.keep(7, chunk(token("a")))
    exchange.look()
    exchange.end("ok", 9)
    assert orjson.loads(orjson.dumps(row_of(exchange)))["read_dt_ns"] == [2]


def test_a_stream_that_first_names_a_role_is_known_with_its_first_token() -> None:
    two = Reading(False)
    role = token("").replace(b'"content"', b'"role":"assistant","content"')
    for piece in (role, token("a"), token("b"), token("c")):
        two.upstream.data_received(chunk(piece))
    assert (len(two.exchange.reads.plain) // 2, two.exchange.reads.kept) == (2, [])
    two.look()
    assert two.exchange.tokens == 3
