"""What is kept of a request: structure and keyed digests, never text; exact edges from ids."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import content
from proxy.content import block_hashes, named_ids, parse_body, read_facts, unquoted
from proxy.lineage import Lineage
from traces.exact import Named, link
from traces.tags import Tag
from traces.workflow import Dep, dep_row

KEY, OTHER = b"k" * 32, b"o" * 32
SECRET = "the launch code is 0451"
CHAT = {
    "model": "m",
    "stream": True,
    "max_tokens": 9,
    "temperature": 0.5,
    "stop": ["x", SECRET],
    "user": "alice",
    "messages": [
        {"role": "system", "content": SECRET},
        {"role": "user", "content": [{"type": "text", "text": SECRET}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "function": {"arguments": SECRET}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": SECRET},
    ],
}


def facts(body: Any, mode: Any = "hash", key: bytes = KEY) -> Any:
    return read_facts(body, mode=mode, key=key, block_bytes=16)


def test_structure_of_a_chat() -> None:
    got = facts(CHAT)
    assert (got.model, got.stream, got.max_tokens, got.sampling) == ("m", True, 9, {"temperature": 0.5})
    assert [m["role"] for m in got.messages] == ["system", "user", "assistant", "tool"]
    assert got.messages[0]["length"] == len(SECRET)
    assert got.messages[0]["digest"] == got.messages[1]["digest"]  # text parts say what a string says
    assert [m.get("tool_ids") for m in got.messages] == [None, None, ["call_1"], ["call_1"]]
    assert got.block_hashes


@pytest.mark.parametrize("mode", ["none", "hash"])
def test_no_text_unless_asked_for(mode: str) -> None:
    got = facts(CHAT, mode)
    assert SECRET not in repr(got)
    assert "alice" not in repr(got)
    assert got.content is None
    if mode == "none":
        assert (got.messages, got.block_hashes) == ((), ())


def test_text_when_asked_for() -> None:
    assert facts(CHAT, "text").content["messages"] == CHAT["messages"]


def test_digests_need_the_key() -> None:
    one, two = facts(CHAT), facts(CHAT, key=OTHER)
    assert one.messages[0]["digest"] != two.messages[0]["digest"]
    assert not set(one.block_hashes) & set(two.block_hashes)


@given(st.binary(max_size=200), st.binary(max_size=100), st.binary(max_size=100))
def test_blocks_agree_exactly_on_the_shared_prefix(prefix: bytes, left: bytes, right: bytes) -> None:
    a, b = prefix + left, prefix + right
    one, two = block_hashes(a, KEY, 16), block_hashes(b, KEY, 16)
    assert len(one) == len(a) // 16
    for k in range(min(len(one), len(two))):
        assert (one[k] == two[k]) is (a[: 16 * (k + 1)] == b[: 16 * (k + 1)])
    assert all(0 <= x < 2**63 for x in one)


words = st.text(max_size=20)
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words}), max_size=5)


@given(turns, turns)
def test_a_conversation_that_goes_on_keeps_its_blocks(
    history: list[dict[str, str]], more: list[dict[str, str]]
) -> None:
    before, after = facts({"messages": history}), facts({"messages": history + more})
    assert after.block_hashes[: len(before.block_hashes)] == before.block_hashes


bodies: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6),
    lambda c: (
        st.lists(c, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "tool_calls", "id", "input", "tools", "type"]), c
        )
    ),
    max_leaves=12,
)


@given(bodies)
def test_odd_bodies_never_fail_a_recorder_with_anything_unforeseen(body: Any) -> None:
    try:
        facts(parse_body(orjson.dumps(body)))
    except (TypeError, ValueError, AttributeError):
        pass  # the relay notes these and goes on


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, Named()),
        ({"previous_response_id": "r"}, Named("r")),
        ({"messages": CHAT["messages"]}, Named(None, ("call_1",), ("call_1",))),
        (
            {"messages": [*CHAT["messages"], {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]},  # type: ignore[misc]
            Named(None, (), ("call_1",)),
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "t1"}, {"type": "tool_use", "id": "t2"}],
                    },
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "c"}]},
                ]
            },
            Named(None, ("t1",), ("t1", "t2")),
        ),
        (
            {
                "input": [
                    {"type": "function_call", "call_id": "f1", "name": "n", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "f1", "output": "o"},
                ]
            },
            Named(None, ("f1",), ("f1",)),
        ),
    ],
)
def test_named_ids(body: dict[str, Any], named: Named) -> None:
    assert named_ids(body) == named


def test_exact_edges() -> None:
    lineage = Lineage()
    lineage.learn("a", "w", "resp_1", ["call_1"])
    lineage.learn("b", "other", "resp_2", ["call_2"])
    assert lineage.edges(Named(None, ("call_1",)), "w", ()) == (Dep("a", "tool"),)
    assert lineage.edges(Named("resp_1"), "w", ()) == (Dep("a", "conversation"),)
    assert lineage.edges(Named("resp_1", ("call_1",)), "w", ()) == (Dep("a", "tool"),)
    assert lineage.edges(Named(None, (), ("call_0", "call_1")), "w", ()) == (Dep("a", "conversation"),)
    assert lineage.edges(Named("resp_1"), "w", (Dep("a", provenance="declared"),)) == ()
    assert lineage.edges(Named("resp_2"), "w", ()) == ()  # never across workflows
    assert lineage.edges(Named("resp_9"), "w", ()) == ()


def test_memory_of_ids_is_bounded_and_forgets_the_oldest() -> None:
    lineage = Lineage(limit=3)
    for k in range(5):
        lineage.learn(f"n{k}", None, f"r{k}", [])
    assert [bool(lineage.edges(Named(f"r{k}"), None, ())) for k in range(5)] == [False, False, True, True, True]


def test_grandchildren_land_in_the_root_workflow() -> None:
    lineage = Lineage()
    for session, parent in [("s0", None), ("s1", "s0"), ("s2", "s1"), ("s3", "s2")]:
        tag = Tag(workflow_id=parent or session, agent_id=session, parent_agent_id=parent, source="dynamo")
        assert lineage.place(tag).workflow_id == "s0"


@given(st.lists(st.lists(st.sampled_from(["", "a", "b" * 200, "ü" * 5000]), max_size=5), max_size=12))
def test_digests_of_texts_met_before_are_those_of_new_ones(chats: list[list[str]]) -> None:
    key = b"m" * 32
    for texts in chats:
        body = {"messages": [{"role": "user", "content": text} for text in texts]}
        got = read_facts(body, mode="hash", key=key, block_bytes=16).messages
        assert [m["digest"] for m in got] == [content.digest(text.encode(), key) for text in texts]
    assert content._hashes(key)[0].keys() <= {"", "a", "b" * 200}  # long texts are not kept, nor are last ones
    assert all(len(text.encode()) <= content.MAX_MET_BYTES for text in content._hashes(key)[0])


def test_texts_met_before_are_bounded() -> None:
    for number in range(content.MAX_MET + 2):
        body = {"messages": [{"role": "system", "content": f"s{number}"}, {"role": "user", "content": "u"}]}
        read_facts(body, mode="hash", key=b"n" * 32, block_bytes=16)
    assert 0 < len(content._hashes(b"n" * 32)[0]) <= content.MAX_MET


ids = st.sampled_from(["c1", "c2", "c3"])
turns = st.one_of(
    st.builds(lambda i: {"role": "tool", "tool_call_id": i, "content": "x"}, ids),
    st.builds(lambda i: {"role": "assistant", "tool_calls": [{"id": i}]}, ids),
    st.builds(lambda i: {"type": "function_call", "call_id": i}, ids),
    st.builds(lambda i: {"role": "user", "content": [{"type": "tool_result", "tool_use_id": i}]}, ids),
    st.sampled_from([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]),
)


@given(st.lists(turns, max_size=8), st.sampled_from([None, "resp"]))
def test_readers_of_records_link_as_the_proxy_does(messages: list[dict[str, Any]], previous: str | None) -> None:
    body = orjson.loads(orjson.dumps({"messages": messages, "previous_response_id": previous}))
    kept = read_facts(body, mode="hash", key=b"k", block_bytes=128)
    lineage = Lineage()
    rows: list[dict[str, Any]] = []
    for name, tools, response in ("c1", ["c1"], None), ("c2", ["c2"], None), ("c3", ["c3"], None), ("r", [], "resp"):
        lineage.learn(name, None, response, tools)
        times = {"t_arrival_ns": 0, "t_end_ns": 5, "api": "responses"}
        rows.append({"request_id": name, "tool_call_ids": tools, "response_id": response, **times})
    structure = orjson.loads(orjson.dumps(kept.messages))
    asked = {"request_id": "b", "messages": structure, "previous_response_id": previous, "t_arrival_ns": 9}
    assert link([*rows, asked])[-1] == [dep_row(d) for d in lineage.edges(named_ids(body), None, ())]


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("This model's maximum context length is 8192 tokens.", "This model's maximum context length is 8192 tokens."),
        ("The model `nope` does not exist.", "The model ..."),
        ("1 validation error:\n  {'loc': 'body.messages', 'input': 'the launch code'}", "1 validation error ..."),
        ("[{'type': 'missing', 'input': {'prompt': 'the launch code'}}]", " ..."),
        (
            "Failed to parse messages: no content; messages = [the launch code]",
            "Failed to parse messages: no content; messages ...",
        ),
        ('Invalid: "the launch code"', "Invalid ..."),
        ("x" * 400, "x" * 300 + " ..."),
    ],
)
def test_an_engines_error_is_kept_without_what_it_quotes(message: str, kept: str) -> None:
    assert unquoted(message) == kept
