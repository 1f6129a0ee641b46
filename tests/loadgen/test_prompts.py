"""Prompts: exact lengths, exact sharing, different ids differ early, runs never share."""

from __future__ import annotations

from typing import Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.bodies import Bodies, Output, Outputs
from loadgen.prompts import Segment, TokenIds, Words, addition, segments
from loadgen.target import Target
from loadgen.vocabulary import WORDS
from traces.errors import UserError
from traces.workflow import Dep, Manifest, Node

MANIFEST = Manifest(block_size=16)


def node(length: int, blocks: tuple[int, ...] | None = None, name: str = "r", **more: object) -> Node:
    return Node("w", name, 0, length, 7, hash_ids=blocks, **more)  # type: ignore[arg-type]


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


lengths = st.integers(1, 200)
blocks = st.lists(st.integers(0, 40), max_size=10).map(tuple)


@given(lengths, blocks, lengths, blocks)
def test_lengths_are_exact_and_sharing_is_that_of_the_blocks(
    n: int, a: tuple[int, ...], m: int, b: tuple[int, ...]
) -> None:
    ids = TokenIds("s", block_size=16)
    one, two = node(n, a, "r1"), node(m, b, "r2")
    got = [orjson.loads(ids.json(segments(x, MANIFEST))) for x in (one, two)]
    assert [len(g) for g in got] == [n, m]
    assert got == [ids.ids(segments(x, MANIFEST)) for x in (one, two)]
    same = common(list(a), list(b))
    shared = min(16 * same, n, m)
    expected = min(n, m) if shared == min(n, m) else shared
    # where the plans part, contents part within the next few tokens (a chance agreement of one is harmless)
    assert expected <= common(got[0], got[1]) <= expected + 2


def test_the_cache_changes_nothing() -> None:
    tiny, large = TokenIds("s", block_size=16, cache=1), TokenIds("s", block_size=16)
    for i in range(50):
        parts = segments(node(100, tuple(range(i % 7, i % 7 + 7)), f"r{i}"), MANIFEST)
        assert tiny.json(parts) == large.json(parts) == large.json(parts)


def test_another_salt_or_scope_shares_nothing() -> None:
    plan = segments(node(64, (1, 2, 3, 4)), MANIFEST)
    one, two = TokenIds("a", block_size=16).ids(plan), TokenIds("b", block_size=16).ids(plan)
    assert common(one, two) <= 1
    own = Manifest(block_size=16, hash_scope="workflow")
    keys = [segments(Node(w, "r", 0, 16, 1, hash_ids=(1,)), own)[0].key for w in ("w1", "w2")]
    assert keys[0] != keys[1]


def test_ids_stay_in_the_vocabulary_and_spread_over_it() -> None:
    ids = TokenIds("s", block_size=16, vocab=(100_000, 200_000)).ids([Segment("k", 20_000, False)])
    assert min(ids) >= 100_000 and max(ids) < 200_000 and len(set(ids)) > 15_000
    with pytest.raises(UserError):
        TokenIds("s", block_size=16, vocab=(5, 5))


@given(lengths, blocks)
def test_words_are_exact_and_safe(n: int, chosen: tuple[int, ...]) -> None:
    text = Words("s", block_size=16).text(segments(node(n, chosen), MANIFEST))
    words = text.split(" ")
    assert words[0] == "" and len(words) == n + 1 and set(words[1:]) <= set(WORDS)


def test_the_safe_vocabulary_is_a_power_of_two_of_distinct_words() -> None:
    assert len(set(WORDS)) == len(WORDS) == 512
    assert all(w.isascii() and w.isalpha() and w.islower() for w in WORDS)


def body(target: Target, n: Node, live: dict[str, Output] | None = None) -> dict[str, object]:
    return orjson.loads(Bodies(target, MANIFEST, "s").render(n, live).data)


