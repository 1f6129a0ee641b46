"""Heads: what is refused, stripped, kept; the proxy's key; smuggling. Over the wire where llhttp decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import ProxyConfig
from proxy.framing import FramingError
from proxy.heads import RequestHead, header_value, plain_reply, read_request, upstream_head
from proxy.refusal import Refusal, refusal_reply
from proxy.replyhead import read_reply

CONFIG = ProxyConfig(("http://127.0.0.1:1",))
POST = b"POST /v1/completions HTTP/1.1\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def read(headers: list[tuple[bytes, bytes]], config: ProxyConfig = CONFIG, target: bytes = b"/v1/completions") -> Any:
    return read_request(b"POST", target, "1.1", [(b"Host", b"p"), *headers], True, config, frozenset(config.allow))


SMUGGLING = {
    "cl and te": POST + b"Host: p\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te and cl": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two cl": POST + b"Host: p\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "equal cl": POST + b"Host: p\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "cl list": POST + b"Host: p\r\nContent-Length: 5, 5\r\n\r\nhello",
    "cl sign": POST + b"Host: p\r\nContent-Length: +5\r\n\r\nhello",
    "cl hex": POST + b"Host: p\r\nContent-Length: 0x5\r\n\r\nhello",
    "te other": POST + b"Host: p\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "te twice": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "te gzip": POST + b"Host: p\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te http10": b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te tab": POST + b"Host: p\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "obs-fold": POST + b"Host: p\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "space before colon": POST + b"Host: p\r\nContent-Length : 5\r\n\r\nhello",
    "bare lf": b"POST /v1/completions HTTP/1.1\nHost: p\nContent-Length: 0\n\n",
    "bare cr": POST + b"Host: p\r\nX-A: b\rX-B: c\r\n\r\n",
    "nul in value": POST + b"Host: p\r\nX-A: b\x00c\r\n\r\n",
    "nul in name": POST + b"Host: p\r\nX\x00A: b\r\n\r\n",
    "empty name": POST + b"Host: p\r\n: b\r\n\r\n",
    "no host": POST + b"Content-Length: 0\r\n\r\n",
    "two hosts": POST + b"Host: p\r\nHost: q\r\nContent-Length: 0\r\n\r\n",
    "absolute target": b"POST http://evil/v1/completions HTTP/1.1\r\nHost: p\r\nContent-Length: 0\r\n\r\n",
    "authority target": b"CONNECT evil:80 HTTP/1.1\r\nHost: evil\r\n\r\n",
    "http2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http 0.9": b"GET /v1/models\r\n\r\n",
    "version": b"POST /v1/completions HTTP/1.2\r\nHost: p\r\nContent-Length: 0\r\n\r\n",
    "chunk size text": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunk size sign": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "chunk size 0x": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size overflow": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "chunk size lf": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "chunk too long": POST + b"Host: p\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "expectation": POST + b"Host: p\r\nExpect: something\r\nContent-Length: 0\r\n\r\n",
    "head over 64 KB": POST + b"Host: p\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n",
    "head over 64 KB, no end": POST + b"Host: p\r\n" + b"X-A: b\r\n" * 9_000,
    "body over the cap": POST + b"Host: p\r\nContent-Length: 99999999\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_never_reaches_the_engine(rig: Any, name: str) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(SMUGGLING[name])
        await client.end()
        first = client.got.split(b"\r\n")[0]
        assert first.split(b" ")[1] in (b"400", b"413", b"417", b"431", b"501"), client.got[:200]
        assert client.got.count(b"Content-Length: ") == 1
        assert all(not w.got for w in r.engine)

    rig(scenario, on_data=lambda wire: wire.send(OK))


@pytest.mark.parametrize(
    "target",
    [
        b"/pause",
        b"/v1/load_lora_adapter",
        b"/reset_prefix_cache",
        b"/server_info",
        b"/",
        b"/v1/completions/",
        b"//v1/completions",
        b"/v1/../pause",
        b"/v1/models/../../pause",
        b"/v1/models/..%2f..%2fpause",
        b"/v1/models/a/../b",
        b"/V1/completions",
        b"/v1/completions%00",
        b"/v1/completions;x",
        b"/v1/responses/a/b",
        b"/workflows",
        b"/healthz",
    ],
)
def test_paths_off_the_list_are_refused(target: bytes) -> None:
    result = read([], target=target)
    assert isinstance(result, Refusal)
    assert result.status == 404


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/models/meta-llama%2F".replace(b"%2F", b""),
        b"/v1/models/org/name",
        b"/v1/responses/resp_1/cancel",
        b"/v1/audio/speech",
        b"/v1/completions?a=/pause",
        b"/tokenize",
        b"/v1/messages/count_tokens",
    ],
)
def test_paths_on_the_list_pass(target: bytes) -> None:
    assert isinstance(read([], target=target), RequestHead)


def test_a_path_can_be_allowed_by_name() -> None:
    config = ProxyConfig(("http://127.0.0.1:1",), allow=("/sleep",))
    assert isinstance(read([], config, b"/sleep"), RequestHead)
    assert isinstance(read([], config, b"/sleepy"), Refusal)


def test_what_is_stripped_and_what_is_kept() -> None:
    head = read(
        [
            (b"Connection", b"keep-alive, X-Hop"),
            (b"X-Hop", b"1"),
            (b"Keep-Alive", b"timeout=5"),
            (b"TE", b"trailers"),
            (b"Proxy-Authorization", b"secret"),
            (b"Upgrade", b"h2c"),
            (b"HTTP2-Settings", b"x"),
            (b"X-Workflow-Id", b"w"),
            (b"X-Workflow-Node", b"n"),
            (b"X-Workflow-Parents", b"a,b;kind=tool"),
            (b"X-CUSTOM", b"kept"),
            (b"Authorization", b"Bearer mine"),
            (b"traceparent", b"00-1-2-01"),
            (b"Content-Length", b"3"),
        ]
    )
    wire = upstream_head(head, "engine:8000", "/base", b"Content-Length: 3\r\n")
    lines = wire.split(b"\r\n")
    assert lines[0] == b"POST /base/v1/completions HTTP/1.1"
    assert lines[1] == b"Host: engine:8000"
    assert b"X-CUSTOM: kept" in lines
    assert b"Authorization: Bearer mine" in lines
    assert b"traceparent: 00-1-2-01" in lines
    for gone in (b"hop", b"keep-alive", b"trailers", b"secret", b"h2c", b"http2", b"x-workflow"):
        assert gone not in wire.lower()
    assert head.tags["x-workflow-parents"] == "a,b;kind=tool"
    assert head.request_id.encode() in wire


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"Authorization", b"Bearer wrong")], 401),
        ([(b"Authorization", b"Basic s3cret")], 401),
        ([(b"Authorization", b"Bearer s3cret ")], None),
        ([(b"Authorization", b"bearer s3cret")], None),
        ([(b"X-Api-Key", b"s3cret")], None),
        ([(b"X-Api-Key", b"s3cret2")], 401),
    ],
)
def test_the_key_is_needed_and_never_passed_on(headers: list[tuple[bytes, bytes]], status: int | None) -> None:
    head = read(headers, ProxyConfig(("http://127.0.0.1:1",), key="s3cret"))
    if status is not None:
        assert isinstance(head, Refusal)
        assert head.status == status
        assert "s3cret" not in head.message
    else:
        assert b"s3cret" not in upstream_head(head, "e", "", b"")


def test_the_clients_own_credentials_pass_beside_the_key() -> None:
    headers = [(b"Authorization", b"Bearer theirs"), (b"X-Api-Key", b"s3cret")]
    wire = upstream_head(read(headers, ProxyConfig(("http://127.0.0.1:1",), key="s3cret")), "e", "", b"")
    assert b"Bearer theirs" in wire
    assert b"s3cret" not in wire


def test_the_upstream_key_replaces_the_clients() -> None:
    config = ProxyConfig(("http://127.0.0.1:1",), upstream_key="up")
    wire = upstream_head(read([(b"Authorization", b"Bearer theirs"), (b"X-Api-Key", b"t2")], config), "e", "", b"")
    assert b"Authorization: Bearer up\r\n" in wire
    assert b"theirs" not in wire
    assert b"t2" not in wire


def test_secrets_stay_out_of_a_configurations_repr() -> None:
    config = ProxyConfig(("http://127.0.0.1:1",), key="s3cret", upstream_key="up-key", run_key=b"run-key")
    for secret in ("s3cret", "up-key", "run-key"):
        assert secret not in repr(config)


@given(st.lists(st.tuples(st.from_regex(rb"[A-Za-z0-9-]{1,12}", fullmatch=True), st.binary(max_size=20)), max_size=8))
def test_no_header_can_start_a_second_request(pairs: list[tuple[bytes, bytes]]) -> None:
    """llhttp gives values without CR, LF and NUL; the head we write then ends exactly once."""
    clean = [(n, v.translate(None, b"\r\n\x00")) for n, v in pairs]
    head = read(clean)
    if isinstance(head, RequestHead):
        assert upstream_head(head, "e", "", b"").count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(
    ("raw", "status", "length", "chunked", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", 200, 5, False, True),
        (b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked", 200, None, True, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close", 200, None, False, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5", 200, 5, False, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5", 200, 5, False, True),
    ],
)
def test_reply_heads(raw: bytes, status: int, length: int | None, chunked: bool, keep: bool) -> None:
    head = read_reply(raw)
    assert (head.status, head.length, head.chunked, head.keep_alive) == (status, length, chunked, keep)
    assert not any(line.lower().startswith(b"connection") for line in head.lines)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: x",
        b"HTTP/1.1 200 OK\r\n folded",
        b"HTTP/1.1 200 OK\r\nA : b",
        b"HTTP/1.1 200 OK\r\nA: b\x00",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
    ],
)
def test_bad_reply_heads(raw: bytes) -> None:
    with pytest.raises(FramingError):
        read_reply(raw)


def test_reply_lines_keep_their_bytes() -> None:
    head = read_reply(
        b"HTTP/1.1 200 Fine\r\nsErVeR:  x\r\nConnection: x-hop\r\nX-Hop: 1\r\nset-cookie: a\r\nset-cookie: b"
    )
    assert head.start == b"HTTP/1.1 200 Fine\r\n"
    assert head.lines == [b"sErVeR:  x\r\n", b"set-cookie: a\r\n", b"set-cookie: b\r\n"]


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20))
def test_tags_are_safe_header_values(text: str) -> None:
    value = header_value(text)
    assert value.isascii()
    assert not {10, 13, 0} & set(value)


def test_errors_have_the_shape_of_the_api() -> None:
    refusal = Refusal(503, "queue_full", "later")
    assert b'{"error":{' in refusal_reply(refusal, "/v1/chat/completions", "r1")
    assert b'{"type":"error","error":{' in refusal_reply(refusal, "/v1/messages", None)
    assert refusal_reply(refusal, "/v1/models", None, "HEAD").endswith(b"\r\n\r\n")


@given(st.lists(st.sampled_from(["A: b", "accept-Encoding: gzip, br", "X: accept-encoding: gzip", "Accept-Encoding:"])))
def test_no_coding_of_the_reply_is_wished_for(lines: list[str]) -> None:
    plain = plain_reply("".join(f"{line}\r\n" for line in lines).encode()).decode().split("\r\n")
    wished = "Accept-Encoding: identity"
    assert plain == [*(wished if line.lower().startswith("accept-encoding") else line for line in lines), ""]
