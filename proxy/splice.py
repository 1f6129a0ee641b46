"""The one exception to "never change a byte": ask for usage in a stream, and take only that event out of the reply.

`splice` adds `stream_options.include_usage` to a request body whose client did not ask. `UsageCut` walks the chunked
reply and removes the extra usage event (an SSE event whose JSON has `choices: []` and a `usage` object): a chunk
without any of it passes as raw bytes, a chunk that holds part of it is framed anew without that part, one that holds
nothing else goes. An incomplete chunk or event that may still turn out to be the usage event is held until it is known;
no SSE client could have used it earlier. May not know: sockets, clocks.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import orjson

from proxy.framing import CHUNK_SIZE, MAX_SIZE_LINE, Chunked, FramingError, trailers_end

SPLICED_APIS: Final = frozenset({"chat", "completions"})
MAX_HELD: Final = 256 << 10
_INSERT: Final = b'"stream_options":{"include_usage":true},'
_CONTINUOUS: Final = "continuous_usage_stats"
"""vLLM heeds it beside include_usage only: with ours it would put usage into events whose client did not want it"""
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_HAS_CHOICE: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')


def splice(body: bytes, parsed: Any) -> bytes | None:
    """The body that also asks for usage, or None when it must stay as it is (no stream, or usage asked for already).

    `parsed` is the body's JSON. Every other byte of the body stays.
    """
    if not isinstance(parsed, dict) or parsed.get("stream") is not True:
        return None
    options = parsed.get("stream_options")
    if "stream_options" not in parsed:
        at = body.index(b"{") + 1
        return body[:at] + _INSERT + body[at:]
    if options is not None and (not isinstance(options, dict) or options.get("include_usage")):
        return None
    span = _value_span(body, "stream_options")
    if span is None:
        return None
    asked = {k: v for k, v in (options or {}).items() if k != _CONTINUOUS}
    return body[: span[0]] + orjson.dumps({**asked, "include_usage": True}) + body[span[1] :]


def _value_span(body: bytes, key: str) -> tuple[int, int] | None:
    """Byte span of the value of a top-level key (the last one, as JSON readers take it)."""
    text = body.decode()
    decoder = json.JSONDecoder()
    blank = re.compile(r"[ \t\r\n]*")
    found = None

    def skip(at: int) -> int:
        match = blank.match(text, at)
        return match.end() if match else at

    try:
        at = skip(skip(0) + 1)
        while text[at] != "}":
            name, at = decoder.raw_decode(text, at)
            start = skip(skip(at) + 1)
            _, at = decoder.raw_decode(text, start)
            if name == key:
                found = (start, at)
            at = skip(at)
            if text[at] == ",":
                at = skip(at + 1)
    except (ValueError, IndexError):
        return None
    if found is None:
        return None
    return len(text[: found[0]].encode()), len(text[: found[1]].encode())


def is_usage_event(event: bytes) -> bool:
    """True for the event that include_usage adds: one data line, JSON with choices [] and a usage object."""
    line = event.strip(b"\r\n")
    if b"\n" in line or b"\r" in line or not line.startswith(b"data:") or b'"usage"' not in line:
        return False
    try:
        value = orjson.loads(line[5:])
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.get("choices") == [] and isinstance(value.get("usage"), dict)


@dataclass(slots=True)
class _Chunk:
    raw: bytes
    payload: bytes


class UsageCut:
    """A chunked body walker that also gives what to relay: after `feed`, `out` holds the bytes for the client."""

    def __init__(self) -> None:
        self.done = False
        self.used = 0
        self.out = b""
        self.removed = 0
        self._carry = b""  # an incomplete chunk
        self._held: list[_Chunk] = []  # complete chunks with the start of an undecided event
        self._middle = False  # the next payload byte continues an event already relayed
        self._before = b""  # its last bytes, when it was
        self._plain: Chunked | None = None

    @property
    def gave_up(self) -> bool:
        """An undecided event grew past MAX_HELD: everything since passes untouched."""
        return self._plain is not None

    @property
    def at_border(self) -> bool:
        """The next byte begins a chunk and an event, and nothing is held."""
        if self._plain is not None:
            return self._plain.at_border
        return not (self._carry or self._held or self._middle or self.done)

    def feed(self, data: bytes) -> bytes:
        """Walk one read; the payload of the chunks completed by it. `out` is what the client gets."""
        if self._plain is not None:
            return self._pass_on(self._plain, data)
        carried = len(self._carry)
        buffer = self._carry + data if carried else data
        chunks, at, last = self._split(buffer)
        self._carry = b"" if self.done else buffer[at:]
        self.used = at - carried if self.done else len(data)
        payload = chunks[0].payload if len(chunks) == 1 else b"".join([c.payload for c in chunks])
        self._held += chunks
        out = self._decide() if self._held else b""
        self.out = out + last if last else out
        if not self.done and len(self._carry) + sum([len(c.raw) for c in self._held]) > MAX_HELD:
            payload += self._give_up()
        return payload

    def flush(self) -> bytes:
        """What is still held when the peer went away mid-body: it belongs to the client."""
        held = b"".join([c.raw for c in self._held]) + self._carry
        self._held, self._carry = [], b""
        return held

    def _give_up(self) -> bytes:
        self._plain = Chunked()
        payload = self._plain.feed(self._carry)
        self.out += self.flush()
        return payload

    def _pass_on(self, plain: Chunked, data: bytes) -> bytes:
        payload = plain.feed(data)
        self.done, self.used = plain.done, plain.used
        self.out = data if plain.used == len(data) else data[: plain.used]
        return payload

    def _split(self, buffer: bytes) -> tuple[list[_Chunk], int, bytes]:
        """The whole chunks at the start of the buffer, where they end, and the last-chunk with its trailers."""
        chunks: list[_Chunk] = []
        at, size = 0, len(buffer)
        while at < size:
            match = CHUNK_SIZE.match(buffer, at)
            if match is None:
                if b"\r\n" in buffer[at : at + MAX_SIZE_LINE] or size - at > MAX_SIZE_LINE:
                    raise FramingError(f"bad chunk size line {buffer[at : at + 32]!r}")
                break
            start, length = match.end(), int(match[1], 16)
            if length == 0:
                last = trailers_end(buffer, start)
                if last is None:
                    break
                self.done = True
                return chunks, last, buffer[at:last]
            end = start + length + 2
            if end > size:
                break
            if buffer[end - 2 : end] != b"\r\n":
                raise FramingError(f"chunk is longer than its size line says, near {buffer[end - 2 : end + 14]!r}")
            chunks.append(_Chunk(buffer[at:end], buffer[start : end - 2]))
            at = end
        return chunks, at, b""

    def _decide(self) -> bytes:
        """Release what is known, hold what is not."""
        held = self._held
        text = held[0].payload if len(held) == 1 else b"".join([c.payload for c in held])
        if text.endswith(b"\n\n") and text.rfind(b'"usage"') < 0:
            self._middle, self._before = False, b""
            self._held = []
            return held[0].raw if len(held) == 1 else b"".join([c.raw for c in held])
        starts, cuts = self._events(text)
        tail = starts[-1]
        continued = self._middle and tail == 0
        undecided = tail < len(text) and not continued and not _HAS_CHOICE.search(text, tail)
        return self._release(text, starts, cuts, tail if undecided and not self.done else len(text))

    def _events(self, text: bytes) -> tuple[list[int], list[tuple[int, int]]]:
        """Where events start in the text (the last may be incomplete or empty), and the spans of usage events."""
        starts, cuts = [0], []
        behind = len(self._before)  # an event's end may be cut between two chunks
        for match in _EVENT_END.finditer(self._before + text):
            start, end = starts[-1], match.end() - behind
            if end <= 0:
                continue
            whole = not (self._middle and len(starts) == 1)
            if whole and is_usage_event(text[start : max(match.start() - behind, start)]):
                cuts.append((start, end))
            starts.append(end)
        return starts, cuts

    def _release(self, text: bytes, starts: list[int], cuts: list[tuple[int, int]], keep: int) -> bytes:
        """Relay the chunks in front of the one that holds offset `keep`, without the cut spans; hold the others."""
        ends = list(accumulate(len(c.payload) for c in self._held))
        count = bisect_right(ends, keep)
        border = ends[count - 1] if count else 0
        for first, behind in reversed(cuts):  # never split a usage event between released and held
            if first < border < behind:
                count = bisect_right(ends, first)
                border = ends[count - 1] if count else 0
        out, at = [], 0
        for chunk, end in zip(self._held[:count], ends):
            out.append(_without(chunk, [(a - at, b - at) for a, b in cuts if a < end and b > at]))
            at = end
        self.removed += sum(behind <= border for _, behind in cuts)
        self._held = self._held[count:]
        if border:
            self._middle = border not in starts
            self._before = text[max(0, border - 3) : border] if self._middle else b""
        return b"".join(out)


def _without(chunk: _Chunk, cuts: list[tuple[int, int]]) -> bytes:
    """A chunk without the given payload spans: raw when nothing is cut, empty when nothing is left."""
    if not cuts:
        return chunk.raw
    payload, at = b"", 0
    for start, end in cuts:
        payload += chunk.payload[at : max(start, 0)]
        at = end
    payload += chunk.payload[at:]
    return b"%x\r\n%s\r\n" % (len(payload), payload) if payload else b""
