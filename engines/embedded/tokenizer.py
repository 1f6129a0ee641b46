"""A deterministic tokenizer without a vocabulary file: words to ids, ids to words, fast on long prompts.

Every id has one canonical word of six letters (" bakedo"), so what the engine says comes back as the same ids. Other
words hash to an id: one token per word of up to 24 letters, with or without its leading space; up to three digits,
each other character, and each run of line breaks or blanks are one token too.
May not know: requests, HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiou"
_SYLLABLES = [c + v for c in _CONSONANTS for v in _VOWELS]
_INDEX = {syllable: i for i, syllable in enumerate(_SYLLABLES)}
_BASE = len(_SYLLABLES)
_LONGEST = 24
_PIECES = re.compile(rf" ?[A-Za-z]{{1,{_LONGEST}}}| ?[0-9]{{1,3}}|[\r\n]+| +(?= )| ?[^\sA-Za-z0-9]|\s")
_PLAIN = bytes(sorted({*range(ord("a"), ord("z") + 1), ord(" ")}))
_REMEMBERED = 1 << 19

SPECIAL = ("<|im_start|>", "<|im_end|>")


class _Ids(dict[str, int]):
    """Word -> id, worked out on first sight; forgets everything when it has grown too large."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self._vocab_size = vocab_size

    def __missing__(self, word: str) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        token = self._of(word.removeprefix(" ") or word)
        self[word] = token
        return token

    def _of(self, word: str) -> int:
        if len(word) == 6:
            syllables = [_INDEX.get(word[i : i + 2], -1) for i in (0, 2, 4)]
            if min(syllables) >= 0:
                token = (syllables[0] * _BASE + syllables[1]) * _BASE + syllables[2]
                if token < self._vocab_size:
                    return token
        return crc32(word.encode("utf-8", "surrogatepass")) % self._vocab_size


class _Words(dict[int, bytes]):
    """Id -> word with its leading space, worked out on first sight."""

    def __missing__(self, token: int) -> bytes:
        high, low = divmod(token, _BASE)
        word = f" {_SYLLABLES[high // _BASE]}{_SYLLABLES[high % _BASE]}{_SYLLABLES[low]}".encode()
        self[token] = word
        return word


def template_tokens() -> tuple[int, int]:
    """What the chat template adds to the words of one message, and to those of an answer and a further message."""
    chat = Tokenizer(vocab_size=1, eos_token_id=0).chat
    one = len(chat([("user", "")]))
    return one, len(chat([("user", ""), ("assistant", ""), ("user", "")])) - one


class Tokenizer:
    """Text <-> token ids. Ids from vocab_size up to `limit` (end of sequence) are valid and have no text."""

    def __init__(self, vocab_size: int, eos_token_id: int) -> None:
        self.vocab_size = vocab_size
        self.eos_token_id = eos_token_id
        self.limit = max(vocab_size, eos_token_id + 1)
        self._ids = _Ids(vocab_size)
        self._words = _Words()
        self._words[eos_token_id] = b""
        self.word: Callable[[int], bytes] = self._words.__getitem__
        """Text of one token, UTF-8, safe inside a JSON string as it is; once per token on the hot path"""
        self._start, self._end, self._newline = (self._ids[x] for x in (*SPECIAL, "\n"))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Never empty for a text that is not."""
        if not text:
            return []
        raw = text.encode("utf-8", "surrogatepass")
        if raw.translate(None, _PLAIN) == b"" and raw[-1] != 32 and b"  " not in raw:
            words = text.split(" ")
            if not words[0]:
                del words[0]
            if len(max(words, key=len)) <= _LONGEST:
                return list(map(self._ids.__getitem__, words))
        return list(map(self._ids.__getitem__, _PIECES.findall(text)))

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of token ids; the end of sequence is left out."""
        return b"".join(map(self.word, tokens)).decode()

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Prompt of a conversation [(role, content)]: per message start, role, line break, content, end, line break;
        then the start of the assistant's turn."""
        out: list[int] = []
        for role, content in messages:
            out += (self._start, self._ids[role], self._newline)
            out += self.encode(content)
            out += (self._end, self._newline)
        out += (self._start, self._ids["assistant"], self._newline)
        return out

    def strings(self, tokens: Iterable[int]) -> list[str]:
        """One string per token, as /tokenize shows them."""
        return [self.word(token).decode() for token in tokens]

    def check(self, tokens: Any) -> tuple[NDArray[np.int64] | None, int | None]:
        """Token ids of a request as an array; or the first id that is out of the vocabulary."""
        array = np.asarray(tokens, dtype=np.int64)
        bad = (array < 0) | (array >= self.limit)
        if bad.any():
            return None, int(array[int(bad.argmax())])
        return array, None
