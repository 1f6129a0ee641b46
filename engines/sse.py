"""Server-sent events out of a byte stream cut anywhere: complete raw events, and their fields.

Lives here: line endings, event borders, bounds. `Splitter` is the hot path (no decoding); `SseParser` names the fields.
May not know: JSON, OpenAI, HTTP, time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

EVENT_LIMIT: Final = 1 << 20
"""bytes of one event; a longer one is dropped whole and counted, so the buffer stays bounded"""
_CR: Final = 13
_LF: Final = 10
"""looking for a byte by its number costs a tenth of looking for bytes of length 1"""
_BOM: Final = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One event: its name (None without an `event:` line) and its data lines joined by newlines."""

    event: bytes | None
    data: bytes


class Splitter:
    """Cuts a stream into raw events (lines joined by LF, without the closing blank line), however it was cut before."""

    __slots__ = ("_discarding", "_skip_lf", "_started", "_tail", "dropped", "limit")

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self.limit = limit
        self.dropped = 0
        """events over the limit, left out"""
        self._tail = b""
        self._skip_lf = self._discarding = self._started = False

    @property
    def tail(self) -> bytes:
        """What has come since the last complete event."""
        return self._tail

    @property
    def at_border(self) -> bool:
        """The next byte begins an event: nothing is kept, and no line feed of a cut CRLF is still to come."""
        return not self._tail and not self._skip_lf and not self._discarding and self._started

    @property
    def between(self) -> bool:
        """Nothing of an unfinished event is held, though a byte order mark may still come first."""
        return not self._tail and not self._skip_lf and not self._discarding

    def skip(self) -> None:
        """The caller has taken a read of whole events itself (only where `between` holds)."""
        self._started = True

    def split(self, data: bytes) -> list[bytes]:
        """Complete events in this read. CRLF and CR count as LF; blank pieces between events are left out."""
        if not self._started and data:
            # A byte order mark is taken off only where it came in one piece; cut in two it is part of an unknown field.
            self._started = True
            data = data.removeprefix(_BOM)
        if not self._tail and _CR not in data and data.endswith(b"\n\n") and not self._skip_lf:
            if self._discarding or len(data) > self.limit:
                return self._general(data)
            events = data[:-2].split(b"\n\n")
            return events if events[0] and events[-1] and events[0][0] != 10 else _tidy(events)
        return self._general(data)

    def _general(self, data: bytes) -> list[bytes]:
        data = self._normalise(data)
        # A border may straddle the reads: look one byte back.
        start = max(0, len(self._tail) - 1)
        buffer = self._tail + data
        cut = buffer.find(b"\n\n", start)
        if cut < 0:
            self._keep(buffer)
            return []
        events = []
        last = buffer.rfind(b"\n\n", start)
        if self._discarding:
            self._discarding = False
            first = cut + 2
        else:
            first = 0
        if first <= last:
            events = _tidy(buffer[first:last].split(b"\n\n"))
        self._tail = b""
        self._keep(buffer[last + 2 :])
        kept = [event for event in events if len(event) <= self.limit]
        self.dropped += len(events) - len(kept)
        return kept

    def _keep(self, tail: bytes) -> None:
        if self._discarding:
            self._tail = tail[-1:]
        elif len(tail) - tail.endswith(b"\n") > self.limit:  # half a border may be in it
            self.dropped += 1
            self._discarding = True
            self._tail = tail[-1:]
        else:
            self._tail = tail

    def _normalise(self, data: bytes) -> bytes:
        if self._skip_lf and data:
            self._skip_lf = False
            data = data.removeprefix(b"\n")
        if _CR in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data


def _tidy(pieces: list[bytes]) -> list[bytes]:
    """Surplus blank lines are no events."""
    return [stripped for piece in pieces if (stripped := piece.strip(b"\n"))]


def fields(raw: bytes) -> SseEvent | None:
    """Name and data of one raw event; None where it carries no data (comments, pings without data)."""
    if raw.startswith(b"data: ") and _LF not in raw:
        return SseEvent(None, raw[6:])
    event: bytes | None = None
    data: list[bytes] = []
    for line in raw.split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
    return SseEvent(event, b"\n".join(data)) if data else None


class SseParser:
    """feed(bytes) -> events, whatever the reads."""

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._splitter = Splitter(limit)

    @property
    def dropped(self) -> int:
        """Events over the limit, left out."""
        return self._splitter.dropped

    def feed(self, data: bytes) -> list[SseEvent]:
        """Events completed by this read."""
        return [event for raw in self._splitter.split(data) if (event := fields(raw)) is not None]
