"""include_usage: the request gains only the option, the reply loses only the extra usage event, under any split."""

from __future__ import annotations

import json
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.framing import Chunked
from proxy.splice import MAX_HELD, UsageCut, is_usage_event, splice

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
values = st.recursive(scalars, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3))
bodies = st.dictionaries(st.text(max_size=6), values, max_size=5)
options = st.sampled_from(["absent", None, {}, {"include_usage": False}, {"include_obfuscation": False}])


@given(bodies, options, st.sampled_from([None, 1]), st.sampled_from(["", " ", "\r\n\t"]))
def test_splice_adds_only_the_option(body: dict[str, object], option: object, indent: int | None, blank: str) -> None:
    body = {**body, "stream": True}
    body.pop("stream_options", None)
    if option != "absent":
        body["stream_options"] = option
    wire = (blank + json.dumps(body, indent=indent, ensure_ascii=False) + blank).encode()
    spliced = splice(wire, orjson.loads(wire))
    assert spliced is not None
    assert json.loads(spliced) == {
        **body,
        "stream_options": {**(option if isinstance(option, dict) else {}), "include_usage": True},
    }


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"stream": false}',
        b'{"stream": 1}',
        b'{"stream": "true"}',
        b'{"stream": true, "stream_options": {"include_usage": true}}',
        b'{"stream": true, "stream_options": 5}',
        b'{"messages": [{"stream": true}]}',
    ],
)
def test_splice_leaves_other_bodies_alone(body: bytes) -> None:
    assert splice(body, orjson.loads(body)) is None


def test_splice_changes_the_option_where_it_stands() -> None:
    body = '{"é": "stream_options", "stream_options": {"a": [1, 2]}, "stream": true }'.encode()
    spliced = splice(body, orjson.loads(body))
    assert (
        spliced
        == '{"é": "stream_options", "stream_options": {"a":[1,2],"include_usage":true}, "stream": true }'.encode()
    )


def test_usage_in_every_event_is_not_switched_on_by_ours() -> None:
    body = b'{"stream":true,"stream_options":{"continuous_usage_stats":true,"x":1}}'
    assert splice(body, orjson.loads(body)) == b'{"stream":true,"stream_options":{"x":1,"include_usage":true}}'


TOKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a\\n\\"usage\\""}}]}'
NULLED = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"b"}}],"usage":null}'
CONTINUOUS = b'data: {"id":"c","choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":1}}'
FILTER = b'data: {"choices":[],"prompt_filter_results":[]}'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
SPACED = b'data:{"usage": {"prompt_tokens": 3}, "choices": []}'
DONE = b"data: [DONE]"
COMMENT = b": ping"
NAMED = b'event: x\ndata: {"choices":[],"usage":{}}'
EVENTS = [TOKEN, NULLED, CONTINUOUS, FILTER, USAGE, SPACED, DONE, COMMENT, NAMED]


@pytest.mark.parametrize(("event", "is_it"), [(e, e in (USAGE, SPACED)) for e in EVENTS])
def test_what_is_a_usage_event(event: bytes, is_it: bool) -> None:
    assert is_usage_event(event) is is_it


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def unchunk(wire: bytes) -> bytes:
    walker = Chunked()
    payload = walker.feed(wire)
    assert walker.done
    return payload


@given(
    st.lists(st.sampled_from(EVENTS), max_size=9),
    st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    st.lists(st.integers(0, 2000), max_size=12),
    st.lists(st.integers(0, 4000), max_size=20),
)
def test_only_usage_events_go(events: list[bytes], end: bytes, chunk_cuts: list[int], reads: list[int]) -> None:
    text = b"".join(e + end for e in events)
    chunks = [b"%x\r\n%s\r\n" % (len(c), c) for c in cut_at(text, chunk_cuts) if c]
    wire = b"".join(chunks) + b"0\r\nX-T: 1\r\n\r\n"
    cut, out, seen, used = UsageCut(), b"", b"", 0
    for part in cut_at(wire, reads):
        seen += cut.feed(part)
        out += cut.out
        used += cut.used
    assert cut.done
    assert used == len(wire)
    assert seen == text  # the observer sees everything, the usage event too
    assert unchunk(out) == b"".join(e + end for e in events if e not in (USAGE, SPACED))
    assert out.endswith(b"0\r\nX-T: 1\r\n\r\n")
    if not {USAGE, SPACED} & set(events):
        assert out == wire


@given(st.lists(st.sampled_from([TOKEN, NULLED, CONTINUOUS, FILTER, COMMENT]), min_size=1, max_size=9))
def test_whole_events_are_never_held(events: list[bytes]) -> None:
    cut = UsageCut()
    for event in events:
        wire = b"%x\r\n%s\n\n\r\n" % (len(event) + 2, event)
        cut.feed(wire)
        assert cut.out == wire


def test_a_chunk_with_usage_and_more_is_framed_anew_alone() -> None:
    cut = UsageCut()
    first, second = TOKEN + b"\n\n", TOKEN + b"\n\n" + USAGE + b"\n\n" + DONE + b"\n\n"
    kept = TOKEN + b"\n\n" + DONE + b"\n\n"
    raw = b"%X;ext=1\r\n%s\r\n" % (len(first), first)
    cut.feed(raw + b"%x\r\n%s\r\n0\r\n\r\n" % (len(second), second))
    assert cut.out == raw + b"%x\r\n%s\r\n0\r\n\r\n" % (len(kept), kept)
    assert cut.removed == 1


def test_an_endless_event_is_let_through() -> None:
    cut, text = UsageCut(), b"data: " + b"x" * (2 * MAX_HELD)
    wire = b"".join(b"1000\r\n%s\r\n" % text[at : at + 4096] for at in range(0, 4096 * 120, 4096)) + b"0\r\n\r\n"
    out, seen = b"", b""
    for at in range(0, len(wire), 1500):
        seen += cut.feed(wire[at : at + 1500])
        out += cut.out
    assert cut.gave_up
    assert out == wire
    assert seen == text[: 4096 * 120]


def test_a_cut_connection_gives_back_what_was_held() -> None:
    cut = UsageCut()
    part = b"%x\r\n%s" % (len(USAGE) + 2, USAGE[:30])
    cut.feed(part)
    assert cut.out == b""
    assert cut.flush() == part
