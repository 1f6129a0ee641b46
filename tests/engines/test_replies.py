"""Replies out of reads, purely: the same in any cut, nothing raises, heads seen before change nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.replies import Head, ReplyParser

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def chunked(chunks: list[bytes]) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def counted(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


REPLIES = st.one_of(
    CHUNKS.map(lambda c: (chunked(c), 200, b"".join(c))),
    st.binary(max_size=60).map(lambda b: (counted(b), 200, b)),
    st.binary(max_size=60).map(lambda b: (EARLY + counted(b, b"429 Too Many"), 429, b)),
    st.just((b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"")),
)


def fed(parser: ReplyParser, wire: bytes, cuts: list[int]) -> bytes:
    """The body; the wire is given in reads, none after the end."""
    marks = [0, *sorted({c for c in cuts if 0 < c < len(wire)}), len(wire)]
    parser.start()
    body = b""
    for a, b in pairwise(marks):
        assert not parser.complete
        done = parser.feed(wire[a:b])
        assert done == parser.complete
        body += b"".join(parser.pieces)
        parser.pieces.clear()
    return body


@given(st.lists(st.tuples(REPLIES, st.lists(st.integers(1, 300), max_size=5)), min_size=1, max_size=6))
def test_replies_in_turn_are_the_same_in_any_cut(work: list[tuple[tuple[bytes, int, bytes], list[int]]]) -> None:
    known: dict[bytes, Head] = {}
    parser, fresh = ReplyParser(known), ReplyParser({})
    for (wire, status, body), cuts in work:
        for one in (parser, fresh):
            assert fed(one, wire, cuts) == body
            assert one.head is not None
            assert (one.head.status, one.head.keep, one.head.framed) == (status, True, True)
            assert (one.complete, one.extra, one.why) == (True, False, None)
        assert parser.head == fresh.head
    assert all(raw.startswith(b"HTTP/1.1 200") and head.status == 200 for raw, head in known.items())


@given(st.binary(max_size=300), st.booleans(), st.lists(st.integers(1, 300), max_size=5))
def test_no_bytes_raise_and_what_is_wrong_is_said(junk: bytes, after_head: bool, cuts: list[int]) -> None:
    parser = ReplyParser({})
    wire = (CHUNKED if after_head else b"") + junk
    marks = [0, *sorted({c for c in cuts if 0 < c < len(wire)}), len(wire)]
    parser.start()
    for a, b in pairwise(marks):
        if parser.complete or parser.why:
            break
        parser.feed(wire[a:b])
    assert not (parser.complete and parser.why)
    if parser.head is None and not parser.why:
        assert parser.pieces == []


@given(REPLIES, st.binary(min_size=1, max_size=30))
def test_bytes_after_the_end_belong_to_nobody(reply: tuple[bytes, int, bytes], more: bytes) -> None:
    """Empty lines between two replies are skipped, as llhttp does."""
    for known in ({}, {CHUNKED: Head(200, [], True, True)}):
        parser = ReplyParser(known)
        parser.start()
        assert parser.feed(reply[0] + more)
        assert b"".join(parser.pieces) == reply[2]
        assert parser.extra or not more.strip(b"\r\n")
        assert parser.why is None


@pytest.mark.parametrize(
    ("wire", "keep", "framed"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", False, False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", False, True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n", False, True),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", True, True),
    ],
)
def test_whether_the_connection_may_go_on_and_where_the_body_ends(wire: bytes, keep: bool, framed: bool) -> None:
    parser = ReplyParser({})
    parser.start()
    parser.feed(wire)
    assert parser.head is not None
    assert (parser.head.keep, parser.head.framed) == (keep, framed)


def test_few_heads_are_kept() -> None:
    known: dict[bytes, Head] = {}
    parser = ReplyParser(known)
    for number in range(300):
        head = b"HTTP/1.1 200 OK\r\ndate: %d\r\ncontent-length: 0\r\n\r\n" % number
        parser.start()
        assert parser.feed(head)
        assert head in known
        assert len(known) <= 64
