"""An OTLP/HTTP trace export (protobuf) as spans, without any protobuf library: four message types, ten fields.

Field numbers: opentelemetry-proto trace/v1/trace.proto and common/v1/common.proto. Unknown fields are passed over.
Pure. May not know: sockets, which spans matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """One span; times are of the sender's wall clock."""

    name: str
    start_unix_ns: int
    end_unix_ns: int
    trace_id: str
    span_id: str
    attributes: dict[str, Value] = field(default_factory=dict)


class Damaged(ValueError):
    """Not an export request."""


def spans(body: bytes) -> list[Span]:
    """Spans of an ExportTraceServiceRequest. Damaged when it is none."""
    return [
        _span(span)
        for resource in _messages(body, 1)  # ExportTraceServiceRequest.resource_spans
        for scope in _messages(resource, 2)  # ResourceSpans.scope_spans
        for span in _messages(scope, 2)  # ScopeSpans.spans
    ]


def _span(data: bytes) -> Span:
    name = trace = span = b""
    start = end = 0
    attributes: dict[str, Value] = {}
    for number, value in _fields(data):
        match number, value:
            case 1, bytes():
                trace = value
            case 2, bytes():
                span = value
            case 5, bytes():
                name = value
            case 7, int():
                start = value
            case 8, int():
                end = value
            case 9, bytes():
                key, found = _attribute(value)
                if found is not None:
                    attributes[key] = found
    return Span(name.decode(errors="replace"), start, end, trace.hex(), span.hex(), attributes)


def _attribute(data: bytes) -> tuple[str, Value | None]:
    """KeyValue; None for arrays, maps and bytes."""
    key, found = "", None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            key = value.decode(errors="replace")
        elif number == 2 and isinstance(value, bytes):
            found = _any(value)
    return key, found


def _any(data: bytes) -> Value | None:
    found: Value | None = None
    for number, value in _fields(data):
        match number, value:
            case 1, bytes():
                found = value.decode(errors="replace")
            case 2, int():
                found = bool(value)
            case 3, int():
                found = value - (1 << 64) if value >> 63 else value
            case 4, int():
                found = float(struct.unpack("<d", struct.pack("<Q", value))[0])
    return found


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    for number, value in _fields(data):
        if number == wanted and isinstance(value, bytes):
            yield value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of a message: varints and fixed values as int, everything with a length as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise Damaged(f"wire type {kind}")
        if at + size > len(data):
            raise Damaged("it ends inside a field")
        piece = data[at : at + size]
        at += size
        yield number, piece if kind == 2 else int.from_bytes(piece, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Damaged("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise Damaged("a number of more than ten bytes")
