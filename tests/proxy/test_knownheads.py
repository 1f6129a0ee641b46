"""Heads met before: the short way decides, and writes, exactly what llhttp and proxy/heads.py do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import ProxyConfig
from proxy.heads import RequestHead, upstream_head
from proxy.knownheads import MAX_LINES, MAX_RECENT, VARIETY, KnownHeads
from proxy.reading import Intake
from proxy.refusal import Refusal
from tests.proxy.test_heads import SMUGGLING

CONFIG = ProxyConfig(("http://127.0.0.1:1",))
KEYED = ProxyConfig(("http://127.0.0.1:1",), key="s3cret")
SDK = [
    b"POST /v1/chat/completions HTTP/1.1",
    b"Host: 127.0.0.1:8080",
    b"Accept-Encoding: gzip, deflate",
    b"Connection: keep-alive",
    b"Accept: application/json",
    b"Content-Type: application/json",
    b"User-Agent: OpenAI/Python 3.54.0",
    b"X-Stainless-Lang: python",
    b"Authorization: Bearer sk-test",
]


def head(*more: bytes, base: list[bytes] = SDK) -> bytes:
    return b"\r\n".join([*base, *more]) + b"\r\n\r\n"


def seen(intake: Intake) -> dict[str, Any]:
    """All that an intake says of a request, our own made-up ids left out."""
    made, refusal = intake.head, intake.refusal
    out: dict[str, Any] = {
        "refusal": (refusal.status, refusal.code) if refusal is not None else None,
        "complete": intake.complete,
        "pipelined": intake.pipelined,
        "size": intake.size,
        "body": b"".join(intake.take()),
        "tunnel": intake.tunnel,
        "shown": intake.path,
    }
    if isinstance(made, RequestHead):
        own = made.request_id.startswith("jg-")
        made.request_id = "jg" if own else made.request_id
        out |= {"wire": upstream_head(made, "e", "", b""), "tags": made.tags, "keep": made.keep_alive}
        out |= {"api": made.api, "path": made.path, "length": made.length, "expect": made.expect}
        out |= {"chunked": made.chunked, "http10": made.http10, "method": made.method}
    return out


def read(known: KnownHeads, parts: list[bytes], config: ProxyConfig = CONFIG) -> dict[str, Any]:
    intake = Intake(known, config, frozenset())
    for part in parts:
        if part and not intake.complete and intake.refusal is None:
            intake.feed(part)
        elif part and intake.complete and intake.tunnel is None:
            intake.after(part)
    return seen(intake)


def warm(known: KnownHeads, *heads: bytes, config: ProxyConfig = CONFIG) -> None:
    for data in heads:
        for _ in range(4):
            read(known, [data], config)


NAMES = [b"Content-Length", b"content-length", b"Host", b"X-Workflow-Id", b"traceparent", b"X-Request-Id", b"Cookie"]
NAMES += [b"Authorization", b"X-Api-Key", b"Connection", b"Transfer-Encoding", b"Expect", b"Upgrade", b"TE", b"X-Other"]
NAMES += [b"Content-Length ", b"X Bad", b"", b"x-session-id", b"baggage", b"Keep-Alive", b"Proxy-Authorization"]
VALUES = [
    b"0",
    b"2",
    b"3",
    b"+2",
    b"2, 2",
    b"99999999999999999999",
    b"p",
    b"w1",
    b" two",
    b"tail ",
    b"a\tb",
    b"\x00",
    b"a\rb",
]
VALUES += [
    b"keep-alive",
    b"close",
    b"keep-alive, X-Other",
    b"chunked",
    b"100-continue",
    b"websocket",
    b"h2c",
    b"\xff\xfe",
    b"",
]
VALUES += [
    b"Bearer sk",
    b"Bearer s3cret",
    b"workflow.id=w2",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
]
line = st.builds(
    lambda name, sep, value: name + sep + value,
    st.sampled_from(NAMES),
    st.sampled_from([b": ", b": ", b": ", b":", b":  ", b" : "]),
    st.sampled_from(VALUES) | st.binary(max_size=5),
)
first = st.sampled_from(
    [
        b"POST /v1/chat/completions HTTP/1.1",
        b"POST /v1/completions HTTP/1.1",
        b"GET /v1/models HTTP/1.1",
        b"POST /pause HTTP/1.1",
        b"POST /v1/completions HTTP/1.0",
        b"GET /v1/realtime HTTP/1.1",
        b"POST  /v1/completions HTTP/1.1",
    ]
)
request = st.builds(
    lambda start, lines, body: b"\r\n".join([start, b"Host: p", *lines]) + b"\r\n\r\n" + body,
    first,
    st.lists(line, max_size=5),
    st.sampled_from([b"", b"{}", b"{}\r\n", b"{} ", b"0\r\n\r\n", b"POST / HTTP/1.1\r\n"]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(request, min_size=1, max_size=3), request, st.lists(st.integers(0, 400), max_size=3))
def test_both_ways_agree(before: list[bytes], data: bytes, cuts: list[int]) -> None:
    """Whatever was met before, and however often, a request is judged and written as if nothing had been."""
    for config in (CONFIG, KEYED):
        known = KnownHeads(config)
        warm(known, *before, data, config=config)
        at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
        parts = [data[a:b] for a, b in pairwise(at)]
        assert read(known, parts, config) == read(KnownHeads(config), parts, config)
        for other in before:
            assert read(known, [other], config) == read(KnownHeads(config), [other], config)


varied = st.lists(line | st.sampled_from(SDK[1:]), max_size=5)


@settings(max_examples=400, deadline=None)
@given(varied, st.sampled_from([b"", b"{}"]))
def test_a_trained_shape_lets_nothing_odd_through(lines: list[bytes], body: bytes) -> None:
    """The dangerous case: the constant lines fit a plan, the others are anything."""
    known = KnownHeads(CONFIG)
    for more in ([], [b"Content-Length: 2"], [b"X-Workflow-Id: w", b"Content-Length: 2"]):
        warm(known, head(*more) + (b"{}" if more else b""))
    warm(known, head(b"Content-Length: 2", b"X-Request-Id: r", b"traceparent: t", b"Cookie: c") + b"{}")
    data = head(*lines) + body
    assert read(known, [data]) == read(KnownHeads(CONFIG), [data])


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_is_refused_after_any_training(name: str) -> None:
    data = SMUGGLING[name]
    known = KnownHeads(CONFIG)
    start = b"POST /v1/completions HTTP/1.1"
    for lines in ([b"Host: p"], [b"Host: p", b"Content-Length: 5"], [b"Host: p", b"X-A: b"], [b"Host: p", b"X-A: c"]):
        warm(known, head(*lines, base=[start]) + (b"hello" if len(lines[-1]) > 8 else b""))
    warm(known, data)
    for _ in range(2):
        result = read(known, [data])
        assert result == read(KnownHeads(CONFIG), [data])
        assert result["refusal"] is not None or not result["complete"]


def test_the_short_way_is_taken() -> None:
    known = KnownHeads(CONFIG)
    for k in range(4):
        data = head(b"X-Workflow-Id: w%d" % k, b"traceparent: 00-%d" % k, b"Content-Length: %d" % (k + 1))
        read(known, [data + b"x" * (k + 1)])
    data = head(b"X-Workflow-Id: other", b"traceparent: 00-9", b"Content-Length: 77")
    made, end = known.read(data + b"body") or (None, 0)
    assert isinstance(made, RequestHead)
    assert end == len(data)
    assert (made.length, made.tags["x-workflow-id"], made.api) == (77, "other", "chat")
    wire = upstream_head(made, "e", "", b"")
    assert b"Authorization: Bearer sk-test\r\n" in wire
    assert b"workflow" not in wire.lower()


def test_a_field_that_always_differs_does_not_keep_heads_from_being_known() -> None:
    known = KnownHeads(CONFIG)
    for k in range(VARIETY + 6):
        read(known, [head(b"Idempotency-Key: k%d" % k, b"Content-Length: 2") + b"{}"])
    made, _ = known.read(head(b"Idempotency-Key: never met", b"Content-Length: 2")) or (None, 0)
    assert isinstance(made, RequestHead)
    assert b"Idempotency-Key: never met\r\n" in upstream_head(made, "e", "", b"")


def test_the_key_is_asked_for_every_time() -> None:
    known = KnownHeads(KEYED)
    good = [line if not line.startswith(b"Auth") else b"Authorization: Bearer s3cret" for line in SDK]
    warm(known, head(b"Content-Length: 2", base=good) + b"{}", config=KEYED)
    made, _ = known.read(head(b"Content-Length: 2", base=good)) or (None, 0)
    assert isinstance(made, RequestHead)
    for bad in (b"Authorization: Bearer s3cret2", b"Authorization: Bearer", b"X-Api-Key: other"):
        lines = [bad if line.startswith(b"Auth") else line for line in SDK]
        refusal, _ = known.read(head(b"Content-Length: 2", base=lines)) or (None, 0)
        assert refusal is None or (isinstance(refusal, Refusal) and refusal.status == 401)
        data = head(b"Content-Length: 2", base=lines) + b"{}"
        result = read(known, [data], KEYED)
        assert result["refusal"] == (401, "bad_key")
        assert result["shown"] == "/v1/chat/completions"  # the shape of the error follows the path
        assert "wire" not in result


def test_credentials_are_never_kept_and_memory_is_bounded() -> None:
    known = KnownHeads(CONFIG)
    warm(known, head(b"Cookie: secret-cookie", b"X-Api-Key: secret-key", b"Proxy-Authorization: secret-proxy"))
    for k in range(MAX_LINES + 100):
        read(known, [head(b"X-%d: 1" % (k % 5000), b"X-V: %d" % k)])
    kept = [known._numbers, known._once, known._plans, known._recent, known._variety]
    assert all(len(table) <= MAX_LINES for table in kept)
    text = repr(kept)
    for secret in ("sk-test", "secret-cookie", "secret-key", "secret-proxy"):
        assert secret not in text


varied = st.tuples(
    st.sampled_from([b"Authorization: ", b"authorization: ", b"Authorization:  ", b"X-Other: "]),
    st.sampled_from([b"Bearer a", b"", b" b", b"c ", b"d\re", b"\x00", b"\xff", b"x" * 300]),
    st.sampled_from([b"X-Workflow-Id: ", b"Authorization: ", b"Content-Length: "]),
    st.sampled_from([b"0", b"wf-1", b"w\tf", b"", b"-1"]),
    st.sampled_from([b"Accept: */*", b"Accept: text/html", b"Connection: close"]),
    st.booleans(),
)


@given(st.lists(varied, min_size=1, max_size=6), st.sampled_from([CONFIG, KEYED]))
def test_a_head_like_the_last_one_is_read_as_by_llhttp(others: list[Any], config: ProxyConfig) -> None:
    """Values between numbered lines, in the last head's spelling or another: the three ways agree."""
    known = KnownHeads(config)
    own = b"Authorization: Bearer s3cret" if config is KEYED else b"Authorization: Bearer z"
    usual = head(own, b"Accept: */*", b"X-Workflow-Id: wf-0", base=SDK[:-1])
    for _ in range(4):
        read(known, [usual], config)
    assert known._recent
    for auth, token, name, value, line, swap in others:
        first, second = auth + token, name + value
        lines = [second, line, first] if swap else [first, line, second]
        raw = head(*lines, base=SDK[:-1])
        got, wanted = read(known, [raw], config), read(KnownHeads(config), [raw], config)
        if wanted["refusal"] is not None:  # a refused request is not read to its end
            got, wanted = {"refusal": got["refusal"]}, {"refusal": wanted["refusal"]}
        assert got == wanted
        read(known, [usual], config)


