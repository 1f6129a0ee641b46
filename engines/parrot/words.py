"""A tokenizer folder in which a word is a token and every token a word: what a core reads back is what was generated.

Why: a core decodes the ids an engine generates and encodes the text again for the calls that need it. With a byte-pair
tokenizer that changes lengths, and with a random-weight model it multiplies them. With this one lengths are exact, at
the price of text that means nothing: for load, not for answers. Written as Hugging Face's tokenizers library reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

FIRST = 1_000
"""id of the first given word: clear of special ids at the low end"""
SPECIAL = {"<unknown>": 0, "<end>": 2}
"""left out of decoded text, so that these two are the only ids that get lost; found anywhere in a text, so no `t2`"""


def write_tokenizer(folder: Path, vocab_size: int, words: Iterable[str]) -> Path:
    """Write tokenizer.json and tokenizer_config.json for ids below vocab_size; the folder.

    words: without blanks; every other id is the word `t<id>`. OSError where it cannot be written, ValueError where the
    words do not fit.
    """
    vocab = {f"t{i}": i for i in range(vocab_size)}
    for special, at in SPECIAL.items():
        vocab[special] = vocab.pop(f"t{at}")
    for at, word in enumerate(dict.fromkeys(words), FIRST):
        if at >= vocab_size:
            raise ValueError(f"vocabulary of {vocab_size} ids: too small for the words, which begin at id {FIRST}")
        del vocab[f"t{at}"]
        vocab[word] = at
    folder.mkdir(parents=True, exist_ok=True)
    unknown, end = SPECIAL
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown},
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 20, "unk_token": unknown,
        "eos_token": end, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer.json").write_bytes(orjson.dumps(document))
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    return folder
