"""The block KV cache: allocation, chained-hash prefix reuse, eviction of the least recently freed block.

A block is in use (reference count above 0) or free; a free block keeps its hash, and so its content, until it is
taken for something else. Sequences free their blocks tail first, so a prefix always outlives its extensions: the set of
cached blocks of any chain is a prefix of it, and a lookup is a binary search.
May not know: requests, tokens, time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class BlockPool:
    """`total` blocks. All bookkeeping is in arrays over block ids, so a prompt of 100k tokens costs a few calls."""

    def __init__(self, total: int, *, prefix_caching: bool = True) -> None:
        if total < 1:
            raise ValueError(f"a KV cache needs at least one block, got {total}")
        self.total = total
        self.prefix_caching = prefix_caching
        self.free_blocks = total
        """blocks with reference count 0 (cached content included)"""
        self._refs = np.zeros(total, dtype=np.int32)
        self._hash = np.zeros(total, dtype=np.uint64)
        # A free block's stamp names the queue entry that holds it; a touched block has stamp 0, which voids the entry.
        self._stamp = np.ones(total, dtype=np.int64)
        self._queue: deque[tuple[Ids, int]] = deque([(np.arange(total, dtype=np.int64), 1)])
        self._next_stamp = 2
        self._table: dict[int, int] = {}
        self._twins: dict[int, list[int]] = {}
        """further blocks of the same content (computed at the same time by several sequences)"""

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0..1."""
        return 1.0 - self.free_blocks / self.total

    def lookup(self, hashes: Sequence[int]) -> int:
        """How many leading blocks of this chain are cached."""
        table = self._table
        low, high = 0, len(hashes)
        if not high or hashes[0] not in table:
            return 0
        if hashes[high - 1] in table:
            return high
        while high - low > 1:  # invariant: block low cached, block high not
            middle = (low + high) // 2
            if hashes[middle] in table:
                low = middle
            else:
                high = middle
        return low + 1 if hashes[low] in table else 0

    def ids_of(self, hashes: Sequence[int]) -> Ids:
        """Block ids of cached hashes, in order."""
        return np.array(list(map(self._table.__getitem__, hashes)), dtype=np.int64)

    def unreferenced(self, ids: Ids) -> int:
        """How many of these cached blocks are free now (using them takes that many from the free ones)."""
        return int(np.count_nonzero(self._refs[ids] == 0))

    def touch(self, ids: Ids) -> None:
        """Use cached blocks once more. ids must be distinct."""
        refs = self._refs[ids]
        self.free_blocks -= int(np.count_nonzero(refs == 0))
        self._refs[ids] = refs + 1
        self._stamp[ids] = 0

    def allocate(self, n: int) -> list[int]:
        """n blocks, least recently freed first; their old content is forgotten. The caller has checked free_blocks."""
        if n > self.free_blocks:
            raise ValueError(f"{n} blocks asked, {self.free_blocks} free")
        if n == 1:
            return [self._allocate_one()]
        parts: list[Ids] = []
        missing = n
        while missing:
            ids, stamp = self._queue.popleft()
            live = ids[self._stamp[ids] == stamp]
            if len(live) > missing:
                self._queue.appendleft((live[missing:], stamp))
                live = live[:missing]
            parts.append(live)
            missing -= len(live)
        taken = np.concatenate(parts) if len(parts) > 1 else parts[0]
        held = self._hash[taken]
        self._forget_all(taken, held)
        self._hash[taken] = 0
        self._refs[taken] = 1
        self._stamp[taken] = 0
        self.free_blocks -= n
        out: list[int] = taken.tolist()
        return out

    def _forget_all(self, taken: Ids, held: NDArray[np.uint64]) -> None:
        """Drop the entries of all taken blocks that hold a hash (0 = none)."""
        if not held.all():
            taken, held = taken[held != 0], held[held != 0]
        keys = held.tolist()
        if self._twins.keys().isdisjoint(keys):
            deque(map(self._table.__delitem__, keys), maxlen=0)
            return
        for block, key in zip(taken.tolist(), keys):
            self._forget(block, key)

    def _allocate_one(self) -> int:
        while True:
            ids, stamp = self._queue.popleft()
            for i in range(len(ids)):
                block = int(ids[i])
                if self._stamp[block] == stamp:
                    if i + 1 < len(ids):
                        self._queue.appendleft((ids[i + 1 :], stamp))
                    break
            else:
                continue
            key = int(self._hash[block])
            if key:
                self._forget(block, key)
                self._hash[block] = 0
            self._refs[block] = 1
            self._stamp[block] = 0
            self.free_blocks -= 1
            return block

    def register(self, blocks: Sequence[int], hashes: Sequence[int]) -> None:
        """These blocks in use now hold the full content that the hashes stand for."""
        if not self.prefix_caching or not blocks:
            return
        table = self._table
        if len(blocks) == 1:
            self._hash[blocks[0]] = hashes[0]
        else:
            self._hash[np.array(blocks)] = np.array(hashes, dtype=np.uint64)
        if table.keys().isdisjoint(hashes):
            table.update(zip(hashes, blocks))
            return
        for block, key in zip(blocks, hashes):
            if table.setdefault(key, block) != block:
                self._twins.setdefault(key, []).append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each block of a sequence, listed in its order; the tail becomes evictable first."""
        if not blocks:
            return
        ids = np.array(blocks, dtype=np.int64)[::-1]
        refs = self._refs[ids] - 1
        self._refs[ids] = refs
        loose = ids[refs == 0]
        if len(loose):
            self._stamp[loose] = self._next_stamp
            self._queue.append((loose, self._next_stamp))
            self._next_stamp += 1
            self.free_blocks += len(loose)

    def _forget(self, block: int, key: int) -> None:
        """Drop a block's entry; a twin of the same content takes its place."""
        twins = self._twins.get(key)
        if twins and self._table[key] != block:
            twins.remove(block)
        elif twins:
            self._table[key] = twins.pop(0)
        else:
            del self._table[key]
        if twins is not None and not twins:
            del self._twins[key]

    def check(self) -> None:
        """Assert every invariant (tests)."""
        free = int(np.count_nonzero(self._refs == 0))
        assert (self._refs >= 0).all()
        assert free == self.free_blocks
        queued = [block for ids, stamp in self._queue for block in ids[self._stamp[ids] == stamp].tolist()]
        assert sorted(queued) == np.flatnonzero(self._refs == 0).tolist()
        held = {int(b) for b in np.flatnonzero(self._hash)}
        indexed = set(self._table.values()) | {b for twins in self._twins.values() for b in twins}
        assert held == indexed
        assert all(int(self._hash[b]) == key for key, b in self._table.items())
