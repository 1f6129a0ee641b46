"""The embedded engine's bytes beside vLLM's recorded ones: events, members and their order, framing, error bodies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from engines.embedded.server import EngineOptions
from engines.embedded.types import Limits

from .harness import Answer, Client, with_engine
from .recorded import errors, streams

TINY = EngineOptions(limits=Limits(served_model_name="tiny", max_model_len=4096))


def shape(value: Any) -> Any:
    """Members in order and kinds of values; numbers are numbers."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def events_of(chunk: bytes) -> tuple[str | None, Any]:
    answer = Answer(body_bytes=chunk)
    (event,) = answer.events
    return event


@pytest.mark.parametrize("index", range(6))
def test_streams_have_vllms_events_members_and_framing(data: Path, index: int) -> None:
    exchange = streams(data)[index]
    headers = {k: v for k, v in exchange.headers.items() if k == "X-Request-Id"}

    async def work(client: Client) -> Answer:
        return await client.call(
            exchange.path, exchange.request, headers={"Content-Type": "application/json"} | headers
        )

    answer = with_engine(work, TINY)
    ours, theirs = answer.chunks, exchange.chunks
    assert [events_of(c)[0] for c in ours] == [events_of(c)[0] for c in theirs]
    for mine, recorded in zip(ours, theirs, strict=True):
        assert shape(events_of(mine)[1]) == shape(events_of(recorded)[1])
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    if headers:
        assert answer.headers["x-request-id"] == "my-req-001"
        assert answer.events[0][1]["id"] == "chatcmpl-my-req-001"
    else:
        assert len(answer.headers["x-request-id"]) == 32


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 1}
IDS = {"model": "tiny", "prompt": [5] * 37, "max_tokens": 11}
EXACT = IDS | {"min_tokens": 11, "ignore_eos": True}
NESTED = {"tenant": {"a": "b"}}

