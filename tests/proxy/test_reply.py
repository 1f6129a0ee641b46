"""Where a reply's head ends, and which replies need no walk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.framing import FramingError
from proxy.heads import RequestHead
from proxy.reply import MAX_REPLY_HEAD, is_whole, read_head

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nserver: x\r\n\r\n"


def request(method: str) -> RequestHead:
    return RequestHead(method, b"/x", "/x", None, True, False, 0, False, False, b"", "r", b"")


@given(st.integers(0, 2), st.binary(max_size=8), st.integers(0, 200))
def test_a_head_is_found_whatever_is_in_front_and_however_it_is_cut(interim: int, body: bytes, cut: int) -> None:
    data = CONTINUE * interim + HEAD + body
    head, kept = read_head(data[:cut])
    if head is None:
        assert cut < len(data) - len(body)
        assert len(kept) <= len(HEAD) - 1
        head, kept = read_head(kept + data[cut:])
    else:
        kept += data[cut:]
    assert head is not None
    assert (head.status, head.length, kept) == (200, 3, body)


@pytest.mark.parametrize("data", [b"HTTP/1.1 101 Go\r\n\r\n", b"x" * (MAX_REPLY_HEAD + 1), b"ICY 200 OK\r\n\r\n"])
def test_a_head_that_cannot_be_trusted(data: bytes) -> None:
    with pytest.raises(FramingError):
        read_head(data)


@pytest.mark.parametrize(
    ("start", "method", "rest", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n", "POST", b"abc", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n", "POST", b"ab", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n", "POST", b"abcd", False),
        (b"HTTP/1.1 200 OK\r\n", "POST", b"abc", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n", "HEAD", b"abc", False),
        (b"HTTP/1.1 304 Same\r\ncontent-length: 3\r\n", "POST", b"abc", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-type: text/event-stream\r\n", "POST", b"abc", False),
    ],
)
def test_only_a_body_of_the_length_said_needs_no_walk(start: bytes, method: str, rest: bytes, whole: bool) -> None:
    head, behind = read_head(start + b"\r\n" + rest)
    assert head is not None
    assert is_whole(head, request(method), behind) is whole
