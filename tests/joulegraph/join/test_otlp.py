"""OTLP exports: encoded by hand from the published field numbers, read back; damage is refused; spans join requests."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.spans import candidates, joined
from joulegraph.join.otlp import Damaged, Span, spans
from joulegraph.join.spans import record
from joulegraph.join.watch import unpacked


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def value_of(value: Any) -> bytes:
    match value:
        case bool():
            return varint(2 << 3) + varint(int(value))
        case int():
            return varint(3 << 3) + varint(value & (1 << 64) - 1)
        case float():
            return varint(4 << 3 | 1) + struct.pack("<d", value)
    return message(1, str(value).encode())


def encoded(span: Span) -> bytes:
    body = message(1, bytes.fromhex(span.trace_id)) + message(2, bytes.fromhex(span.span_id))
    body += message(5, span.name.encode()) + varint(6 << 3) + varint(2)  # kind: a field that is passed over
    body += varint(7 << 3 | 1) + struct.pack("<Q", span.start_unix_ns)
    body += varint(8 << 3 | 1) + struct.pack("<Q", span.end_unix_ns)
    for key, value in span.attributes.items():
        body += message(9, message(1, key.encode()) + message(2, value_of(value)))
    return body


def export(*some: Span) -> bytes:
    scope = message(1, message(1, b"vllm.llm_engine"))
    return message(1, message(1, b"") + message(2, scope + b"".join(message(2, encoded(s)) for s in some)))


values = st.text(max_size=6) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
some_spans = st.builds(
    Span,
    name=st.text(max_size=8),
    start_unix_ns=st.integers(0, 2**64 - 1),
    end_unix_ns=st.integers(0, 2**64 - 1),
    trace_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    span_id=st.binary(min_size=8, max_size=8).map(bytes.hex),
    attributes=st.dictionaries(st.text(max_size=5), values, max_size=4),
)


@given(st.lists(some_spans, max_size=4))
def test_what_is_sent_is_read(some: list[Span]) -> None:
    assert spans(export(*some)) == some


@given(some_spans, st.data())
def test_a_part_of_an_export_is_refused_or_read_in_part(span: Span, data: st.DataObject) -> None:
    body = export(span)
    cut = data.draw(st.integers(1, len(body) - 1))
    with pytest.raises(Damaged):
        spans(body[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        assert isinstance(spans(body), list)
    except Damaged:
        pass


def test_gzip() -> None:
    body = export(Span("llm_request", 1, 2, "00" * 16, "00" * 8))
    assert unpacked(gzip.compress(body)) == unpacked(body) == body
    with pytest.raises(Damaged):
        unpacked(gzip.compress(body * 50)[:-9])


SPAN = Span(
    "llm_request",
    10,
    20,
    "00" * 16,
    "00" * 8,
    {
        "gen_ai.request.id": "cmpl-run7-a-3-0",
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_in_model_decode": 1,
        "gen_ai.usage.prompt_tokens": 12,
    },
)


def test_a_span_becomes_times_of_its_request() -> None:
    row = record(SPAN, 99)
    assert row is not None and row.kind == "span" and row.t_ns == 99
    assert row.values["engine_queue_ns"] == 250_000_000 and row.values["engine_decode_ns"] == 1_000_000_000
    assert record(Span("other", 1, 2, "", ""), 1) is None
    found = joined(["run7-a-3", "run7-a-4"], [{"kind": "span", "text": row.text, "values": row.values}])
    assert found == {"run7-a-3": row.values}


@given(st.text("abc-0123", min_size=1, max_size=12), st.sampled_from(["cmpl-{}-0", "chatcmpl-{}", "{}", "cmpl-{}-12"]))
def test_every_form_of_id_leads_back(header: str, form: str) -> None:
    assert header in candidates(form.format(header))


def test_two_spans_of_one_request_are_not_mixed() -> None:
    rows = [{"kind": "span", "text": f"cmpl-x-{n}", "values": {"prompt_tokens": n}} for n in (0, 1)]
    assert joined(["x"], rows) == {}
    assert joined(["y"], rows) == {}
