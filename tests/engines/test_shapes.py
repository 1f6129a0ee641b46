"""Shortcuts over a stream's bytes say what a JSON parser says, whatever the events, the cuts and the streams before."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.dialects import Usage, observer


def completion(identity: str, created: int, choice: str, rest: str = "") -> bytes:
    """One event as vLLM writes it."""
    head = f'{{"id":"{identity}","object":"text_completion","created":{created},"model":"m","choices":['
    return f"data: {head}{choice}]{rest}}}".encode()


def a_token(text: str, reason: str = "null", more: str = "") -> str:
    return f'{{"index":0,"text":{text},"logprobs":null,"finish_reason":{reason}{more}}}'


def facts_of(events: list[bytes]) -> tuple[Any, ...]:
    """What the events of a completion say, by the plainest reading: parse each, look at its members."""
    tokens, reason, ended, malformed, usage = 0, None, False, 0, Usage()
    for raw in events:
        data = raw.removeprefix(b"data: ")
        if data == b"[DONE]":
            ended = True
            continue
        try:
            row = orjson.loads(data)
        except orjson.JSONDecodeError:
            malformed += 1
            continue
        said = row.get("usage") or {}
        if "prompt_tokens" in said:
            usage.prompt_tokens = said["prompt_tokens"]
            usage.completion_tokens = said["completion_tokens"]
        if said.get("prompt_tokens_details"):
            usage.cached_tokens = said["prompt_tokens_details"]["cached_tokens"]
        for choice in row["choices"]:
            reason = choice["finish_reason"] or reason
            tokens += bool(choice["text"] or choice.get("token_ids"))
    return tokens, reason, ended, malformed, usage


TEXT = st.one_of(
    st.sampled_from(['" tok"', '" tok1"', '""', '"\\n"', '"\\""', '"\\\\"', '"\\u00e9"', '"é"', '"a\\\\\\"b"', '"{}"']),
    st.text(max_size=8).map(lambda t: orjson.dumps(t).decode()),
    st.sampled_from(['"broken', "null"]),
)
COUNTS = st.integers(0, 4000)
USAGE = st.builds(
    lambda p, c, more, after: (
        f',"usage":{{"prompt_tokens":{p},"total_tokens":{p + c},"completion_tokens":{c}{more}}}{after}'
    ),
    COUNTS,
    COUNTS,
    st.one_of(
        st.sampled_from(["", ',"prompt_tokens_details":null', ',"more":1']),
        st.builds(
            ',"prompt_tokens_details":{{"cached_tokens":{}{}}}'.format,
            COUNTS,
            st.sampled_from(["", ',"created_cache_tokens":0', ',"multimodal_tokens":null', ',"cached_tokens":7']),
        ),
    ),
    st.sampled_from(["", ',"system_fingerprint":"vllm-0.32.0-e0"', ',"other":[1]']),
)


@st.composite
def an_event(draw: st.DrawFn, identity: str, created: int) -> bytes:
    match draw(st.integers(0, 9)):
        case 0:
            reason = draw(st.sampled_from(['"length"', '"stop"', '"a\\"b"']))
            more = draw(st.sampled_from(["", ',"stop_reason":null', ',"token_ids":[5]', ',"token_ids":null']))
            rest = draw(st.sampled_from(["", "", ',"usage":null']))
            return completion(identity, created, a_token(draw(TEXT), reason, more), rest)
        case 1:
            return completion(identity, created, "", draw(USAGE))
        case 2:
            return completion(identity, created, a_token(draw(TEXT)), draw(USAGE))
        case 3:
            return b"data: [DONE]"
        case 4:
            return completion("other", created, a_token(draw(TEXT)))
        case _:
            return completion(identity, created, a_token(draw(TEXT)))


@st.composite
def streams(draw: st.DrawFn) -> list[list[bytes]]:
    """Some streams of one engine in turn: ids differ, the rest of the bytes mostly not."""
    out = []
    for number in range(draw(st.integers(1, 3))):
        identity = draw(st.sampled_from(["cmpl-1", "cmpl-23", "x\\u0041"])) + str(number)
        run = [completion(identity, 7, a_token(f'" tok{i}"')) for i in range(draw(st.integers(0, 12)))]
        out.append(run + draw(st.lists(an_event(identity, draw(st.sampled_from([7, 7, 8]))), min_size=1, max_size=8)))
    return out


PLAIN = [completion("a", 7, a_token(f'" t{i}"')) for i in range(9)]
LAST = [
    completion("a", 7, a_token('""', '"length"')),
    completion("a", 7, "", ',"usage":{"prompt_tokens":32,"total_tokens":41,"completion_tokens":9}'),
    b"data: [DONE]",
]


@settings(deadline=None)
@given(streams(), st.lists(st.integers(0, 6000), max_size=6))
@example([[*PLAIN, *LAST], [*PLAIN, *LAST]], [])
@example([[*PLAIN, *LAST], [*PLAIN[:5], LAST[0], *PLAIN[5:], *LAST[1:]]], [])
def test_any_stream_in_any_cut_says_what_its_json_says(work: list[list[bytes]], cuts: list[int]) -> None:
    for events in work:
        body = b"".join(event + b"\n\n" for event in events)
        marks = [0, *sorted({c for c in cuts if 0 < c < len(body)}), len(body)]
        for borders in (marks, [0, len(body)], list(range(len(body) + 1))):
            seen = observer("completions", True)
            counted = sum(seen.feed(body[a:b]) for a, b in pairwise(borders))
            seen.finish()
            assert counted == seen.tokens
            assert (seen.tokens, seen.finish_reason, seen.ended, seen.malformed, seen.usage) == facts_of(events)


def test_the_end_of_a_stream_is_known_by_its_form_and_still_says_its_own_figures() -> None:
    """The second stream's end is not parsed any more; its usage and reason are its own."""

    def body(identity: str, reason: str, prompt: int, output: int) -> bytes:
        run = [completion(identity, 9, a_token(f'" tok{i}"')) for i in range(output)]
        usage = f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + output},"completion_tokens":{output}}}'
        last = completion(identity, 9, a_token('""', f'"{reason}"'))
        return b"".join(e + b"\n\n" for e in [*run, last, completion(identity, 9, "", usage), b"data: [DONE]"])

    for identity, reason, prompt, output in [
        ("a", "length", 3, 16),
        ("bb", "length", 0, 20),
        ("c", "stop", 9, 9),
        ("d", "stop", 1, 8),
    ]:
        seen = observer("completions", True)
        assert seen.feed(body(identity, reason, prompt, output)) == output
        seen.finish()
        assert (seen.response_id, seen.finish_reason, seen.ended) == (identity, reason, True)
        assert seen.usage == Usage(prompt, None, output)


@pytest.mark.parametrize("text", ["plain", "", "é", "\n", '"', "\\", "a\\", "\x7f", " "])
def test_a_last_event_with_text_is_one_token_more(text: str) -> None:
    inner = orjson.dumps(text).decode()
    for _ in range(2):
        seen = observer("completions", True)
        events = [*PLAIN, completion("a", 7, a_token(inner, '"stop"', ',"stop_reason":null'))]
        assert seen.feed(b"".join(e + b"\n\n" for e in events)) == 9 + bool(text)
        assert (seen.finish_reason, seen.malformed) == ("stop", 0)
