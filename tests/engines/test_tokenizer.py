"""The tokenizer: what the engine says comes back as the same tokens; counts add up; fast on long prompts."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.embedded.tokenizer import Tokenizer

LLAMA = Tokenizer(128_000, 128_009)
SMALL = Tokenizer(32_000, 2)
WORDS = st.from_regex(r"[a-z]{1,24}", fullmatch=True)


@pytest.mark.parametrize("tokenizer", [LLAMA, SMALL])
@given(data=st.data())
def test_generated_tokens_survive_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = st.integers(0, tokenizer.vocab_size - 1).filter(lambda t: t != tokenizer.eos_token_id)
    tokens = data.draw(st.lists(ids, max_size=40))
    text = tokenizer.decode(tokens)
    assert tokenizer.encode(text) == tokens
    assert tokenizer.encode(text.strip()) == tokens
    assert [len(s) for s in tokenizer.strings(tokens)] == [7] * len(tokens)


@given(st.lists(WORDS, min_size=1, max_size=40))
def test_one_word_is_one_token(words: list[str]) -> None:
    assert len(LLAMA.encode(" ".join(words))) == len(words)
    assert len(LLAMA.encode("".join(" " + w for w in words))) == len(words)
    # Mixed with other characters, the same words are still one token each.
    assert len(LLAMA.encode(" ".join(words) + "!")) == len(words) + 1


@given(st.text(max_size=200), st.lists(WORDS, max_size=5))
def test_any_text_has_valid_tokens_and_words_append_theirs(text: str, words: list[str]) -> None:
    tokens = LLAMA.encode(text)
    assert (len(tokens) > 0) == (len(text) > 0)
    assert all(0 <= t < LLAMA.vocab_size for t in tokens)
    if text and not text[-1].isspace():
        more = LLAMA.encode(text + "".join(" " + w for w in words))
        assert more == tokens + [t for w in words for t in LLAMA.encode(" " + w)]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=40)), max_size=5))
def test_a_conversation_extends_its_prefix(turns: list[tuple[str, str]]) -> None:
    before = LLAMA.chat(turns)[:-3]
    assert LLAMA.chat([*turns, ("user", "more")])[: len(before)] == before


def test_the_end_of_sequence_has_no_text() -> None:
    assert LLAMA.decode([5, 128_009]) == LLAMA.decode([5])
    assert SMALL.decode([2]) == ""


def test_ids_out_of_the_vocabulary_are_named() -> None:
    assert LLAMA.check([1, 128_010, 200_000])[1] == 128_010
    assert LLAMA.check([-1])[1] == -1
    array, bad = LLAMA.check([1, 128_009])
    assert bad is None
    assert array is not None
    assert array.dtype == np.int64


def test_eighty_kilobytes_take_a_few_milliseconds() -> None:
    text = "The quick brown fox, number 12345, jumps over the lazy dog.\n" * 1400
    assert len(text) > 80_000
    LLAMA.encode(text)
    best = min(_timed(text) for _ in range(5))
    assert best < 0.05
    words = "".join(" quick" for _ in range(13_500))
    assert min(_timed(words) for _ in range(5)) < 0.02


def _timed(text: str) -> float:
    start = time.perf_counter()
    LLAMA.encode(text)
    return time.perf_counter() - start
