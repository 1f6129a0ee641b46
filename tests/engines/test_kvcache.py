"""The block pool against a plain model: no block is lost, lookups find exactly what a linear scan would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.embedded.kvcache import BlockPool
from engines.embedded.tokens import BlockHasher

BLOCK = 4


class PoolMachine(RuleBasedStateMachine):
    """Sequences over a few shared prefixes come, grow and go, as the scheduler makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(24)
        self.live: list[tuple[list[int], list[int], int]] = []  # blocks, hashes, registered
        self.hasher = BlockHasher(BLOCK)

    @rule(prefix=st.integers(0, 2), shared=st.integers(0, 6), own=st.integers(0, 5), tag=st.integers(0, 50))
    def arrive(self, prefix: int, shared: int, own: int, tag: int) -> None:
        tokens = np.concatenate((np.full(shared * BLOCK, prefix), np.arange(own * BLOCK) + 100 * (tag + 1)))
        hashes = self.hasher.hashes(tokens.astype(np.int64))
        hits = self.pool.lookup(hashes)
        ids = self.pool.ids_of(hashes[:hits])
        need = len(hashes) - hits + 1
        if need + self.pool.unreferenced(ids) > self.pool.free_blocks:
            return
        self.pool.touch(ids)
        blocks = ids.tolist() + self.pool.allocate(need)
        self.pool.register(blocks[hits : len(hashes)], hashes[hits:])
        self.live.append((blocks, hashes, hits))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        if self.pool.free_blocks:
            blocks, _, _ = self.live[data.draw(st.integers(0, len(self.live) - 1))]
            blocks += self.pool.allocate(1)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        blocks, _, _ = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.free(blocks)

    @invariant()
    def accounts_are_whole(self) -> None:
        self.pool.check()
        in_use = {b for blocks, _, _ in self.live for b in blocks}
        assert self.pool.free_blocks == self.pool.total - len(in_use)

    @invariant()
    def lookup_is_a_linear_scan(self) -> None:
        for prefix in range(3):
            hashes = self.hasher.hashes(np.full(6 * BLOCK, prefix, dtype=np.int64))
            scan = 0
            while scan < len(hashes) and self.pool.lookup([hashes[scan]]):
                scan += 1
            assert self.pool.lookup(hashes) == scan
            assert all(not self.pool.lookup([h]) for h in hashes[scan:])


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_least_recently_freed_goes_first_and_prefixes_outlive_their_tails() -> None:
    pool = BlockPool(4)
    hasher = BlockHasher(BLOCK)
    hashes = hasher.hashes(np.arange(4 * BLOCK))
    blocks = pool.allocate(4)
    pool.register(blocks, hashes)
    pool.free(blocks)
    assert pool.lookup(hashes) == 4
    pool.allocate(1)
    assert pool.lookup(hashes) == 3
    pool.allocate(2)
    assert pool.lookup(hashes) == 1


def test_a_twin_takes_over_when_the_indexed_block_goes() -> None:
    pool = BlockPool(3)
    hashes = BlockHasher(BLOCK).hashes(np.arange(BLOCK))
    first, second = pool.allocate(1), pool.allocate(1)
    pool.register(first, hashes)
    pool.register(second, hashes)
    pool.free(first)
    pool.allocate(2)
    assert pool.lookup(hashes) == 1
    assert pool.ids_of(hashes).tolist() == second
    pool.check()


def test_without_prefix_caching_nothing_is_found() -> None:
    pool = BlockPool(4, prefix_caching=False)
    hashes = BlockHasher(BLOCK).hashes(np.arange(BLOCK))
    pool.register(pool.allocate(1), hashes)
    assert pool.lookup(hashes) == 0


def test_asking_for_more_than_is_free_is_a_bug() -> None:
    with pytest.raises(ValueError, match="5 blocks asked"):
        BlockPool(4).allocate(5)


@pytest.mark.parametrize("salt", [None, "", "tenant"])
def test_hashes_chain(salt: str | None) -> None:
    hasher = BlockHasher(BLOCK)
    rng = np.random.default_rng(3)
    a = rng.integers(0, 1000, 10 * BLOCK)
    base = hasher.hashes(a, salt)
    assert len(set(base)) == 10
    assert hasher.hashes(a[: 5 * BLOCK + 3], salt) == base[:5]
    b = a.copy()
    b[4 * BLOCK] += 1
    changed = hasher.hashes(b, salt)
    assert changed[:4] == base[:4]
    assert not set(changed[4:]) & set(base)
    assert not set(hasher.hashes(a, "other")) & set(base)
    # The same block content at another place is another block.
    assert not set(hasher.hashes(a[BLOCK:], salt)) & set(base)
