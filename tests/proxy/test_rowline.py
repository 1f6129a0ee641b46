"""A journal line written the short way says exactly what the exchange's row says."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import rowline
from proxy.config import ProxyConfig
from proxy.content import RequestFacts, read_facts
from proxy.exchange import Exchange
from proxy.heads import RequestHead, read_request
from proxy.row import row as row_of
from proxy.rowline import line
from traces.tags import Tag
from traces.workflow import Dep

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
some = st.none() | words
counts = st.none() | st.integers(0, 10**6)
PATHS = [b"/v1/chat/completions", b"/v1/completions", b"/v1/messages", b"/v1/responses", b"/v1/models"]


def head(path: bytes, request_id: str) -> RequestHead:
    config = ProxyConfig(("http://127.0.0.1:1",))
    named = [(b"Host", b"p"), (b"X-Request-Id", request_id.encode())]
    made = read_request(b"POST", path, "1.1", named, True, config, frozenset())
    assert isinstance(made, RequestHead)
    return made


ODD = ("parents", "queued", "edges", "note", "error", "metrics", "tools", "in the reply", "text", "previous", "unread")
"""what takes a line off the short way; an exchange has at most one of them, or each would hide the others"""


@st.composite
def exchanges(draw: st.DrawFn, odd: str | None) -> Exchange:
    """Ended exchanges of every kind: as usual, or odd in one way."""
    path = PATHS[4] if odd == "unread" else draw(st.sampled_from(PATHS[:4]))
    exchange = Exchange(head(path, draw(st.sampled_from(["r1", "r2", "jg-1"]))), 10, 20)
    parents = (Dep("a", "tool", provenance="declared"),) if odd == "parents" else ()
    made = Tag(draw(some), draw(some), parents, draw(some), draw(some), draw(some), draw(some), draw(some))
    exchange.tag = made if odd == "parents" or draw(st.booleans()) else None
    exchange.t_body_ns = draw(counts)
    exchange.facts = draw(st.none() | facts()) if odd is None else facts_of(draw(bodies), odd)
    if odd == "queued":
        exchange.left_queue(30)
    if odd == "edges":
        exchange.edges = (Dep("b", "tool", provenance="recorded"),)
    if odd == "note":
        exchange.add_note("a note")
    exchange.sent(draw(words), draw(st.booleans()), 40)
    exchange.usage_spliced = draw(st.none() | st.booleans())
    streamed = draw(st.booleans())
    exchange.reply(draw(st.sampled_from([200, 404])), streamed, False, keep_text=odd == "text")
    reply = orjson.dumps(draw(replies) | ODD_REPLY.get(odd or "", {}))
    exchange.read(50, len(reply), b"data: " + reply + b"\n\n" if streamed else reply)
    exchange.end(draw(st.sampled_from(["ok", "error", "client_left"])), 60, "why" if odd == "error" else None)
    return exchange


bodies = st.fixed_dictionaries(
    {
        "model": words,
        "stream": st.booleans(),
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": words}), max_size=3),
    },
    optional={"max_tokens": st.integers(0, 9), "temperature": st.floats(0, 2)},
)
replies = st.fixed_dictionaries(
    {"id": words},
    optional={
        "usage": st.fixed_dictionaries({"prompt_tokens": counts, "completion_tokens": counts}),
        "choices": st.lists(st.fixed_dictionaries({"finish_reason": some}), max_size=2),
    },
)
ODD_REPLY: dict[str, dict[str, Any]] = {
    "metrics": {"metrics": {"queue_time_ms": 1.5}},
    "tools": {"choices": [{"message": {"content": "x", "tool_calls": [{"id": "call-1"}]}}]},
    "in the reply": {"error": "failed"},
}


def facts_of(body: dict[str, Any], odd: str | None) -> RequestFacts:
    mode: Any = "text" if odd == "text" else "hash"
    more = {"previous_response_id": "resp-1"} if odd == "previous" else {}
    return read_facts(body | more, mode=mode, key=b"k" * 32, block_bytes=16)


def facts() -> st.SearchStrategy[RequestFacts]:
    return bodies.map(lambda body: facts_of(body, None))


@pytest.mark.parametrize("odd", [None, *ODD])
@given(st.data())
def test_a_line_says_what_the_row_says(odd: str | None, data: st.DataObject) -> None:
    for exchange in data.draw(st.lists(exchanges(odd), min_size=1, max_size=4)):
        written = line(exchange)
        assert written.endswith(b"}\n")
        assert written.count(b"\n") == 1
        said = orjson.loads(written)
        row = row_of(exchange)
        assert said == orjson.loads(orjson.dumps(row))
        assert said.keys() == row.keys()


def plain(model: str) -> Exchange:
    exchange = Exchange(head(PATHS[0], "r1"), 10, 20)
    exchange.facts = read_facts({"model": model, "messages": []}, mode="hash", key=b"k" * 32, block_bytes=128)
    exchange.reply(200, False, False, keep_text=False)
    exchange.read(30, 2, b'{"id":"c1"}')
    exchange.end("ok", 40)
    return exchange


def test_what_is_shared_is_bounded_and_stays_right() -> None:
    for number in range(rowline.MAX_SHARED + 2):
        assert orjson.loads(line(plain(f"m{number}")))["model"] == f"m{number}"
    assert len(rowline._SHARED) <= rowline.MAX_SHARED
    before = dict(rowline._SHARED)
    assert orjson.loads(line(plain("m1")))["model"] == "m1"
    assert orjson.loads(line(plain("m1")))["t_end_ns"] == 40
    assert len(rowline._SHARED) == len(before) + 1
