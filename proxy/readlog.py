"""Reads of a stream that passed the short way, as they are kept until they are looked at: what they say.

A read stands there as it came, one small chunk of whole events, or as its size alone, where it was found to be one
plain token event. May not know: when they came, what a token event is.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final

from engines.dialects import Observer
from proxy.framing import payload_at

_FOUND: Final = {int}
"""kinds of reads where each was a plain token event"""


def said(reads: list[Any], reader: Observer | None) -> tuple[list[int], list[int]]:
    """Bytes of each read, framing included, and token events in it."""
    kinds = set(map(type, reads))
    if kinds == _FOUND and reader is not None:
        reader.note(len(reads))
        return reads, [1] * len(reads)
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
