"""Observers on vLLM's recorded bytes: tokens, usage, ids and times, the same however the reads fall."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.dialects import EngineMetrics, Observer, Usage, observer

from .recorded import errors, streams

APIS = ["chat", "chat", "chat", "completions", "responses", "messages"]
EXPECTED = [  # tokens, usage, finish, id
    (6, Usage(15, 0, 6), "length", "chatcmpl-my-req-001"),
    (4, Usage(15, 0, 4), "length", "chatcmpl-99347a89794c2b84"),
    (4, Usage(), "length", "chatcmpl-b46f45096b19bdef"),
    (4, Usage(6, 0, 4), "length", "cmpl-9622be8626e9a627"),
    (4, Usage(15, 0, 4, 0), "max_output_tokens", "resp_9d1059bb5cbce80b"),
    (4, Usage(15, 0, 4), "max_tokens", "chatcmpl-a3c079284105fd62"),
]


def facts(seen: Observer) -> tuple[object, ...]:
    return (
        seen.tokens,
        seen.usage,
        seen.finish_reason,
        seen.response_id,
        seen.metrics,
        seen.tool_call_ids,
        seen.error,
        seen.ended,
        seen.malformed,
        seen.text,
    )


def watch(api: str, pieces: list[bytes], stream: bool = True) -> Observer:
    seen = observer(api, stream, keep_text=True)
    counted = sum(seen.feed(piece) for piece in pieces)
    seen.finish()
    assert counted == seen.tokens
    return seen


@pytest.mark.parametrize("index", range(6))
def test_recorded_streams(data: Path, index: int) -> None:
    exchange = streams(data)[index]
    seen = watch(APIS[index], exchange.chunks)
    tokens, usage, finish, response_id = EXPECTED[index]
    assert (seen.tokens, seen.usage, seen.finish_reason, seen.response_id) == (tokens, usage, finish, response_id)
    assert seen.ended
    assert (seen.error, seen.malformed) == (None, 0)
    assert seen.text == ("rary" * 4 if APIS[index] == "completions" else "sig" + "new" * (tokens - 1))


@pytest.mark.parametrize("index", range(6))
def test_recorded_streams_cut_at_every_byte(data: Path, index: int) -> None:
    exchange = streams(data)[index]
    whole = facts(watch(APIS[index], exchange.chunks))
    body = exchange.body
    for at in range(1, len(body)):
        assert facts(watch(APIS[index], [body[:at], body[at:]])) == whole
    assert facts(watch(APIS[index], [bytes([b]) for b in body])) == whole
    assert facts(watch(APIS[index], [body])) == whole


def test_times_of_the_engine(data: Path) -> None:
    assert watch("chat", streams(data)[1].chunks).metrics == EngineMetrics(42_983, 6_907_670, 20_409_142)
    assert watch("responses", streams(data)[4].chunks).metrics == EngineMetrics(24_686, 330_810_373, 275_252_166)
    assert watch("messages", streams(data)[5].chunks).metrics is None


@pytest.mark.parametrize(
    ("title", "api", "usage", "finish", "text"),
    [
        ("chat nonstream", "chat", Usage(15, 0, 3), "length", "signewnew"),
        ("prompt+max_tokens > len", "completions", Usage(4090, 0, 6), "length", "paramsisteredflag basedythonlast"),
        ("messages nonstream", "messages", Usage(15, 0, 3), "max_tokens", 'AC("\\andom'),
        ("prompt list of lists", "completions", Usage(7, 0, 4), "length", " real zip�ator"),
    ],
)
def test_recorded_bodies(data: Path, title: str, api: str, usage: Usage, finish: str, text: str) -> None:
    _, _, body = errors(data)[title]
    seen = watch(api, [body.encode()], stream=False)
    assert (seen.usage, seen.finish_reason, seen.text, seen.malformed) == (usage, finish, text, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_error_bodies_are_understood_even_where_a_stream_was_asked_for(data: Path, stream: bool) -> None:
    for title, api in [("unknown model", "chat"), ("messages bad model", "messages")]:
        _, _, body = errors(data)[title]
        seen = watch(api, [body.encode()], stream=stream)
        assert seen.error == "The model `nope` does not exist. Valid aliases: tiny."


def sse(*rows: object) -> bytes:
    return b"".join(b"data: " + orjson.dumps(row) + b"\n\n" for row in rows)


def test_error_inside_a_stream() -> None:
    body = sse({"id": "x", "choices": [{"index": 0, "text": "a"}]}, {"error": {"message": "engine died", "code": 500}})
    seen = watch("completions", [body])
    assert (seen.tokens, seen.error, seen.ended) == (1, "engine died", False)


def test_tool_calls_in_three_dialects() -> None:
    chat = sse(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": ""}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    )
    seen = watch("chat", [chat])
    assert (seen.tokens, seen.tool_call_ids, seen.finish_reason) == (2, ["call_1"], "tool_calls")
    responses = sse(
        {"type": "response.output_item.added", "item": {"type": "function_call", "call_id": "call_2"}},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
    )
    assert watch("responses", [responses]).tool_call_ids == ["call_2"]
    messages = sse({"type": "content_block_start", "content_block": {"type": "tool_use", "id": "toolu_3"}})
    assert watch("messages", [messages]).tool_call_ids == ["toolu_3"]


def test_cached_tokens_of_messages_are_part_of_the_prompt() -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 5, "output_tokens": 2}
    seen = watch("messages", [sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})])
    assert seen.usage == Usage(100, 90, 2)


TEXTS = st.lists(st.text(min_size=0, max_size=12), max_size=20)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 3000), max_size=8), st.sampled_from(["chat", "completions", "responses"]))
def test_any_text_in_any_cut_is_counted_and_kept(texts: list[str], places: list[int], api: str) -> None:
    rows: list[object] = []
    for number, text in enumerate(texts):
        if api == "chat":
            rows.append({"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        elif api == "completions":
            rows.append({"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": None}]})
        else:
            rows.append({"delta": text, "sequence_number": number, "type": "response.output_text.delta"})
    body = sse(*rows)
    borders = sorted({min(p, len(body)) for p in places} | {0, len(body)})
    seen = watch(api, [body[a:b] for a, b in pairwise(borders)])
    assert seen.tokens == sum(bool(text) for text in texts)
    assert seen.text == "".join(texts)


@given(st.binary(max_size=400), st.sampled_from(APIS), st.booleans())
def test_nonsense_never_raises(body: bytes, api: str, stream: bool) -> None:
    watch(api, [body], stream)
    watch(api, [b"data: " + body + b"\n\n"], stream)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "delta", "usage", "error", "type", "tool_calls", "content", "response", "item"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(APIS),
    st.booleans(),
)
def test_json_of_the_wrong_shape_never_raises(row: object, api: str, stream: bool) -> None:
    watch(api, [sse(row) if stream else orjson.dumps(row)], stream)


EVENTS = st.lists(
    st.one_of(
        st.text(max_size=12).map(lambda t: orjson.dumps({"id": "c", "choices": [{"index": 0, "text": t, "more": 1}]})),
        st.sampled_from(
            [
                orjson.dumps({"id": "c", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}),
                orjson.dumps({"id": "c", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
                b'{"broken',
                b"[1]",
                b"[DONE]",
            ]
        ),
    ),
    min_size=1,
    max_size=60,
)


@given(EVENTS, st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n\n: ping\n\n", b"\n\n\n"]), st.lists(st.integers(0, 9000)))
def test_many_events_in_one_read_count_as_one_by_one(events: list[bytes], border: bytes, cuts: list[int]) -> None:
    """Long reads are counted in a few passes, without text; the facts are those of the slow way, whatever the cuts."""
    whole = [b"data: " + event + border for event in events]
    slow = watch("completions", whole)
    body = b"".join(whole)
    marks = [0, *sorted(c for c in set(cuts) if 0 < c < len(body)), len(body)]
    seen = observer("completions", True)
    counted = sum(seen.feed(body[a:b]) for a, b in pairwise(marks))
    seen.finish()
    assert counted == seen.tokens
    assert facts(seen)[:-1] == facts(slow)[:-1]