def test_bodies_of_the_dialects() -> None:
    target = Target("h", 1, model="m")
    n = node(20, (1,), sampling={"temperature": 0.5, "stream": False})
    got = body(target, n)
    assert len(got.pop("prompt")) == 20  # type: ignore[arg-type]
    assert got == {
        "model": "m", "max_tokens": 7, "min_tokens": 7, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.5,
    }  # fmt: skip
    chat = body(Target("h", 1, model="m", api="chat", exact=False, overhead_tokens=4), n)
    assert len(chat["messages"][0]["content"].split()) == 16  # type: ignore[index]
    assert "ignore_eos" not in chat
    responses = body(Target("h", 1, model="m", api="responses"), n)
    assert responses["max_output_tokens"] == 7 and len(responses["input"].split()) == 20  # type: ignore[attr-defined]
    messages = body(Target("h", 1, model="m", api="messages"), n)
    assert messages["max_tokens"] == 7 and "stream_options" not in messages
    with pytest.raises(UserError):
        body(target, node(3, None, api="parrot"))


def test_recorded_content_is_sent_as_it_is() -> None:
    target = Target("h", 1, model="m")
    assert body(target, node(3, None, prompt="a b"))["prompt"] == "a b"
    assert body(target, node(3, None, token_ids=(5, 6)))["prompt"] == [5, 6]
    said = ({"role": "user", "content": "hi"},)
    assert body(target, node(3, None, messages=said, api="chat"))["messages"] == [{"role": "user", "content": "hi"}]


def test_live_outputs_take_the_place_of_planned_content() -> None:
    target = Target("h", 1, model="m", api="chat")
    live = {"p": Output(" live answer", 2)}
    n = node(40, (1, 2), deps=(Dep("p"),))
    text = body(target, n, live)["messages"][0]["content"]  # type: ignore[index]
    plain = body(target, n)["messages"][0]["content"]  # type: ignore[index]
    assert len(text.split()) == 40 and " live answer" in text
    assert text.split()[:32] == plain.split()[:32]
    said = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "old", "output_of": "p"})
    got = body(target, node(9, None, messages=said, api="chat", deps=(Dep("p"),)), live)["messages"]
    assert got == [{"role": "user", "content": "q"}, {"role": "assistant", "content": " live answer"}]


def turn(*, extends: Literal["answer", "prompt"], outputs: Outputs, tokens: int = 60) -> list[dict[str, str]]:
    """What is sent after a question of 20 tokens that was answered with 3."""
    target = Target("h", 1, model="m", api="chat", overhead_tokens=8, turn_tokens=10)
    bodies = Bodies(target, MANIFEST, "s", outputs)
    asked = bodies.render(node(20, (1,)), {})
    known = {"p": Output(" live answer here", 3, asked.messages, 20)}
    child = node(tokens, (1, 2, 3), "c", api="chat", deps=(Dep("p", "conversation", extends=extends),))
    sent: list[dict[str, str]] = orjson.loads(bodies.render(child, known).data)["messages"]
    assert sent[0] == asked.messages[0] or len(sent) == 1
    return sent


def test_a_conversation_goes_on_from_the_live_answer_and_keeps_its_length() -> None:
    sent = turn(extends="answer", outputs="continued")
    assert [m["role"] for m in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == " live answer here"
    assert 20 + 10 + 3 + len(sent[2]["content"].split()) == 60


@pytest.mark.parametrize(("extends", "outputs"), [("prompt", "continued"), ("answer", "recorded"), ("prompt", "live")])
def test_else_planned_words_stand_where_the_answer_was(extends: Literal["answer", "prompt"], outputs: Outputs) -> None:
    sent = turn(extends=extends, outputs=outputs)
    assert len(sent[1]["content"].split()) == 3 and "live" not in sent[1]["content"]
    assert 20 + 10 + 3 + len(sent[2]["content"].split()) == 60
    assert turn(extends=extends, outputs=outputs) == sent


def test_a_turn_without_room_for_the_earlier_one_stands_alone() -> None:
    (only,) = turn(extends="answer", outputs="continued", tokens=31)
    assert len(only["content"].split()) == 31 - 8


@given(length=st.integers(1, 200), tokens=st.integers(1, 200), blocks=st.integers(0, 12))
def test_an_addition_has_its_length_and_is_alike_where_blocks_are(length: int, tokens: int, blocks: int) -> None:
    tokens = min(length, tokens)
    ids = tuple(range(min(blocks, length // 16)))
    made = [addition(node(length, ids, name=name), MANIFEST, tokens) for name in ("a", "b")]
    assert sum(s.tokens for s in made[0]) == tokens and all(s.tokens > 0 for s in made[0])
    alike = sum(a.tokens for a, b in zip(*made, strict=True) if a == b)
    assert alike == max(0, len(ids) * 16 - (length - tokens))
