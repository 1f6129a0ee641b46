"""Rows to workflows: whatever the order of the rows, whole workflows come out, by arrival.

Rows of a workflow that stand together, workflows sorted by arrival: one workflow in memory at a time. Anything else: a
first pass counts the rows of each workflow, and a workflow waits until it is whole and all that arrived before are out.
May not know: file formats, what a row means beyond its workflow, its arrival and whether it is a root.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Due:
    arrival: int | None = None
    rows: int = 0


def by_arrival(first: Iterable[R], second: Iterable[R]) -> Iterator[list[R]]:
    """Groups in order of arrival from rows in any order; first and second are two passes over the same rows.

    Memory: an entry per workflow, and the rows that came before their turn (all of them in the worst order).
    """
    due: dict[Hashable, _Due] = {}
    for number, row in enumerate(first):
        entry = due.setdefault(row.key if row.key is not None else number, _Due())
        entry.rows += 1
        if row.root_ns is not None and (entry.arrival is None or row.root_ns < entry.arrival):
            entry.arrival = row.root_ns
    turns = iter(sorted(due, key=lambda k: due[k].arrival or 0))
    held: dict[Hashable, list[R]] = {}
    turn = next(turns, None)
    for number, row in enumerate(second):
        held.setdefault(row.key if row.key is not None else number, []).append(row)
        while turn is not None and len(held.get(turn, ())) == due[turn].rows:
            yield held.pop(turn)
            turn = next(turns, None)
