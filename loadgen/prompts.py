"""What is in a prompt: exact token counts and exact sharing of prefix blocks, from nothing but ids and lengths.

Content of a block is a keyed pseudo-random function of (salt of the run, scope, block id): equal ids give equal tokens
and different ids differ within their first tokens, while two runs never hit each other's cache. Two forms: token ids as
a JSON array (exact on /v1/completions, no tokenizer involved) and words of the safe vocabulary (chat and text).
May not know: HTTP, who asks, what the engine does with it. A trailing block may be partial; nothing is padded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import shake_128
from typing import Any, NamedTuple

import numpy as np

from loadgen.vocabulary import WORDS
from traces.errors import UserError
from traces.workflow import Manifest, Node

VOCAB = (1_000, 31_000)
"""token ids used by default: inside every common vocabulary, clear of the special ids at both ends"""
CACHE_BYTES = 16 << 20


class Segment(NamedTuple):
    """A run of tokens: the first `tokens` of the stream that `key` names. shared: worth keeping rendered."""

    key: str
    tokens: int
    shared: bool


def segments(node: Node, manifest: Manifest, tokens: int | None = None) -> list[Segment]:
    """The prompt as runs of named content: the node's prefix blocks in order, then a tail of its own.

    tokens: total length, the node's input_length by default. Blocks past the length are left out, the last may be cut.
    """
    left = node.input_length if tokens is None else tokens
    size = manifest.block_size
    scope = _scope(node, manifest)
    out: list[Segment] = []
    for block in node.hash_ids or ():
        if left <= 0:
            break
        out.append(Segment(f"{scope}\0{block}", min(size, left), True))
        left -= size
    if left > 0:
        out.append(Segment(f"own\0{node.workflow_id}\0{node.request_id}", left, False))
    return out


def _scope(node: Node, manifest: Manifest) -> str:
    match manifest.hash_scope:
        case "global":
            return ""
        case "workflow":
            return node.workflow_id
        case _:
            return node.session_id or node.workflow_id


def addition(node: Node, manifest: Manifest, tokens: int) -> list[Segment]:
    """The last `tokens` of a prompt that goes on from another one: alike in two nodes as far as their blocks there are.

    What the stretch has of its first block is named after that block.
    """
    size, blocks = manifest.block_size, node.hash_ids or ()
    start = max(0, node.input_length - tokens)
    cut, within = divmod(start, size)
    if within == 0 or cut >= len(blocks):
        return segments(replace(node, hash_ids=blocks[cut:]), manifest, tokens)
    lead = Segment(f"from {within}\0{_scope(node, manifest)}\0{blocks[cut]}", min(size - within, tokens), False)
    rest = segments(replace(node, hash_ids=blocks[cut + 1 :]), manifest, tokens - lead.tokens)
    return [lead, *rest]


class _Rendered:
    """Rendered blocks, the most recently used kept, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: str, value: bytes) -> None:
        self._kept[key] = value
        self._bytes += len(value)
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])


class TokenIds:
    """Prompts as JSON arrays of token ids. Fixed width per token (blanks are legal JSON), so a cut is a slice."""

    def __init__(self, salt: str, *, block_size: int, vocab: tuple[int, int] = VOCAB, cache: int = CACHE_BYTES) -> None:
        low, high = vocab
        if not 0 <= low < high:
            raise UserError(f"--vocab {low}:{high}: give the lowest token id and one past the highest, like 1000:31000")
        self._salt = salt
        self._size = block_size
        self._span = high - low
        self._width = len(str(high - 1)) + 1
        table = np.array([f"{i},".rjust(self._width) for i in range(low, high)], dtype=f"S{self._width}")
        self._two_bytes = self._span <= 1 << 16
        """random 16-bit numbers index a table that repeats to that size: no arithmetic per prompt"""
        self._table: np.ndarray[Any, np.dtype[np.bytes_]] = np.resize(table, 1 << 16) if self._two_bytes else table
        self._cache = _Rendered(cache)

    def json(self, parts: Sequence[Segment]) -> bytes:
        """The prompt as the bytes of a JSON array of integers."""
        body = b"".join([self._segment(p) for p in parts])
        return b"[" + body[:-1] + b"]"

    def ids(self, parts: Sequence[Segment]) -> list[int]:
        """The same prompt as integers."""
        return [int(token) for p in parts for token in self._segment(p)[:-1].split(b",")]

    def _segment(self, part: Segment) -> bytes:
        if not part.shared or part.tokens > self._size:
            return self._render(part.key, part.tokens)
        whole = self._cache.get(part.key)
        if whole is None:
            whole = self._render(part.key, self._size)
            self._cache.put(part.key, whole)
        return whole if part.tokens == self._size else whole[: part.tokens * self._width]

    def _render(self, key: str, tokens: int) -> bytes:
        stream = shake_128(f"ids\0{self._salt}\0{key}".encode())
        if self._two_bytes:
            picked = self._table[np.frombuffer(stream.digest(2 * tokens), dtype=np.uint16)]
        else:
            picked = self._table[np.frombuffer(stream.digest(4 * tokens), dtype=np.uint32) % np.uint32(self._span)]
        rendered: bytes = picked.tobytes()
        return rendered


class Words:
    """Prompts as text of safe words, each led by a blank: n words for n tokens. Plain ASCII, needs no JSON escapes."""

    def __init__(self, salt: str, *, block_size: int, cache: int = CACHE_BYTES) -> None:
        self._salt = salt
        self._size = block_size
        self._words = [f" {w}" for w in WORDS]
        self._cache = _Rendered(cache)

    def text(self, parts: Sequence[Segment]) -> str:
        """The prompt as text."""
        return b"".join([self._segment(p) for p in parts]).decode()

    def _segment(self, part: Segment) -> bytes:
        if not part.shared or part.tokens != self._size:
            return self._render(part.key, part.tokens)
        whole = self._cache.get(part.key)
        if whole is None:
            whole = self._render(part.key, part.tokens)
            self._cache.put(part.key, whole)
        return whole

    def _render(self, key: str, tokens: int) -> bytes:
        raw = shake_128(f"words\0{self._salt}\0{key}".encode()).digest(2 * tokens)
        numbers = (np.frombuffer(raw, dtype=np.uint16) & (len(WORDS) - 1)).tolist()
        words = self._words
        return "".join([words[i] for i in numbers]).encode()
