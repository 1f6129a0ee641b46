"""Reads of a stream that went the short way, as they are kept until they are looked at, and what they say.

Of a read that is one plain token event only time and size are kept, ready for the record. Any other, a small chunk of
whole events, stands in `kept` as it came; what follows it stands there too, a plain token event by its size. May not
know: what a token event is, whose reads they are.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final

from engines.dialects import Observer
from proxy.framing import payload_at

_NONE: Final[list[Any]] = []


class ReadLog:
    """Reads of one reply that were not looked at yet: first those of `plain`, then those of `kept`. Both are flat."""

    __slots__ = ("kept", "last_ns", "plain")

    def __init__(self, last_ns: int) -> None:
        self.last_ns = last_ns
        """when the last read came that is not in `kept`; before the first, when the request came"""
        self.plain: list[int] = _NONE
        """plain token events: ns since the read before, bytes, ns ..."""
        self.kept: list[Any] = _NONE
        """instant, read, instant, read ..."""

    def begin(self) -> None:
        """It is a stream: reads will wait here. Most replies are none, and need no lists."""
        self.plain, self.kept = [], []

    def token(self, now: int, size: int) -> int:
        """A read that is one plain token event. How many wait with it."""
        kept = self.kept
        if kept:
            kept.append(now)
            kept.append(size)
            return len(kept) >> 1
        plain = self.plain
        plain.append(now - self.last_ns)
        plain.append(size)
        self.last_ns = now
        return len(plain) >> 1

    def keep(self, now: int, read: bytes) -> int:
        """Another read. How many wait with it, plain ones before it apart."""
        kept = self.kept
        kept.append(now)
        kept.append(read)
        return len(kept) >> 1

    def gap(self, now: int) -> int:
        """Nothing waits, and another read came: since the one before."""
        gap, self.last_ns = now - self.last_ns, now
        return gap

    def waits(self) -> bool:
        """Something is to be looked at."""
        return len(self.plain) > 0 or len(self.kept) > 0


def said(reads: list[Any], reader: Observer | None) -> tuple[list[int], list[int]]:
    """Bytes of each read of `kept`, framing included, and token events in it."""
    sizes = [read if type(read) is int else len(read) for read in reads]
    return sizes, [0] * len(reads) if reader is None else _counted(reads, reader)


def _counted(reads: list[Any], reader: Observer) -> list[int]:
    counts: list[int] = []
    for kind, run in groupby(reads, type):
        if kind is int:
            found = len(list(run))
            reader.note(found)
            counts += [1] * found
        else:
            counts += reader.feed_each([read[payload_at(read) : -2] for read in run])
    return counts