SAME = [  # title, path, body: the whole body must be vLLM's, byte for byte
    ("bad json", "/v1/chat/completions", b'{"model": "tiny", "messages": [x]}'),
    ("not an object", "/v1/chat/completions", b"[1, 2]"),
    ("missing messages", "/v1/chat/completions", {"model": "tiny"}),
    ("unknown model", "/v1/chat/completions", CHAT | {"model": "nope"}),
    ("too long prompt completions ids", "/v1/completions", IDS | {"prompt": [5] * 5000}),
    ("prompt exact 4096", "/v1/completions", IDS | {"prompt": [5] * 4096}),
    ("token id out of vocab", "/v1/completions", IDS | {"prompt": [5, 999_999]}),
    ("empty prompt ids", "/v1/completions", IDS | {"prompt": []}),
    ("negative max_tokens", "/v1/chat/completions", CHAT | {"max_tokens": -5}),
    ("zero max_tokens", "/v1/chat/completions", CHAT | {"max_tokens": 0}),
    ("zero max_tokens stream", "/v1/chat/completions", CHAT | {"max_tokens": 0, "stream": True}),
    ("temperature -1", "/v1/chat/completions", CHAT | {"temperature": -1}),
    ("temperature str", "/v1/chat/completions", CHAT | {"temperature": "abc"}),
    ("stream_options without stream", "/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}}),
    ("cache_salt empty", "/v1/chat/completions", CHAT | {"cache_salt": ""}),
    ("vllm_xargs bad", "/v1/chat/completions", CHAT | {"vllm_xargs": NESTED}),
    ("min_tokens>max_tokens", "/v1/completions", IDS | {"max_tokens": 1, "min_tokens": 5}),
    ("responses bad", "/v1/responses", {"model": "nope", "input": "hi"}),
    ("messages bad model", "/v1/messages", CHAT | {"model": "nope"}),
    ("messages missing max_tokens", "/v1/messages", {k: v for k, v in CHAT.items() if k != "max_tokens"}),
    ("404", "/v1/nothing", CHAT),
    ("embeddings", "/v1/embeddings", {"model": "tiny", "input": "a"}),
]


def ask(path: str, body: Any, **options: Any) -> Answer:
    async def work(client: Client) -> Answer:
        return await client.call(path, body, **options)

    return with_engine(work, TINY)


@pytest.mark.parametrize(("title", "path", "body"), SAME)
def test_refusals_are_vllms_byte_for_byte(data: Path, title: str, path: str, body: Any) -> None:
    status, headers, recorded = errors(data)[title]
    answer = ask(path, body)
    assert answer.status == status
    assert answer.body_bytes.decode() == recorded
    assert set(headers) <= set(answer.headers)
    assert answer.headers["content-length"] == headers["content-length"]


def test_a_chat_prompt_that_is_too_long(data: Path) -> None:
    status, _, recorded = errors(data)["too long prompt chat"]
    turns = [{"role": "user", "content": "word " * 5000}]
    answer = ask("/v1/chat/completions", CHAT | {"messages": turns})
    assert (answer.status, answer.body_bytes.decode()) == (status, recorded)


def test_wrong_media_type_and_method(data: Path) -> None:
    status, _, recorded = errors(data)["wrong content-type"]
    answer = ask("/v1/chat/completions", CHAT, headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.body_bytes.decode()) == (status, recorded)
    status, headers, recorded = errors(data)["bad method GET"]
    answer = ask("/v1/chat/completions", None)
    assert (answer.status, answer.body_bytes.decode(), answer.headers["allow"]) == (status, recorded, headers["allow"])


ALIKE = [  # title, path, body: the same members in the same order
    ("no model", "/v1/chat/completions", {k: v for k, v in CHAT.items() if k != "model"}),
    ("n=2 stream", "/v1/chat/completions", CHAT | {"n": 2, "max_tokens": 2}),
    ("unknown field", "/v1/chat/completions", CHAT | {"no_such_field": 1}),
    ("kv_transfer_params", "/v1/chat/completions", CHAT | {"kv_transfer_params": {"a": 1}}),
    ("cache_salt", "/v1/chat/completions", CHAT | {"cache_salt": "salt"}),
    ("vllm_xargs", "/v1/chat/completions", CHAT | {"vllm_xargs": {"a": "b"}}),
    ("request_id in body", "/v1/chat/completions", CHAT | {"request_id": "body-id-9"}),
    ("prompt+max_tokens > len", "/v1/completions", {"model": "tiny", "prompt": [5] * 4090, "max_tokens": 100}),
    (
        "ignore_eos+min_tokens",
        "/v1/completions",
        IDS | {"min_tokens": 11, "ignore_eos": True, "return_token_ids": True},
    ),
    (
        "prompt list of lists",
        "/v1/completions",
        {"model": "tiny", "prompt": [[5, 6, 7], [8, 9, 10, 11]], "max_tokens": 2},
    ),
    ("chat nonstream", "/v1/chat/completions", CHAT | {"max_tokens": 3}),
    ("messages nonstream", "/v1/messages", CHAT | {"max_tokens": 3}),
    ("count_tokens", "/v1/messages/count_tokens", CHAT),
    ("models", "/v1/models", None),
    ("version", "/version", None),
    ("load", "/load", None),
    ("tokenize text", "/tokenize", {"model": "tiny", "prompt": "a b c d e"}),
    ("detokenize", "/detokenize", {"model": "tiny", "tokens": [1, 2, 3]}),
]


@pytest.mark.parametrize(("title", "path", "body"), ALIKE)
def test_answers_have_vllms_members(data: Path, title: str, path: str, body: Any) -> None:
    status, _, recorded = errors(data)[title]
    answer = ask(path, body)
    assert answer.status == status, answer.body_bytes
    assert shape(answer.json) == shape(orjson.loads(recorded))


def test_ping_and_health_are_empty(data: Path) -> None:
    for path in ("/ping", "/health"):
        answer = ask(path, None)
        assert (answer.status, answer.body_bytes) == (200, b"")


def test_ids(data: Path) -> None:
    """The header beats the body's request_id; what it holds is not checked; it comes back as it was sent."""
    table = errors(data)
    for title, body, header in [
        ("request_id in body", CHAT | {"request_id": "body-id-9"}, None),
        ("request_id in body + header", CHAT | {"request_id": "body-id-9"}, "hdr-7"),
        ("weird X-Request-Id", CHAT, "a b/c?d=é"),
    ]:
        _, headers, recorded = table[title]
        answer = ask("/v1/chat/completions", body, headers={} if header is None else {"X-Request-Id": header})
        assert answer.json["id"] == orjson.loads(recorded)["id"]
        if header is not None:
            assert answer.headers["x-request-id"] == headers["x-request-id"]


def test_metrics_page_has_vllms_names_types_labels_and_buckets(data: Path) -> None:
    recorded = (data / "vllm" / "metrics.txt").read_text()

    def families(text: str) -> dict[str, tuple[str, set[str]]]:
        kinds = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE vllm:")}
        out: dict[str, tuple[str, set[str]]] = {}
        for line in text.splitlines():
            if line.startswith("vllm:"):
                name, _, rest = line.partition("{")
                labels = rest.rpartition("}")[0].replace("h100-llama8b", "tiny")
                base = name if name in kinds else name.rsplit("_", 1)[0]
                out.setdefault(base, (kinds[base], set()))[1].add(f"{name}{{{labels}}}")
        return out

    async def work(client: Client) -> str:
        await client.call("/v1/completions", IDS)
        return (await client.call("/metrics")).body_bytes.decode()

    ours, theirs = families(with_engine(work, TINY)), families(recorded)
    assert len(ours) >= 20
    for name, (kind, rows) in ours.items():
        assert theirs[name][0] == kind
        if name != "vllm:cache_config_info":
            extra = rows - theirs[name][1]
            # A histogram of token counts ends at the model's length, which differs; all else is the same.
            assert not [row for row in extra if "_bucket" not in row], name