def test_clients_of_several_kinds_in_turn_are_all_known() -> None:
    """More kinds than are tried first, some of them with the same beginning."""
    known = KnownHeads(CONFIG)
    kinds = [[b"X-Kind: %d" % k, b"traceparent: 00-%d", b"Content-Length: 2"] for k in range(MAX_RECENT + 2)]
    kinds += [[b"X-Workflow-Id: %d", b"Content-Length: 2"], [b"X-Workflow-Id: %d", b"Cookie: %d", b"Content-Length: 2"]]

    def of(kind: list[bytes], number: int) -> bytes:
        return head(*(line % number if b"%" in line else line for line in kind)) + b"{}"

    for number in range(4):
        for kind in kinds:
            read(known, [of(kind, number)])
    for number in range(10, 13):
        for kind in kinds:
            data = of(kind, number)
            made, end = known.read(data) or (None, 0)
            assert isinstance(made, RequestHead)
            assert data[end:] == b"{}"
            assert read(known, [data]) == read(KnownHeads(CONFIG), [data])


@pytest.mark.parametrize("config", [CONFIG, KEYED])
def test_a_value_that_looks_like_a_format_or_an_expression_stays_as_it_is(config: ProxyConfig) -> None:
    known = KnownHeads(config)
    own = [b"Authorization: Bearer s3cret" if line.startswith(b"Auth") else line for line in SDK]
    lines = [b"X-Odd: 100%b %s (.*) \\1", b"traceparent: %d", b"X-Request-Id: [a-z]+", b"Content-Length: 2"]
    data = head(*lines, base=own) + b"{}"
    warm(known, data, config=config)
    assert known.read(data) is not None
    assert read(known, [data], config) == read(KnownHeads(config), [data], config)
