"""Writes kept until the reads of this turn of the loop are done, then sent one after the other; and what to do then.

A write wakes its reader, which costs the writer more than the write itself where the reader sleeps (5 us and more in a
virtual machine). A reader woken for the first of several writes is still awake for the others. The wait is bounded by
`MAX_KEPT` reads. May not know: what is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

MAX_KEPT: Final = 32
"""writes after which the turn is not waited for"""


class Outbox:
    """One worker's writes of this turn, in order. Who closes a transport or writes to it directly sends first."""

    __slots__ = ("_kept", "_loop", "_then")

    def __init__(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
        """`then` is called whenever everything was written."""
        self._loop = loop
        self._then = then
        self._kept: list[tuple[asyncio.Transport, bytes]] = []

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write this at the end of the turn."""
        kept = self._kept
        if not kept:
            self._loop.call_soon(self.send)
        kept.append((transport, data))
        if len(kept) >= MAX_KEPT:
            self.send()

    def send(self) -> None:
        """Write everything now."""
        kept, self._kept = self._kept, []
        for transport, data in kept:
            if not transport.is_closing():
                transport.write(data)
        self._then()
