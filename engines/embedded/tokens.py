"""Deterministic tokens and block hashes of the embedded engine.

Everything a sequence will ever say is fixed by its key when it arrives (tokens and the place of EOS), so block hashes
of prompt and output are computed once, in bulk, and a decode step touches no token. May not know: the scheduler, time.
"""

from __future__ import annotations

import hashlib
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engines.embedded.types import EngineRequest, FinishReason

U64 = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_M1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_M2 = np.uint64(0x94D0_49BB_1331_11EB)
_MASK = (1 << 64) - 1


def mix(x: U64) -> U64:
    """splitmix64's finaliser: a bijection of 64-bit words that scatters them."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def key_of(*parts: object) -> int:
    """A stable 64-bit key of any printable parts (the same in every process and Python)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def unit(key: int) -> float:
    """A uniform number in (0, 1) from a key."""
    word = int(mix(np.array([key & _MASK], dtype=np.uint64))[0])
    return (word + 0.5) / 2.0**64


def output_key(engine_seed: int, request: EngineRequest) -> int:
    """The key of a request's output: its own seed where it has one, else the engine's seed and the request's id."""
    if request.seed is not None:
        return key_of("seed", request.seed)
    return key_of(engine_seed, request.request_id)


def accepted_drafts(key: int, drafts: int, acceptance: float) -> int:
    """How many of its `drafts` draft tokens a request accepts in every step: the first that fails ends them."""
    if not drafts:
        return 0
    draws = np.random.default_rng([key, 3]).random(drafts) < acceptance
    return drafts if draws.all() else int(np.argmin(draws))


def plan_output(
    key: int, request: EngineRequest, *, vocab_size: int, eos_token_id: int, eos_mean_tokens: float
) -> tuple[NDArray[np.int64], FinishReason]:
    """The tokens a request will get, shape (n,), and why it ends.

    EOS comes after min_tokens plus a geometric wait of mean eos_mean_tokens, as with a constant hazard; tokens are
    uniform over the vocabulary, EOS excepted.
    """
    n, reason = request.max_tokens, "length"
    if not request.ignore_eos:
        wait = int(log(unit(key)) / log(1.0 - 1.0 / max(eos_mean_tokens, 1.000001)))
        if request.min_tokens + wait < n:
            n, reason = request.min_tokens + wait + 1, "stop"
    start = np.uint64((key * 0x2545_F491_4F6C_DD1D) & _MASK)
    words = mix(start + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)
    tokens = (words % np.uint64(vocab_size)).astype(np.int64)
    tokens[tokens == eos_token_id] = 0 if eos_token_id else 1
    if reason == "stop":
        tokens[-1] = eos_token_id
    return tokens, reason  # type: ignore[return-value]


def token_array(prompt: Any) -> NDArray[np.int64]:
    """A prompt as an int64 array, shape (tokens,)."""
    return np.asarray(prompt, dtype=np.int64).reshape(-1)


class BlockHasher:
    """Chained hashes of full blocks: hash i stands for the salt and all tokens up to the end of block i.

    The chain is a running sum of per-block words, each keyed by content and position, then scattered; sums can be
    taken in bulk, and two different prefixes meet with probability 2^-64 (no adversary lives in a simulator).
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._weights = mix(np.arange(1, block_size + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)

    def hashes(self, tokens: NDArray[np.int64], salt: str | None = None) -> list[int]:
        """One hash per full block, never 0."""
        n = len(tokens) // self.block_size
        if n == 0:
            return []
        blocks = tokens[: n * self.block_size].astype(np.uint64).reshape(n, self.block_size) + np.uint64(1)
        words = mix((blocks * self._weights).sum(axis=1, dtype=np.uint64) ^ np.uint64(0x5DEE_CE66_D123_4567))
        place = mix(np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)
        start = np.uint64(key_of("salt", salt) if salt is not None else 0)
        chain = mix(start + np.cumsum(mix(words + place), dtype=np.uint64))
        chain[chain == 0] = 1
        out: list[int] = chain.tolist()
        return out
