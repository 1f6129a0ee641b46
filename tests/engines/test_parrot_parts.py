"""Parts of the bridge: the words tokenizer, ids out of two dialects, what a record is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from engines.parrot.completion import Completion, Wanted
from engines.parrot.contexts import Contexts
from engines.parrot.protocol import mark, marked
from engines.parrot.tasks import Begun, TaskKey
from engines.parrot.words import FIRST, SPECIAL, write_tokenizer


def test_every_id_is_one_word_and_every_word_one_id(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tok", 2_000, ["the", "of", "the"])
    model = orjson.loads((folder / "tokenizer.json").read_bytes())["model"]
    vocab = model["vocab"]
    assert sorted(vocab.values()) == list(range(2_000)) and (vocab["the"], vocab["of"]) == (FIRST, FIRST + 1)
    assert not [word for word in vocab if word.split() != [word]]
    assert {word: vocab[word] for word in SPECIAL} == SPECIAL
    for special in SPECIAL:  # specials are found anywhere in a text: none may be part of another word
        assert [w for w in vocab if special in w] == [special]
    config = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    assert {config["unk_token"], config["eos_token"]} == set(SPECIAL)
    with pytest.raises(ValueError, match="too small"):
        write_tokenizer(tmp_path / "small", 1_001, ["the", "of"])


def test_a_mark_is_read_back_and_nothing_else_is_one() -> None:
    assert marked({"stop_str": mark("jg-1")}) == "jg-1"
    for other in ({}, {"stop_str": None}, {"stop_str": "END"}, {"stop_str": mark("")}, {"stop_str": 3}):
        assert marked(other) is None


def done(*events: dict[str, Any], status: int = 200, end: Callable[[Completion], None] | None = None) -> Completion:
    async def work() -> Completion:
        made = Completion(100)
        made.head(status, [], 110)
        for k, event in enumerate(events):
            made.body(b"data: " + orjson.dumps(event) + b"\n\n", 120 + k)
        (end or (lambda m: m.done(200)))(made)
        await made.over
        return made

    return asyncio.run(work())


def choice(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": None, **more}]}


def test_ids_come_from_either_dialect() -> None:
    vllm = done(choice("a", token_ids=[1, 2]), choice("b", token_ids=[3]))
    llama = done(
        choice("a", logprobs={"content": [{"id": 1}, {"id": 2}]}), choice("b", logprobs={"content": [{"id": 3}]})
    )
    for made in (vllm, llama):
        assert made.ids == [1, 2, 3] and made.outcome == "ok"
        seen = made.fields()
        assert (seen["t_first_token_ns"], seen["t_last_token_ns"], seen["t_end_ns"]) == (120, 121, 200)
        assert (seen["read_dt_ns"], seen["read_tokens"], seen["completion_tokens"]) == ((20, 1), (2, 1), 3)
    old = done(choice("a", logprobs={"tokens": ["a"], "content": None}))
    assert (old.outcome, old.ids) == ("error", []) and "token ids" in (old.error or "")


def test_every_failure_is_an_outcome_and_keeps_what_came() -> None:
    part = choice("a", token_ids=[1])
    assert done(part, end=lambda m: m.lost("reset", 150)).outcome == "upstream_died"
    assert done(part, end=lambda m: m.lost("reset", 150)).ids == [1]
    assert done(part, {"error": {"message": "cancelled"}}).error == "cancelled"
    assert [done(status=s).outcome for s in (400, 429, 500, 503)] == ["rejected", "rejected", "error", "error"]
    late = done(part, end=lambda m: (m.fail("timeout", "late", 150), m.done(160))[0])
    assert (late.outcome, late.end_ns) == ("timeout", 150)


def test_what_is_asked_for() -> None:
    exact = orjson.loads(Wanted.of({"max_gen_length": 7, "ignore_tokenizer_eos": True}).body("m", [1], "token_ids"))
    assert (exact["max_tokens"], exact["min_tokens"], exact["ignore_eos"], exact["return_token_ids"]) == (
        7,
        7,
        True,
        True,
    )
    free = orjson.loads(Wanted.of({"stop_token_ids": [2]}).body("m", [1], "logprobs"))
    assert free["stop_token_ids"] == [2] and free["logprobs"] == 1 and "min_tokens" not in free
    assert free["max_tokens"] == 512 and "stop" not in free


def test_a_task_begins_with_its_first_fill_and_few_are_remembered() -> None:
    begun, key = Begun(limit=2), TaskKey(0, 1, 2)
    begun.fill(key, 5)
    begun.fill(key, 9)
    assert begun.take(key, 20) == 5 and begun.take(key, 20) == 20
    for task in range(3):
        begun.fill(TaskKey(0, 0, task), task)
    assert [begun.take(TaskKey(0, 0, task), 99) for task in range(3)] == [99, 1, 2]


def test_a_chain_with_a_hole_is_not_whole() -> None:
    contexts = Contexts()
    contexts.open(1, -1)
    contexts.open(2, 1)
    contexts.open(3, 9)
    assert contexts.whole(2) and not contexts.whole(3) and not contexts.whole(7)
    contexts.free(1)
    assert not contexts.whole(2)
