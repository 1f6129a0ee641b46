"""Prefix blocks: equal beginnings of prompts get equal block ids, and nothing else does.

A prompt is a sequence of pieces (a shared system prompt, a document chunk, a parent's output). A state of this trie is
one such sequence from the start of a prompt; its ids are those of its parent plus the blocks it completed. So two
prompts share exactly the blocks that lie wholly inside their common pieces, ids are dense, and one implies its prefix.
Pure. May not know: workflows, files.
"""

from __future__ import annotations

from typing import TypeVar

Key = tuple[object, ...]
K = TypeVar("K")


class State:
    """One beginning of a prompt. open: tokens in the last, unfinished block."""

    __slots__ = ("count", "first", "open", "parent", "shared", "tail", "tokens")

    def __init__(self, parent: State | None, first: int, count: int, tokens: int, left: int, *, shared: bool) -> None:
        self.parent = parent
        self.first = first
        self.count = count
        self.tokens = tokens
        self.open = left
        self.shared = shared
        self.tail: int | None = None


Memo = dict[tuple[int, Key], State]


class Blocks:
    """Hands out block ids for one trace. Only beginnings made wholly of shared pieces outlive a workflow."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.root = State(None, 0, 0, 0, 0, shared=True)
        self._next = 0
        self._shared: Memo = {}

    def extend(self, state: State, key: Key, tokens: int, memo: Memo, *, shared: bool) -> State:
        """The state after one more piece. `memo` holds what is not shared between workflows: one dict per workflow."""
        held = self._shared if shared and state.shared else memo
        at = (id(state), key)
        after = held.get(at)
        if after is None:
            count, left = divmod(state.open + tokens, self.size)
            after = State(state, self._next, count, state.tokens + tokens, left, shared=held is self._shared)
            self._next += count
            held[at] = after
        return after

    def ids(self, state: State) -> tuple[int, ...]:
        """Block ids of a prompt that ends here; a part-filled last block has an id of its own (rounding "ceil")."""
        runs = []
        at: State | None = state
        while at is not None:
            if at.count:
                runs.append(range(at.first, at.first + at.count))
            at = at.parent
        ids = [i for run in reversed(runs) for i in run]
        if state.open:
            if state.tail is None:
                state.tail = self._next
                self._next += 1
            ids.append(state.tail)
        return tuple(ids)
