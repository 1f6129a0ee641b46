"""The SSE splitter and parser: the same events however the stream is cut, bounded whatever comes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from engines.sse import Splitter, SseEvent, SseParser

PIECES = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data: ", b"event: x", b": note", b"id: 3", b"\n", b"\r\n", b"\r", b"\n\n", b"data"]
    ),
    max_size=30,
).map(b"".join)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({min(p, len(stream)) for p in places} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(borders)]


def reference(stream: bytes) -> list[SseEvent]:
    """The standard's algorithm, line by line, on the whole stream."""
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, event, data = [], None, None
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data is not None:
                events.append(SseEvent(event, b"\n".join(data)))
            event, data = None, None
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data = [*(data or []), value]
        elif name == b"event":
            event = value
    return events


@given(PIECES, st.lists(st.integers(0, 300), max_size=12))
def test_any_cut_gives_the_standard_events(stream: bytes, places: list[int]) -> None:
    parser = SseParser()
    got = [event for piece in cut(stream, places) for event in parser.feed(piece)]
    assert got == reference(stream)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.lists(st.integers(0, 900), max_size=12))
@example([8, 32], [43])
def test_long_events_are_dropped_and_counted_and_the_buffer_stays_bounded(sizes: list[int], places: list[int]) -> None:
    limit = 32
    stream = b"".join(b"x" * size + b"\n\n" for size in sizes)
    splitter = Splitter(limit)
    got = []
    for piece in cut(stream, places):
        got += splitter.split(piece)
        assert len(splitter.tail) <= limit + 1
    assert got == [b"x" * size for size in sizes if size <= limit]
    assert splitter.dropped == sum(size > limit for size in sizes)


def test_byte_order_mark_is_taken_off_once() -> None:
    assert SseParser().feed(b"\xef\xbb\xbfdata: x\n\n") == [SseEvent(None, b"x")]
