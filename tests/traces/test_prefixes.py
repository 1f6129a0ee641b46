"""Recorded prompts as marks: equal beginnings get equal blocks, exact where usage told the tokens; turns are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.importers.prefixes import BLOCK_TOKENS, Continued, Prefixes, continuations
from traces.records import RequestRecord

S = 1_000_000_000
BLOCK = 128


def message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "length": len(text), "digest": str(hash((role, text)))}


def asked(name: str, *said: tuple[str, str], at: int = 0, **known: object) -> RequestRecord:
    """A request as recorded: marks of its messages and of its whole blocks, a token per three bytes."""
    prompt = "".join(f"\0{role}\1{text}" for role, text in said)
    blocks = tuple(hash(prompt[: k + BLOCK]) & (2**62 - 1) for k in range(0, len(prompt) - BLOCK + 1, BLOCK))
    record = RequestRecord(
        name, "w", None, "ok", at * S, (at + 1) * S, prompt_tokens=len(prompt) // 3, completion_tokens=20,
        messages=tuple(message(*one) for one in said), block_hashes=blocks, api="chat",
    )  # fmt: skip
    return replace(record, **known)  # type: ignore[arg-type]


def shared(first: RequestRecord, second: RequestRecord) -> int:
    """Blocks that two prompts begin with alike."""
    prefixes = Prefixes(BLOCK)
    one, two = (prefixes.hash_ids(prefixes.path(r), r.prompt_tokens or 0) for r in (first, second))
    return next((k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


@given(system=st.integers(0, 700), first=st.integers(1, 700), second=st.integers(1, 700), common=st.integers(0, 700))
def test_blocks_are_shared_as_far_as_the_prompts_are_alike(system: int, first: int, second: int, common: int) -> None:
    head = ("system", "s" * system)
    a = asked("a", head, ("user", "c" * common + "a" * first))
    b = asked("b", head, ("user", "c" * common + "b" * second))
    alike = len(f"\0system\1\0user\1{'s' * system}{'c' * common}")
    told = alike // BLOCK * BLOCK
    told = max(told, 8 + system)  # a message ends there: exact to the byte
    assert (told - 3 * BLOCK_TOKENS - 4) // (3 * BLOCK_TOKENS) <= shared(a, b) <= alike // (3 * BLOCK_TOKENS) + 1


def test_a_continued_prompt_shares_all_of_the_earlier_one_and_no_block_more() -> None:
    first = asked("a", ("user", "x" * 500))
    second = asked("b", ("user", "x" * 500), ("assistant", "y" * 100), ("user", "z" * 300), at=5)
    assert shared(first, second) == (first.prompt_tokens or 0) // BLOCK_TOKENS


def turns(*records: RequestRecord) -> list[Continued | None]:
    prefixes = Prefixes(BLOCK)
    return continuations(records, [prefixes.path(r) for r in records])


Q, A, R = ("user", "q" * 90), ("assistant", "a" * 60), ("user", "r" * 90)


def test_a_turn_is_found_and_the_latest_of_equal_questions_taken() -> None:
    one, again = asked("a", Q), asked("b", Q, at=2)
    child = asked("c", Q, A, R, at=4)
    assert turns(one, again, child) == [None, None, Continued(1, "answer")]


@pytest.mark.parametrize(
    "child",
    [
        asked("c", Q, R, ("user", "more"), at=4),  # no answer of a model in between
        asked("c", Q, A, R, at=4, workflow_id="other"),
        asked("c", ("user", "p" * 90), A, R, at=4),  # another question
        asked("c", Q, A, R),  # asked before the answer had come
    ],
)
def test_what_is_no_turn_of_it(child: RequestRecord) -> None:
    assert turns(asked("a", Q), child) == [None, None]


@pytest.mark.parametrize(
    ("cached", "extends"),
    [(48, "answer"), (32, "prompt"), (None, "answer"), (0, "answer")],
)
def test_cached_tokens_tell_whether_the_answer_was_known_again(cached: int | None, extends: str) -> None:
    before = asked("a", Q, prompt_tokens=33, cached_tokens=16)
    child = asked("b", Q, A, R, at=4, prompt_tokens=90, cached_tokens=cached)
    found = turns(before, child)[1]
    assert found is not None and found.extends == extends


def test_an_answer_that_cannot_be_in_the_prompt_is_not_taken_for_it() -> None:
    before = asked("a", Q, completion_tokens=5000)
    assert turns(before, asked("b", Q, A, R, at=4)) == [None, Continued(0, "prompt")]
