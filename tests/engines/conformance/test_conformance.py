"""The same cases against every engine: streams, usage, lengths, errors, ids, disconnects, real client libraries.

What an engine is known not to do is a skip with its reason (Target.lacks), never a silent pass.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import Any

import anthropic
import openai
import orjson
import pytest

from engines.dialects import Observer, observer
from engines.pool import Pool

from .conftest import MISSING, Target
from .wire import Raw, fetch, request_bytes

TURNS = [{"role": "user", "content": "Say hello in one short sentence."}]
ROUTES = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
APIS = list(ROUTES)


def body_of(target: Target, api: str, tokens: int, *, stream: bool, usage: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = {"model": target.model, "temperature": 0, "stream": stream}
    if api == "responses":
        return body | {"input": "Say hello.", "max_output_tokens": tokens}
    body["max_tokens"] = tokens
    if stream and usage and api != "messages":
        body["stream_options"] = {"include_usage": True}
    return body | ({"prompt": "Say hello"} if api == "completions" else {"messages": TURNS})


def call(target: Target, path: str, body: Any = None, **more: Any) -> Raw:
    return fetch(target.host, target.port, path, body, **more)


def watched(api: str, raw: Raw, *, stream: bool) -> Observer:
    seen = observer(api, stream, keep_text=True)
    for piece in raw.chunks or [raw.body]:
        seen.feed(piece)
    seen.finish()
    assert (seen.malformed, seen.error) == (0, None)
    return seen


@pytest.mark.parametrize("name", MISSING)
def test_the_target_is_there(name: str) -> None:
    if MISSING[name]:
        pytest.skip(f"the conformance cases did not run against {name}: {MISSING[name]}")


# ---------------------------------------------------------------------------------------------- streams and usage


@pytest.mark.parametrize("api", APIS)
def test_a_stream_gives_tokens_usage_id_and_end(target: Target, api: str) -> None:
    raw = call(target, ROUTES[api], body_of(target, api, 6, stream=True))
    assert raw.status == 200
    assert raw.headers["content-type"].startswith("text/event-stream")
    seen = watched(api, raw, stream=True)
    assert seen.ended
    assert seen.response_id
    assert seen.finish_reason is not None
    assert seen.usage.prompt_tokens is not None
    assert seen.usage.prompt_tokens > 0
    assert seen.usage.completion_tokens is not None
    assert 0 < seen.tokens <= seen.usage.completion_tokens <= 6
    assert seen.text


@pytest.mark.parametrize("api", APIS)
def test_a_whole_reply_says_the_same_as_its_stream(target: Target, api: str) -> None:
    streamed = watched(api, call(target, ROUTES[api], body_of(target, api, 5, stream=True)), stream=True)
    whole = watched(api, call(target, ROUTES[api], body_of(target, api, 5, stream=False)), stream=False)
    assert whole.text == streamed.text
    assert whole.usage.prompt_tokens == streamed.usage.prompt_tokens
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens
    assert whole.finish_reason == streamed.finish_reason


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_events_are_framed_one_by_one(target: Target, api: str) -> None:
    target.needs("vllm_bytes")
    raw = call(target, ROUTES[api], body_of(target, api, 4, stream=True))
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in raw.chunks)
    assert all(chunk.count(b"\n\n") == 1 for chunk in raw.chunks)
    assert raw.chunks[-1] == b"data: [DONE]\n\n"
    rows = [orjson.loads(chunk[6:]) for chunk in raw.chunks[:-1]]
    assert list(rows[0])[:5] == ["id", "object", "created", "model", "choices"]
    assert rows[-1]["choices"] == []
    if api == "chat":
        assert rows[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_usage_comes_only_where_it_was_asked_for(target: Target, api: str) -> None:
    target.needs("vllm_bytes")
    raw = call(target, ROUTES[api], body_of(target, api, 3, stream=True, usage=False))
    assert b'"usage"' not in raw.body
    body = body_of(target, api, 3, stream=True) | {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    }
    rows = [orjson.loads(chunk[6:]) for chunk in call(target, ROUTES[api], body).chunks[:-1]]
    counts = [row["usage"]["completion_tokens"] for row in rows]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_per_request_times_come_with_usage(target: Target) -> None:
    target.needs("per_request_metrics")
    for api in ("completions", "chat", "responses"):
        for stream in (True, False):
            raw = call(target, ROUTES[api], body_of(target, api, 4, stream=stream))
            times = watched(api, raw, stream=stream).metrics
            assert times is not None
            assert times.queue_ns is not None
            assert times.prefill_ns is not None
            assert times.decode_ns is not None
            assert times.prefill_ns > 0
            assert times.decode_ns >= 0


# ---------------------------------------------------------------------------------------------- lengths and prompts


@pytest.mark.parametrize("stream", [True, False])
def test_token_id_prompts_have_exact_lengths(target: Target, stream: bool) -> None:
    target.needs("exact_length")
    body = {"model": target.model, "prompt": list(range(100, 137)), "max_tokens": 11, "min_tokens": 11}
    body |= {"ignore_eos": True, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    seen = watched("completions", call(target, "/v1/completions", body), stream=stream)
    assert (seen.usage.prompt_tokens, seen.usage.completion_tokens, seen.finish_reason) == (37, 11, "length")


def test_token_ids_come_back(target: Target) -> None:
    target.needs("return_token_ids")
    body = {"model": target.model, "prompt": [5, 6, 7], "max_tokens": 4, "min_tokens": 4, "ignore_eos": True}
    row = call(target, "/v1/completions", body | {"return_token_ids": True}).json["choices"][0]
    assert row["prompt_token_ids"] == [5, 6, 7]
    assert len(row["token_ids"]) == 4
    text = call(target, "/detokenize", {"model": target.model, "tokens": row["token_ids"]}).json["prompt"]
    assert text == row["text"]


def test_a_repeated_prompt_is_cached(target: Target) -> None:
    prompt = [(7 * i) % 900 + 100 for i in range(700)]
    body = {"model": target.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    cached = [
        watched("completions", call(target, "/v1/completions", body), stream=False).usage.cached_tokens
        for _ in range(2)
    ]
    assert cached[0] == 0
    assert cached[1] is not None
    assert 512 <= cached[1] < 700


def test_tokenize_counts_what_usage_counts(target: Target) -> None:
    target.needs("tokenize")
    text = "The quick brown fox jumps over the lazy dog."
    counted = call(target, "/tokenize", {"model": target.model, "prompt": text}).json
    assert counted["count"] == len(counted["tokens"])
    body = {"model": target.model, "prompt": text, "max_tokens": 1}
    assert call(target, "/v1/completions", body).json["usage"]["prompt_tokens"] == counted["count"]
    turns = call(target, "/tokenize", {"model": target.model, "messages": TURNS}).json["count"]
    body = {"model": target.model, "messages": TURNS, "max_tokens": 1}
    assert call(target, "/v1/chat/completions", body).json["usage"]["prompt_tokens"] == turns


def test_count_tokens_of_the_messages_dialect(target: Target) -> None:
    body = {"model": target.model, "messages": TURNS}
    counted = call(target, "/v1/messages/count_tokens", body).json["input_tokens"]
    usage = watched("messages", call(target, "/v1/messages", body | {"max_tokens": 1}), stream=False).usage
    assert usage.prompt_tokens == counted


# ---------------------------------------------------------------------------------------------- ids


def test_the_request_id_becomes_the_replys(target: Target) -> None:
    target.needs("request_id")
    for api, prefix in (("chat", "chatcmpl-"), ("completions", "cmpl-")):
        name = f"conformance-{time.monotonic_ns()}"
        raw = call(target, ROUTES[api], body_of(target, api, 2, stream=False), headers={"X-Request-Id": name})
        assert raw.json["id"] == prefix + name
        assert raw.headers["x-request-id"] == name
    raw = call(target, ROUTES["chat"], body_of(target, "chat", 2, stream=False))
    assert re.fullmatch(r"[0-9a-f]{32}", raw.headers["x-request-id"])
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{16}", raw.json["id"])


# ---------------------------------------------------------------------------------------------- errors


def test_what_is_not_json_is_refused(target: Target) -> None:
    raw = call(target, ROUTES["chat"], b'{"messages": [x]}')
    assert 400 <= raw.status < 600
    assert "error" in raw.json


def test_an_unknown_model_is_404(target: Target) -> None:
    target.needs("unknown_model")
    raw = call(target, ROUTES["chat"], body_of(target, "chat", 2, stream=False) | {"model": "nope"})
    assert raw.status == 404
    error = raw.json["error"]
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)
    assert "`nope` does not exist" in error["message"]
    raw = call(target, ROUTES["messages"], body_of(target, "messages", 2, stream=False) | {"model": "nope"})
    assert (raw.status, raw.json["type"]) == (404, "error")


def test_a_prompt_past_the_context_is_refused(target: Target) -> None:
    raw = call(target, "/v1/completions", {"model": target.model, "prompt": [5] * 140_000, "max_tokens": 4})
    assert raw.status == 400
    assert re.search("context", raw.json["error"]["message"])


@pytest.mark.parametrize("tokens", [0, -5])
def test_too_few_tokens_are_refused(target: Target, tokens: int) -> None:
    target.needs("max_tokens_checked")
    raw = call(target, ROUTES["chat"], body_of(target, "chat", tokens, stream=False))
    assert raw.status == 400
    assert raw.json["error"]["message"].startswith(f"max_tokens must be at least 1, got {tokens}.")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": TURNS, "stream_options": {"include_usage": True}}, "Stream options can only be defined"),
        ({"messages": TURNS, "temperature": -1}, "temperature must be non-negative"),
        ({"messages": TURNS, "cache_salt": ""}, "cache_salt"),
        ({"messages": TURNS, "max_tokens": 1, "min_tokens": 5}, "min_tokens must be less than or equal"),
        ({}, "Field required"),
    ],
)
def test_vllm_refusals(target: Target, body: dict[str, Any], words: str) -> None:
    target.needs("vllm_errors")
    raw = call(target, ROUTES["chat"], {"model": target.model} | body)
    assert raw.status == 400
    assert list(raw.json["error"]) == ["message", "type", "param", "code"]
    assert words in raw.json["error"]["message"]


INT = "Input should be a valid integer, unable to parse string as an integer"
CHAT = {"messages": TURNS}
EXACT = [  # path, body, message, param: as vLLM 0.32 words them
    ("/v1/chat/completions", {"messages": []}, "Cannot apply chat template to an empty conversation.", None),
    ("/v1/chat/completions", CHAT | {"n": 0}, "n must be at least 1, got 0.", None),
    ("/v1/chat/completions", CHAT | {"top_p": 2}, "top_p must be in (0, 1], got 2.0. (parameter=top_p,", "top_p"),
    ("/v1/chat/completions", CHAT | {"temperature": 3}, "temperature must be in [0, 2], got 3.0.", "temperature"),
    ("/v1/chat/completions", CHAT | {"presence_penalty": 3}, "presence_penalty must be in [-2, 2], got 3.0.", None),
    ("/v1/chat/completions", CHAT | {"min_tokens": -1}, "min_tokens must be greater than or equal to 0,", None),
    (
        "/v1/chat/completions",
        CHAT | {"max_tokens": "x"},
        f"'int_parsing', 'loc': 'body.max_tokens', 'msg': '{INT}'",
        "*",
    ),
    ("/v1/chat/completions", CHAT | {"max_tokens": 2.5}, "a number with a fractional part', 'input': '2.5'}", "*"),
    (
        "/v1/chat/completions",
        CHAT | {"stream": "maybe"},
        "valid boolean, unable to interpret input', 'input': 'maybe'",
        "*",
    ),
    (
        "/v1/chat/completions",
        CHAT | {"stop": 5},
        "2 validation errors:\n  {'type': 'string_type', 'loc': 'body.stop'",
        "*",
    ),
    ("/v1/chat/completions", {"messages": "hi"}, "'loc': 'body.messages', 'msg': 'Input should be a valid list'", "*"),
    (
        "/v1/chat/completions",
        {"messages": ["hi"]},
        "8 validation errors:\n  {'type': 'dict_type', 'loc': 'body.mes",
        "*",
    ),
    (
        "/v1/completions",
        {},
        "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
        "prompt",
    ),
    ("/v1/completions", {"prompt": ""}, "Either prompt or prompt_embeds must be provided and non-empty.", "prompt"),
    ("/v1/completions", {"prompt": 5}, "4 validation errors:\n  {'type': 'list_type', 'loc': 'body.prompt'", "*"),
    ("/v1/completions", {"prompt": [5, "a"]}, "5 validation errors:\n  {'type': 'int_parsing', 'loc': 'body.pro", "*"),
    ("/v1/completions", {"prompt": [5, -1]}, "6 validation errors:\n  {'type': 'greater_than_equal', 'loc': 'b", "*"),
    ("/v1/responses", {}, "'loc': 'body.input', 'msg': 'Field required', 'input': '<dict of", "*"),
    ("/v1/messages", {}, "3 validation errors:\n  {'type': 'missing', 'loc': 'body.model'", "*"),
    ("/v1/messages/count_tokens", {}, "2 validation errors:\n  {'type': 'missing', 'loc': 'body.model'", "*"),
    ("/tokenize", {}, "2 validation errors:\n  {'type': 'missing', 'loc': 'body.prompt'", "*"),
    ("/detokenize", {"tokens": ["a"]}, f"'int_parsing', 'loc': 'body.tokens.0', 'msg': '{INT}', 'input': 'a'", "*"),
    ("/v1/chat/completions", b"", "'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'", "body"),
]


@pytest.mark.parametrize(("path", "body", "words", "param"), EXACT)
def test_vllms_words(target: Target, path: str, body: Any, words: str, param: str | None) -> None:
    target.needs("vllm_errors")
    raw = call(target, path, body)
    assert raw.status == 400, raw.body
    error = raw.json["error"]
    assert words in error["message"]
    assert param == "*" or error["param"] == param
    assert error["type"] == ("Bad Request" if "validation error" in error["message"] else "BadRequestError")


def test_stop_strings_are_named(target: Target) -> None:
    target.needs("vllm_bytes")
    body = {"model": target.model, "messages": TURNS, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    text = call(target, ROUTES["chat"], body).json["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:3]
    whole = call(target, ROUTES["chat"], body | {"stop": [stop]}).json["choices"][0]
    assert (whole["finish_reason"], whole["stop_reason"]) == ("stop", stop)
    assert whole["message"]["content"] == text[: text.index(stop)]
    raw = call(target, ROUTES["chat"], body | {"stop": stop, "stream": True})
    seen = watched("chat", raw, stream=True)
    assert (seen.text, seen.finish_reason) == (text[: text.index(stop)], "stop")
    body = body_of(target, "messages", 8, stream=False) | {"stop_sequences": [stop]}
    reply = call(target, ROUTES["messages"], body).json
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", stop)


def test_the_messages_dialect_parts_the_prompt_by_cache(target: Target) -> None:
    target.needs("vllm_bytes")
    words = f"{time.monotonic_ns()} " + "one two three four five six seven " * 40
    body = {"model": target.model, "messages": [{"role": "user", "content": words}], "max_tokens": 1}
    first, second = (call(target, ROUTES["messages"], body).json["usage"] for _ in range(2))
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(first[name] for name in parts) == sum(second[name] for name in parts)
    assert first["cache_creation_input_tokens"] > 0
    assert second["cache_read_input_tokens"] >= first["cache_creation_input_tokens"]
    assert second["cache_creation_input_tokens"] == 0


def test_head_is_not_taken_and_ping_is(target: Target) -> None:
    target.needs("detail_404")
    assert call(target, "/health", method="HEAD").status == 405
    assert call(target, "/ping", {}, method="POST").status == 200
    assert call(target, "/metrics", method="HEAD").status == 200


def test_routes_and_methods_that_are_not_there(target: Target) -> None:
    target.needs("detail_404")
    assert call(target, "/v1/nothing", {}).json == {"detail": "Not Found"}
    assert call(target, ROUTES["chat"]).status == 405


def test_other_media_types_are_refused(target: Target) -> None:
    target.needs("wrong_media_type")
    raw = call(target, ROUTES["chat"], body_of(target, "chat", 2, stream=False), headers={"Content-Type": "text/plain"})
    assert raw.status == 400
    assert "Unsupported Media Type" in raw.json["error"]["message"]


# ---------------------------------------------------------------------------------------------- other routes


def test_health_models_and_version(target: Target) -> None:
    assert call(target, "/health").status == 200
    rows = call(target, "/v1/models").json["data"]
    assert target.model in [row["id"] for row in rows]
    if "version" not in target.lacks:
        assert call(target, "/version").json["version"]
        assert call(target, "/ping").status == 200


def test_metrics_count_what_was_generated(target: Target) -> None:
    target.needs("vllm_metrics")

    def counted() -> dict[str, float]:
        text = call(target, "/metrics").body.decode()
        pattern = r"^(vllm:\w+)\{[^}]*\} (\S+)$"
        out: dict[str, float] = {}
        for name, value in re.findall(pattern, text, re.MULTILINE):
            out[name] = out.get(name, 0.0) + float(value)
        return out

    before = counted()
    body = {"model": target.model, "prompt": [9] * 20, "max_tokens": 6, "min_tokens": 6, "ignore_eos": True}
    call(target, "/v1/completions", body)
    after = counted()
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["vllm:generation_tokens_total"] == 6
    assert grown["vllm:prompt_tokens_total"] == 20
    assert grown["vllm:request_success_total"] == 1
    assert after["vllm:num_requests_running"] == 0


# ---------------------------------------------------------------------------------------------- leaving


def running(target: Target) -> float:
    text = call(target, "/metrics").body.decode()
    found = re.findall(
        r"^(?:vllm:num_requests_running\{[^}]*\}|llamacpp:requests_processing) (\S+)$", text, re.MULTILINE
    )
    assert found
    return sum(map(float, found))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("way", ["close", "half_close"])
def test_a_client_that_leaves_is_forgotten(target: Target, stream: bool, way: str) -> None:
    target.needs(*(["half_close"] if way == "half_close" else []), *([] if stream else ["leaving_whole"]))
    body = {"model": target.model, "prompt": [7] * 30, "max_tokens": 3000, "ignore_eos": True, "stream": stream}
    with socket.create_connection((target.host, target.port), timeout=30) as sock:
        sock.sendall(request_bytes("/v1/completions", body))
        if stream:
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        until = time.monotonic() + 10
        while not running(target):
            assert time.monotonic() < until
        if way == "half_close":
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):  # the engine closes without an answer to it
                pass
    left = time.monotonic()
    while running(target):
        assert time.monotonic() - left < 5
    if target.name in ("embedded", "vllm"):
        assert time.monotonic() - left < 1.0  # 0.15 s on an idle machine


def test_connections_are_kept_alive_and_reused(target: Target) -> None:
    class Kept:
        def __init__(self) -> None:
            self.over: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
            assert status == 200

        def body(self, data: bytes, now_ns: int) -> None: ...

        def done(self, now_ns: int) -> None:
            self.over.set_result(None)

        def lost(self, why: str, now_ns: int) -> None:
            self.over.set_result(why)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        pool = Pool(target.host, target.port, connect=loop.create_connection, now_ns=time.monotonic_ns)
        for api in ("chat", "completions", "chat"):
            for stream in (True, False):
                body = body_of(target, api, 3, stream=stream)
                request = request_bytes(ROUTES[api], body, {"Connection": "keep-alive"})
                connection, reply = await pool.acquire(), Kept()
                connection.send(request, reply)
                why = await reply.over
                if why is not None:  # the one retry that is allowed
                    assert connection.retryable, why
                    connection, reply = await pool.acquire(fresh=True), Kept()
                    connection.send(request, reply)
                    assert await reply.over is None
                pool.release(connection)
        opened = pool.opened
        pool.close()
        await asyncio.sleep(0)
        return opened

    opened = asyncio.run(main())
    assert opened == 1 or "keep_alive" in target.lacks


# ---------------------------------------------------------------------------------------------- client libraries


@pytest.fixture
def sdk(target: Target) -> Any:
    with openai.OpenAI(base_url=f"{target.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat(target: Target, sdk: Any) -> None:
    whole = sdk.chat.completions.create(model=target.model, messages=TURNS, max_tokens=5, temperature=0)
    assert whole.usage.completion_tokens <= 5
    options = {"include_usage": True}
    stream = sdk.chat.completions.create(
        model=target.model, messages=TURNS, max_tokens=5, temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_completions(target: Target, sdk: Any) -> None:
    whole = sdk.completions.create(model=target.model, prompt="Say hello", max_tokens=5, temperature=0)
    stream = sdk.completions.create(model=target.model, prompt="Say hello", max_tokens=5, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices) == whole.choices[0].text


def test_openai_responses(target: Target, sdk: Any) -> None:
    whole = sdk.responses.create(model=target.model, input="Say hello.", max_output_tokens=5, temperature=0)
    assert whole.output_text
    stream = sdk.responses.create(
        model=target.model, input="Say hello.", max_output_tokens=5, temperature=0, stream=True
    )
    events = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text


def test_openai_tools(target: Target, sdk: Any) -> None:
    if target.name != "embedded":
        pytest.skip("a small model need not call a tool")
    function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    tools = [{"type": "function", "function": function}]
    whole = sdk.chat.completions.create(model=target.model, messages=TURNS, tools=tools, max_tokens=6)
    (call,) = whole.choices[0].message.tool_calls
    assert orjson.loads(call.function.arguments) == {"city": "bakedo"}
    answer = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*TURNS, whole.choices[0].message.model_dump(exclude_none=True), answer]
    after = sdk.chat.completions.create(model=target.model, messages=turns, tools=tools, max_tokens=6)
    assert after.choices[0].message.content
    stream = sdk.chat.completions.create(model=target.model, messages=TURNS, tools=tools, max_tokens=6, stream=True)
    pieces = [c.choices[0].delta.tool_calls[0] for c in stream if c.choices and c.choices[0].delta.tool_calls]
    assert pieces[0].id
    assert orjson.loads("".join(p.function.arguments or "" for p in pieces)) == {"city": "bakedo"}


def test_openai_errors_are_typed(target: Target, sdk: Any) -> None:
    target.needs("unknown_model")
    with pytest.raises(openai.NotFoundError, match="nope"):
        sdk.chat.completions.create(model="nope", messages=TURNS)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        sdk.chat.completions.create(model=target.model, messages=TURNS, max_tokens=0)


def test_anthropic_messages(target: Target) -> None:
    greedy = {"temperature": 0}
    with anthropic.Anthropic(base_url=target.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(model=target.model, messages=TURNS, max_tokens=5, extra_body=greedy)
        assert whole.usage.output_tokens <= 5
        with client.messages.stream(model=target.model, messages=TURNS, max_tokens=5, extra_body=greedy) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == whole.content[0].text
        assert final.stop_reason == whole.stop_reason
        counted = client.messages.count_tokens(model=target.model, messages=TURNS)
        assert counted.input_tokens > 0
        if "unknown_model" not in target.lacks:
            with pytest.raises(anthropic.NotFoundError, match="nope"):
                client.messages.create(model="nope", messages=TURNS, max_tokens=5)
