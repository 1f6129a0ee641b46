"""Body walkers: the payload and the end of a body are found under any split of the bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.framing import Chunked, FramingError, Length, NoBody, UntilClose, response_framing

payloads = st.lists(st.binary(min_size=1, max_size=60), max_size=8)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def encode(pieces: list[bytes], ext: bytes = b"", trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(p), ext, p) for p in pieces)
    return body + b"0\r\n" + trailers + b"\r\n"


@given(
    payloads,
    st.lists(st.integers(0, 1000), max_size=12),
    st.sampled_from([b"", b";a=b", b' ; q="1"']),
    st.sampled_from([b"", b"X-T: 1\r\n", b"A: 1\r\nB: 2\r\n"]),
    st.binary(max_size=9),
)
def test_chunked_any_split(pieces: list[bytes], cuts: list[int], ext: bytes, trailers: bytes, extra: bytes) -> None:
    wire = encode(pieces, ext, trailers)
    walker, payload, used = Chunked(), b"", 0
    for part in split(wire + extra, cuts):
        if walker.done:
            break
        payload += walker.feed(part)
        used += walker.used
    assert walker.done
    assert payload == b"".join(pieces)
    assert used == len(wire)


@given(st.binary(max_size=50), st.binary(max_size=9), st.lists(st.integers(0, 100), max_size=6))
def test_length_any_split(body: bytes, extra: bytes, cuts: list[int]) -> None:
    walker, payload, used = Length(len(body)), b"", 0
    for part in split(body + extra, cuts):
        if walker.done:
            break
        payload += walker.feed(part)
        used += walker.used
    assert walker.done
    assert (payload, used) == (body, len(body))


@given(payloads, st.integers(0, 400))
def test_chunked_is_not_done_early(pieces: list[bytes], cut: int) -> None:
    wire = encode(pieces)
    walker = Chunked()
    walker.feed(wire[: cut % len(wire)])
    assert not walker.done


@pytest.mark.parametrize(
    "wire",
    [
        b"zz\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"\r\n5\r\nhello\r\n",
        b"1" * 17 + b"\r\n",
        b"5;" + b"a" * 5000,
        b"0\r\n" + b"a" * 20000,
        b"5;\x00\r\nhello\r\n",
    ],
)
def test_bad_chunks_are_refused(wire: bytes) -> None:
    with pytest.raises(FramingError):
        Chunked().feed(wire)


@pytest.mark.parametrize(
    ("method", "status", "length", "chunked", "kind"),
    [
        ("HEAD", 200, 5, False, NoBody),
        ("POST", 204, None, False, NoBody),
        ("GET", 304, None, True, NoBody),
        ("POST", 200, None, True, Chunked),
        ("POST", 200, 5, False, Length),
        ("POST", 200, None, False, UntilClose),
    ],
)
def test_framing_of_replies(method: str, status: int, length: int | None, chunked: bool, kind: type) -> None:
    assert isinstance(response_framing(method, status, length, chunked), kind)
