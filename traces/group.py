"""Rows to workflows: whatever the order of the rows, whole workflows come out, by arrival.

Rows of a workflow that stand together, workflows sorted by arrival: one workflow in memory at a time. Anything else: a
first pass counts the rows of each workflow, and a workflow waits until it is whole and all that arrived before are out.
May not know: file formats, what a row means beyond its workflow, its arrival and whether it is a root.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol, TypeVar


class Grouped(Protocol):
    """What grouping needs of a row."""

    @property
    def key(self) -> Hashable:
        """The workflow it belongs to; None when the row is a workflow of its own."""

    @property
    def root_ns(self) -> int | None:
        """Its arrival when it is a root, else None."""


class Layout:
    """What a first pass over a file tells: are its workflows contiguous and sorted by arrival; if not, who is where.

    Feed every row through `see`. Memory: one small number per workflow with an id; rows without ids cost nothing
    while the file is in order.
    """

    def __init__(self) -> None:
        self.contiguous = True
        self.sorted = True
        self._closed: set[int] = set()
        self._now: Hashable = None
        self._arrival: int | None = None
        self._last = -1

    def see(self, key: Hashable, root_ns: int | None) -> None:
        """Take one row in file order."""
        if key is None or key != self._now:
            self._turn(key)
        if root_ns is not None and (self._arrival is None or root_ns < self._arrival):
            self._arrival = root_ns

    def _turn(self, key: Hashable) -> None:
        """The workflow that was open is over; key opens (again, when it was seen before)."""
        self._settle()
        if self._now is not None:
            self._closed.add(hash(self._now))
        self._now = key
        if key is not None and hash(key) in self._closed:
            self.contiguous = False

    def _settle(self) -> None:
        if self._arrival is not None:
            if self._arrival < self._last:
                self.sorted = False
            self._last = max(self._last, self._arrival)
        self._arrival = None

    @property
    def ordered(self) -> bool:
        """True when the rows can be streamed one workflow at a time. Ask after the last row."""
        self._settle()
        return self.contiguous and self.sorted


_NEVER = 2**63 - 1
R = TypeVar("R", bound=Grouped)


def contiguous(rows: Iterable[R]) -> Iterator[list[R]]:
    """Groups of rows that stand together; one group in memory at a time."""
    group: list[R] = []
    for row in rows:
        if group and (row.key is None or row.key != group[0].key):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def by_arrival(first: Iterable[R], second: Iterable[R]) -> Iterator[list[R]]:
    """Groups in order of arrival from rows in any order; first and second are two passes over the same rows.

    Memory: 20 bytes per workflow and a name for each that has one, and the rows that came before their turn (all of
    them in the worst order).
    """
    slots: dict[Hashable, int] = {}
    arrivals, rows = array("q"), array("l")
    for row in first:
        slot = slots.setdefault(row.key, len(rows)) if row.key is not None else len(rows)
        if slot == len(rows):
            arrivals.append(_NEVER)
            rows.append(0)
        rows[slot] += 1
        if row.root_ns is not None:
            arrivals[slot] = min(arrivals[slot], row.root_ns)
    yield from _in_turn(second, slots, [0 if a == _NEVER else a for a in arrivals], rows)


def _in_turn(
    second: Iterable[R], slots: dict[Hashable, int], arrivals: list[int], rows: array[int]
) -> Iterator[list[R]]:
    turns = iter(sorted(range(len(rows)), key=arrivals.__getitem__))
    held: dict[int, list[R]] = {}
    turn, fresh = next(turns, None), 0
    for row in second:
        slot = slots[row.key] if row.key is not None else fresh
        fresh += slot == fresh  # slots are numbered by first appearance, in both passes alike
        held.setdefault(slot, []).append(row)
        while turn is not None and len(held.get(turn, ())) == rows[turn]:
            yield held.pop(turn)
            turn = next(turns, None)
