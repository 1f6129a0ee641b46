"""The whole proxy in virtual time between a scripted engine and raw clients: bytes, ends, records."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.hub import LATER_S, MAX_LOOK

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
ASKED = b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text: str) -> bytes:
    row = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return b"data: " + orjson.dumps(row) + b"\n\n"


LAST = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}},"metrics":{"queue_time_ms":1.5,"time_to_first_token_ms":2,'
    b'"generation_time_ms":3}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def answer(data: bytes) -> Callable[[Any], None]:
    """An engine that gives the same bytes to every complete request with a small body or none."""

    def on_data(wire: Any) -> None:
        head, _, body = wire.got.partition(b"\r\n\r\n")
        length = [int(v.split(b":")[1]) for v in head.split(b"\r\n") if v.lower().startswith(b"content-length:")]
        if b"\r\n\r\n" in wire.got and len(body) >= (length[0] if length else 0):
            wire.got = b""
            wire.send(data)

    return on_data


def body_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[2]


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=4), max_size=6),
    cuts=st.lists(st.integers(0, 3000), max_size=15),
    kind=st.sampled_from(["chunked", "length", "close"]),
)
def test_reply_bytes_are_exact_under_any_split(
    rig: Any, post: Any, texts: list[str], cuts: list[int], kind: str
) -> None:
    text = b"".join(token(t) for t in texts) + DONE
    wire = b"".join(chunk(token(t)) for t in texts) + chunk(DONE) + b"0\r\n\r\n" if kind == "chunked" else text
    framing = {
        "chunked": b"transfer-encoding: chunked\r\n",
        "length": b"content-length: %d\r\n" % len(text),
        "close": b"",
    }
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing[kind] + b"\r\n"

    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED))
        await r.sleep(0.01)
        for part in cut_at(head + wire, cuts):
            r.engine[0].send(part)
            await r.sleep(0.001)
        if kind == "close":
            r.engine[0].transport.close()
        record = await r.settle()
        await r.sleep(0.01)
        assert body_of(client.got) == wire
        assert record.outcome == "ok"
        assert record.bytes_out == sum(record.read_bytes) == len(wire)
        assert sum(record.read_tokens) == sum(bool(t) for t in texts)

    rig(scenario)


def test_stream_is_recorded(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        tags = ("X-Workflow-Id: w1", "X-Workflow-Node: n1")
        client = await r.client(post(STREAM, "/v1/chat/completions", *tags, "Accept-Encoding: gzip, deflate"))
        engine = await r.accepted()
        await engine.has(STREAM[1:])
        assert b"\r\nAccept-Encoding: identity\r\n" in engine.got and b"gzip" not in engine.got
        assert b'"stream_options":{"include_usage":true}' in engine.got
        await r.sleep(0.1)
        engine.send(SSE_HEAD)
        for text in ("a", "b"):
            await r.sleep(0.05)
            engine.send(chunk(token(text)))
        engine.send(chunk(LAST) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
        await client.has(b"\r\n0\r\n\r\n")
        head, _, body = client.got.partition(b"\r\n\r\n")
        assert body == b"".join([chunk(token("a")), chunk(token("b")), chunk(LAST), chunk(DONE), b"0\r\n\r\n"])
        assert b"x-workflow-id: w1\r\nx-workflow-node: n1" in head
        record = await r.settle()
        assert (record.workflow_id, record.node_id, record.tag_source) == ("w1", "n1", "x-workflow")
        assert record.outcome == "ok"
        assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (7, 4, 2)
        assert (record.engine_queue_ns, record.engine_prefill_ns, record.engine_decode_ns) == (
            1500000,
            2000000,
            3000000,
        )
        assert record.usage_spliced is True
        assert record.finish_reason == "stop"
        assert record.response_id == "chatcmpl-1"
        assert sum(record.read_tokens) == 2
        assert record.t_first_token_ns - record.t_arrival_ns == pytest.approx(150e6, abs=5e6)
        assert record.t_last_token_ns - record.t_first_token_ns == pytest.approx(50e6, abs=1)
        assert sum(record.read_dt_ns) == record.t_end_ns - record.t_arrival_ns
        assert r.page.get("tokens_out") == 2
        assert r.page.get("in_flight") == 0

    rig(scenario)


def test_a_client_that_asked_for_usage_gets_it(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED))
        await client.has(b"\r\n0\r\n\r\n")
        assert body_of(client.got) == chunk(token("a")) + chunk(USAGE) + b"0\r\n\r\n"
        record = await r.settle()
        assert record.usage_spliced is None
        assert record.prompt_tokens == 7

    rig(scenario, on_data=answer(SSE_HEAD + chunk(token("a")) + chunk(USAGE) + b"0\r\n\r\n"))


def test_splicing_can_be_switched_off(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(STREAM))
        await client.has(b"{}")
        assert r.engine[0].reads[0][1].endswith(STREAM)

    rig(scenario, on_data=answer(OK), splice_usage=False)


def test_keep_alive_on_both_sides(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client()
        for k in range(3):
            client.send(post(b"{}"))
            await client.until(lambda w, k=k: w.got.count(b"200 OK") == k + 1)
        assert len(r.engine) == 1
        assert client.lost_ns is None
        await r.settle(3)
        assert [x.upstream_reused for x in r.records] == [False, True, True]
        await r.sleep(3.6)  # younger than the engine's 5 s, older than our limit
        client.send(post(b"{}"))
        await client.until(lambda w: w.got.count(b"200 OK") == 4)
        assert len(r.engine) == 2
        assert r.engine[0].lost_ns is not None

    rig(scenario, on_data=answer(OK))


def test_retry_once_on_a_dead_reused_connection(rig: Any, post: Any) -> None:
    def on_data(wire: Any) -> None:
        if wire.got.count(b"POST") > 1:
            wire.transport.close()
        else:
            wire.send(OK)

    async def scenario(r: Any) -> None:
        client = await r.client(post(b"{}"))
        await client.has(b"{}")
        await r.settle(1)
        client.send(post(b'{"a":1}'))
        record = await r.settle(2)
        assert record.outcome == "ok"
        assert "sent again" in record.note
        assert len(r.engine) == 2
        assert r.engine[1].got.endswith(b'{"a":1}')

    rig(scenario, on_data=on_data)


@pytest.mark.parametrize(
    ("reply", "status", "outcome"),
    [
        (b"", b" 502 ", "upstream_died"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", b" 502 ", "upstream_died"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", b" 200 ", "upstream_died"),
        (SSE_HEAD + chunk(token("a")), b" 200 ", "upstream_died"),
        (b"garbage\r\n\r\n", b" 502 ", "error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b" 502 ", "error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b" 502 ", "error"),
        (SSE_HEAD + b"zz\r\n", b" 502 ", "error"),
        (SSE_HEAD + chunk(token("a")) + b"zz\r\n", b" 502 ", "error"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b" 502 ", "error"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000, b" 502 ", "error"),
    ],
)
def test_an_engine_that_dies_or_lies(rig: Any, post: Any, reply: bytes, status: bytes, outcome: str) -> None:
    def on_data(wire: Any) -> None:
        if reply:
            wire.send(reply)
        wire.transport.close()

    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED))
        record = await r.settle()
        await client.end()
        assert status in client.got.split(b"\r\n")[0]
        assert record.outcome == outcome
        assert record.error
        assert len(r.engine) == 1  # a fresh connection is never tried twice
        if status == b" 200 ":
            assert not client.got.endswith(b"0\r\n\r\n")

    rig(scenario, on_data=on_data)


def test_engine_not_there(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(b"{}"))
        record = await r.settle()
        await client.end()
        assert b" 502 " in client.got.split(b"\r\n")[0]
        assert (record.outcome, record.status) == ("unreachable", None)

    rig(scenario, listen=False)


@pytest.mark.parametrize("stage", ["before", "head", "stream"])
def test_a_client_that_leaves_aborts_upstream_at_once(rig: Any, post: Any, stage: str) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(STREAM))
        await r.sleep(0.2)
        engine = r.engine[0]
        if stage != "before":
            engine.send(SSE_HEAD)
        if stage == "stream":
            for _ in range(5):
                engine.send(chunk(token("x")))
                await r.sleep(0.01)
        left = r.loop.now_ns()
        client.transport.abort()
        await engine.end()
        assert engine.lost_ns - left <= 50_000_000
        record = await r.settle()
        assert record.outcome == "client_left"
        assert 0 <= record.t_end_ns - left <= 50_000_000
        assert sum(record.read_tokens) == (5 if stage == "stream" else 0)
        assert r.page.get("client_left") == 1

    rig(scenario)


def test_a_client_that_closes_at_the_end_marker_has_got_everything(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(STREAM))
        engine = await r.accepted()
        engine.send(SSE_HEAD + chunk(token("a")) + chunk(LAST) + chunk(USAGE) + chunk(DONE))
        await client.has(DONE)
        client.transport.abort()
        record = await r.settle()
        assert (record.outcome, record.completion_tokens, record.error) == ("ok", 2, None)
        assert "end marker" in record.note

    rig(scenario)


def test_half_close_counts_as_leaving_and_is_not_passed_on(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(STREAM))
        await r.sleep(0.1)
        client.transport.close()
        await r.engine[0].end()
        assert (await r.settle()).outcome == "client_left"

    rig(scenario)


def test_head_and_options(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(b"HEAD /v1/models HTTP/1.1\r\nHost: p\r\n\r\n")
        await client.has(b"\r\n\r\n")
        assert b"Content-Length: 10" in client.got
        client.got = b""
        client.send(b"OPTIONS /v1/models HTTP/1.1\r\nHost: p\r\n\r\n")
        await client.has(b"\r\n\r\n")
        assert client.lost_ns is None
        assert [w.reads[0][1].split(b" ")[0] for w in r.engine] == [b"HEAD"]
        assert r.engine[0].reads[1][1].startswith(b"OPTIONS /v1/models HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n")

    def on_data(wire: Any) -> None:
        length = b"10" if wire.reads[-1][1].startswith(b"HEAD") else b"0"
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n")

    rig(scenario, on_data=on_data)


def test_expect_continue(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        client = await r.client(head)
        await client.has(b"100 Continue\r\n\r\n")
        assert r.engine == []
        client.send(b"{}")
        await client.has(b"200 OK")
        assert b"xpect" not in r.engine[0].reads[0][1]

    rig(scenario, on_data=answer(OK))


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 600), max_size=9),
)
def test_chunked_request_bodies_arrive_whole(rig: Any, pieces: list[bytes], cuts: list[int]) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire = head + b"".join(map(chunk, pieces)) + b"0\r\nX-Trailer: 1\r\n\r\n"

    async def scenario(r: Any) -> None:
        client = await r.client()
        for part in cut_at(wire, cuts):
            client.send(part)
            await r.sleep(0.001)
        await client.has(b"200 OK")
        sent = b"".join(d for _, d in r.engine[0].reads)
        assert body_of(sent) == b"".join(pieces)
        assert b"Content-Length: %d\r\n" % len(b"".join(pieces)) in sent
        assert (await r.settle()).bytes_in == len(b"".join(pieces))

    rig(scenario, on_data=answer(OK))


def test_pipelining_is_refused_after_the_first_reply(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(b"{}") + post(b"{}"))
        await client.end()
        assert client.got.count(b"HTTP/1.1 200 OK") == 1
        assert client.got.index(b"200 OK") < client.got.index(b"HTTP/1.1 400")
        assert b"pipelining" in client.got
        assert len(r.engine[0].reads) == 1

    rig(scenario, on_data=answer(OK))


@pytest.mark.parametrize("buffer_body", [10, 1_000_000])
def test_a_body_that_breaks_off_into_nonsense_is_refused_and_recorded(rig: Any, buffer_body: int) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n")
        await r.sleep(0.01)
        client.send(chunk(b"x" * 100))
        await r.sleep(0.01)
        client.send(b"zz\r\n")
        await client.end()
        assert b" 400 " in client.got.split(b"\r\n")[0]
        record = await r.settle()
        assert (record.outcome, record.status) == ("rejected", None)
        assert r.page.get("in_flight") == 0
        assert all(w.lost_ns is not None for w in r.engine)

    rig(scenario, buffer_body=buffer_body)


def test_large_bodies_are_streamed_up(rig: Any) -> None:
    body = b"x" * 300_000

    async def scenario(r: Any) -> None:
        client = await r.client(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        for at in range(0, len(body), 50_000):
            client.send(body[at : at + 50_000])
            await r.sleep(0.01)
            if at == 50_000:
                assert len(r.engine[0].got) > 50_000  # on its way before it is complete
        await client.has(b"200 OK")
        assert body_of(b"".join(d for _, d in r.engine[0].reads)) == body
        record = await r.settle()
        assert record.bytes_in == len(body)
        assert "not parsed" in record.note

    rig(scenario, on_data=answer(OK), buffer_body=10_000)


def test_large_chunked_bodies_are_streamed_up(rig: Any) -> None:
    body = b"y" * 40_000

    async def scenario(r: Any) -> None:
        client = await r.client(b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 5_000):
            client.send(chunk(body[at : at + 5_000]))
            await r.sleep(0.01)
        client.send(b"0\r\n\r\n")
        await r.engine[0].has(b"\r\n0\r\n\r\n")
        raw = body_of(r.engine[0].got)
        from proxy.framing import Chunked

        walker = Chunked()
        assert walker.feed(raw) == body
        assert walker.done
        r.engine[0].send(OK)
        await client.has(b"200 OK")

    rig(scenario, buffer_body=10_000)


def test_body_cap(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(b"x" * 2001))
        await client.has(b" 413 ")
        other = await r.client(b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            other.send(chunk(b"z" * 1000))
        await other.has(b" 413 ")
        await other.end()
        record = await r.settle()
        assert record.outcome == "rejected"

    rig(scenario, max_body=2000, buffer_body=500)


def test_an_early_reply_ends_the_upload(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(
            b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nContent-Length: 100000\r\n\r\n" + b"x" * 20_000
        )
        await r.sleep(0.1)
        r.engine[0].send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await client.has(b" 413 ")
        assert b"Connection: close" in client.got
        await r.engine[0].end()
        await client.end()
        assert (await r.settle()).outcome == "rejected"

    rig(scenario, buffer_body=10_000)


def test_http10_client_gets_no_chunks(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        body = ASKED
        client = await r.client(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await client.end()
        head, _, got = client.got.partition(b"\r\n\r\n")
        assert b"hunked" not in head
        assert got == token("a") + DONE

    rig(scenario, on_data=answer(SSE_HEAD + chunk(token("a")) + chunk(DONE) + b"0\r\n\r\n"))


def test_reply_until_close(rig: Any, post: Any) -> None:
    def on_data(wire: Any) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        wire.transport.close()

    async def scenario(r: Any) -> None:
        client = await r.client(post(b"{}"))
        await client.end()
        assert body_of(client.got) == b"hello"
        assert b"Connection: close" in client.got
        assert (await r.settle()).outcome == "ok"

    rig(scenario, on_data=on_data)


def test_extra_bytes_after_a_reply_never_reach_the_client(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(b"{}"))
        await client.has(b"{}")
        await r.sleep(0.1)
        assert client.got.endswith(b"{}")
        client.send(post(b"{}"))
        await client.until(lambda w: w.got.count(b"200 OK") == 2)
        assert len(r.engine) == 2

    rig(scenario, on_data=answer(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))


def test_h2c_upgrade_is_dropped_and_the_body_kept(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(
            b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b'HTTP2-Settings: AAMAAABk\r\nContent-Length: 7\r\n\r\n{"a":1}'
        )
        await client.has(b"200 OK")
        sent = r.engine[0].reads[0][1]
        assert sent.endswith(b'{"a":1}')
        for word in (b"pgrade", b"h2c", b"HTTP2"):
            assert word not in sent

    rig(scenario, on_data=answer(OK))


def test_concurrency_limit_queues_and_says_so(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        clients = [await r.client(post(b"{}")) for _ in range(4)]
        await r.sleep(0.1)
        assert len(r.engine) == 1
        assert b" 503 " in clients[3].got.split(b"\r\n")[0]
        assert r.page.get("queued") == 2
        clients[1].transport.abort()
        await r.sleep(0.01)
        r.engine[0].send(OK)
        await clients[0].has(b"200 OK")
        await r.sleep(0.1)
        r.engine[0].send(OK)
        await clients[2].has(b"200 OK")
        await r.settle(4)
        by = {x.outcome: x for x in r.records}
        assert sorted(x.outcome for x in r.records) == ["client_left", "ok", "ok", "rejected"]
        assert by["ok"].t_queue_ns - by["ok"].t_arrival_ns >= 100_000_000

    rig(scenario, max_concurrency=1, max_queue=2)


def test_raising_the_limit_lets_the_queue_in(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        for _ in range(3):
            await r.client(post(b"{}"))
        await r.sleep(0.1)
        assert len(r.engine) == 1
        r.proxy.set_limit(3)
        await r.sleep(0.1)
        assert len(r.engine) == 3

    rig(scenario, max_concurrency=1)


def test_deadline(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(STREAM))
        await client.has(b" 504 ")
        await r.engine[0].end()
        streaming = await r.client(post(STREAM))
        await r.sleep(0.1)
        r.engine[1].send(SSE_HEAD + chunk(token("a")))
        await streaming.end()
        await r.settle(2)
        assert [x.outcome for x in r.records] == ["timeout", "timeout"]

    rig(scenario, deadline_ns=2_000_000_000)


def test_slow_heads_and_bodies_are_cut(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        head = await r.client(b"POST /v1/comp")
        body = await r.client(b"POST /v1/completions HTTP/1.1\r\nHost: p\r\nContent-Length: 1000\r\n\r\nx")
        idle = await r.client()

        start = r.loop.now_ns()
        for _ in range(8):
            await r.sleep(1)
            head.send(b"x")
            body.send(b"x")
        await head.end()
        await body.end()
        await idle.end()
        assert b" 408 " in head.got
        assert b" 408 " in body.got
        assert head.lost_ns - start <= 7e9  # the limit, one sweep, the linger
        assert (await r.settle()).outcome == "client_left"

    rig(scenario, head_timeout_ns=5_000_000_000, body_timeout_ns=6_000_000_000, idle_timeout_ns=9_000_000_000)


def test_backpressure_towards_the_engine_and_back(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED))
        await r.sleep(0.1)
        engine = r.engine[0]
        client.transport.pause_reading()
        piece = b"data: " + b"z" * 9000 + b"\n\n"
        engine.send(SSE_HEAD)
        for _ in range(100):
            engine.send(chunk(piece))
            await r.sleep(0.001)
        held = engine.transport.get_write_buffer_size()
        assert held > 500_000  # the proxy stopped reading instead of piling up
        client.transport.resume_reading()
        engine.send(b"0\r\n\r\n")
        await client.has(b"\r\n0\r\n\r\n")
        assert body_of(client.got) == chunk(piece) * 100 + b"0\r\n\r\n"

    rig(scenario)


def test_drain_lets_running_requests_finish(rig: Any, post: Any) -> None:
    import asyncio

    async def scenario(r: Any) -> None:
        idle = await r.client()
        client = await r.client(post(b"{}"))
        await r.sleep(0.1)
        drained = asyncio.ensure_future(r.proxy.drain(5))
        await r.sleep(0.1)
        assert idle.lost_ns is not None
        with pytest.raises(ConnectionRefusedError):
            await r.client()
        r.engine[0].send(OK)
        await client.has(b"{}")
        assert b"Connection: close" in client.got
        assert await drained == 0
        assert r.records[0].outcome == "ok"

    rig(scenario)


def test_drain_cuts_off_after_its_time(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        await r.client(post(b"{}"))
        await r.sleep(0.1)
        assert await r.proxy.drain(2) == 1
        assert r.records[0].outcome == "cancelled"

    rig(scenario)


@pytest.mark.parametrize("closing", [b"1.1\r\nConnection: close", b"1.0"])
def test_a_slow_client_gets_the_end_of_a_reply_that_closes_its_connection(rig: Any, closing: bytes) -> None:
    body = b"x" * 300_000

    async def scenario(r: Any) -> None:
        client = await r.client()
        client.transport.pause_reading()
        client.send(b"GET /v1/models HTTP/%s\r\nHost: p\r\n\r\n" % closing)
        await r.settle()
        await r.sleep(50)
        assert client.lost_ns is None
        client.transport.resume_reading()
        await client.end()
        assert body_of(client.got) == body

    rig(scenario, on_data=answer(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + body))


def test_a_drain_waits_for_the_end_of_a_reply_to_be_taken(rig: Any) -> None:
    body = b"x" * 300_000

    async def scenario(r: Any) -> None:
        client = await r.client()
        client.transport.pause_reading()
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: p\r\n\r\n")
        await r.settle()
        draining = r.loop.create_task(r.proxy.drain(10))
        await r.sleep(5)
        client.transport.resume_reading()
        assert await draining == 0
        await client.end()
        assert body_of(client.got) == body

    rig(scenario, on_data=answer(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + body))


def test_a_client_that_takes_nothing_of_the_end_is_cut_off(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client()
        client.transport.pause_reading()
        client.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
        await r.settle()
        began = r.loop.now_ns()
        await client.end()
        assert 60 <= (client.lost_ns - began) / 1e9 < 62

    rig(scenario, on_data=answer(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300_000))


def test_error_replies_pass_and_count_as_rejected(rig: Any, post: Any) -> None:
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'

    async def scenario(r: Any) -> None:
        client = await r.client(post(b'{"model":"m","stream":true}'))
        await client.has(b"too long")
        assert body_of(client.got) == body
        record = await r.settle()
        assert (record.outcome, record.status, record.error) == ("rejected", 400, "too long")

    reply = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    rig(scenario, on_data=answer(reply % (len(body), body)))


def test_many_large_bodies_at_once_are_read_turn_by_turn(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        bodies = [b'{"messages":[{"role":"user","content":"%d%s"}]}' % (k, b"x" * 50_000) for k in range(7)]
        clients = [await r.client(post(body)) for body in bodies]
        for client in clients:
            await client.has(b"200 OK")
        await r.sleep(0.1)
        assert len(r.records) == len(bodies)
        assert [record.t_arrival_ns for record in r.records] == sorted(record.t_arrival_ns for record in r.records)
        assert len({record.messages[0]["digest"] for record in r.records}) == len(bodies)

    rig(scenario, on_data=answer(OK))


def test_an_engine_that_cannot_be_reached_is_passed_over(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        for count in range(1, 4):
            client = await r.client(post(b'{"model":"m"}'))
            await client.has(b"200 OK")
            await r.settle(count)
        assert [(x.outcome, x.upstream) for x in r.records] == [("ok", "127.0.0.1:9000")] * 3
        assert [x.note is not None and "given to another engine" in x.note for x in r.records] == [True, False, False]
        await r.sleep(3)
        client = await r.client(post(b'{"model":"m"}'))
        await client.has(b"200 OK")
        assert (await r.settle(4)).note is not None  # it was looked whether the other is back

    rig(scenario, on_data=answer(OK), upstreams=("http://127.0.0.1:9001", "http://127.0.0.1:9000"))


def test_no_engine_at_all_is_a_502(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        for count in (1, 2):
            client = await r.client(post(b'{"model":"m"}'))
            await client.has(b"502 Bad Gateway")
            assert (await r.settle(count)).outcome == "unreachable"

    rig(scenario, listen=False, upstreams=("http://127.0.0.1:9001", "http://127.0.0.1:9000"))


def test_a_large_body_that_had_to_wait_in_the_queue_is_not_taken_for_a_slow_one(rig: Any, post: Any) -> None:
    body = b"x" * 1_500_000

    async def scenario(r: Any) -> None:
        first = await r.client(post(b'{"model":"m"}'))
        engine = await r.accepted()
        await engine.has(b"}")
        large = await r.client(post(body)[:100_000])
        await r.sleep(400)
        engine.send(OK)
        await first.has(b"200 OK")
        await r.sleep(1)
        large.send(post(body)[100_000:])
        await r.engine[1].until(lambda w: w.got.endswith(body))
        r.engine[1].send(OK)
        await large.has(b"200 OK")
        record = await r.settle(2)
        assert (record.outcome, record.bytes_in) == ("ok", len(body))

    rig(scenario, max_concurrency=1)


def test_metadata_tags_are_answered(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        body = json.dumps({"metadata": {"workflow_id": "wé", "workflow_parents": "a;kind=tool,b"}}).encode()
        client = await r.client(post(body, "/v1/chat/completions", "X-Request-Id: mine"))
        await client.has(b"{}")
        assert b"x-workflow-id: w%C3%A9\r\nx-workflow-node: mine\r\n" in client.got
        assert b"X-Request-Id: mine\r\n" in r.engine[0].reads[0][1]
        record = await r.settle()
        assert record.tag_source == "metadata"
        assert [d["on"] for d in record.deps] == ["a", "b"]

    rig(scenario, on_data=answer(OK))


def test_a_request_under_way_is_read_soon_and_its_body_let_go(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        await r.client(post(STREAM))
        engine = await r.accepted()
        await engine.has(b'"hi"')
        front = next(iter(r.proxy._hub.fronts))
        exchange = front.exchange
        await r.sleep(LATER_S + 0.001)
        assert (exchange.unread, exchange.body, exchange.facts.model) == (False, b"", "m")

    rig(scenario)


def test_a_whole_reply_that_comes_in_two_reads_is_read_too(rig: Any, post: Any) -> None:
    body = b'{"id":"c","choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def scenario(r: Any) -> None:
        client = await r.client(post(b'{"model":"m","messages":[]}'))
        engine = await r.accepted()
        await engine.has(b'"messages"')
        engine.send(head)
        await client.has(b"Content-Length")
        engine.send(body)
        await client.has(body)
        record = await r.settle()
        assert (record.outcome, record.prompt_tokens, record.finish_reason) == ("ok", 7, "stop")
        assert record.read_bytes == (0, len(body))

    rig(scenario)


def test_many_reads_are_kept_packed(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(post(ASKED))
        engine = await r.accepted()
        await engine.has(b'"messages"')
        engine.send(SSE_HEAD)
        for k in range(200):
            engine.send(chunk(token(str(k))))
            await client.has(token(str(k)))
        exchange = next(iter(r.proxy._hub.fronts)).exchange
        exchange.look()
        assert isinstance(exchange.read_times, array)
        engine.send(chunk(DONE) + b"0\r\n\r\n")
        record = await r.settle()
        assert record.read_tokens == (0, *[1] * 200, 0)
        assert (len(record.read_dt_ns), sum(record.read_bytes)) == (202, record.bytes_out)

    rig(scenario)


def test_streams_that_ended_are_recorded_one_a_turn(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        clients = [await r.client(post(ASKED)) for _ in range(3)]
        for client in clients:
            await client.has(b"0\r\n\r\n")
        r.proxy._hub._catch_up(MAX_LOOK)
        counts = [len(r.records)]
        for _ in range(2):
            await r.sleep(0)
            counts.append(len(r.records))
        assert counts == [1, 2, 3]

    rig(scenario, on_data=answer(SSE_HEAD + chunk(token("a")) + chunk(DONE) + b"0\r\n\r\n"))
