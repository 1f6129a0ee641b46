"""What is to be done at which instant: a heap, and one alarm for its head.

Why apart: everything in a replay that waits (arrivals, delays, tools, cancellations, repetitions) waits here, so there
is one order of events, in real and in virtual time. May not know: what it is that is done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from typing import Any

from traces.seams import NowNs, SleepUntil

Entry = tuple[int, int, Callable[..., None], tuple[Any, ...]]


class Agenda:
    """`at` puts something on it, `pump` does what is due and sets an alarm for the rest."""

    __slots__ = ("_alarms", "_entries", "_now_ns", "_order", "_pumping", "_sleep_until", "_spawn", "_woke")

    def __init__(
        self,
        now_ns: NowNs,
        sleep_until: SleepUntil,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        woke: Callable[[int, int], None],
    ) -> None:
        """woke(due_ns, now_ns): an alarm for due_ns went off now; it should pump."""
        self._now_ns = now_ns
        self._sleep_until = sleep_until
        self._spawn = spawn
        self._woke = woke
        self._entries: list[Entry] = []
        self._order = 0
        self._alarms: list[int] = []
        """instants for which a sleeping task exists"""
        self._pumping = False

    def __bool__(self) -> bool:
        return bool(self._entries)

    def at(self, due_ns: int, then: Callable[..., None], *args: Any) -> None:
        """Have `then(*args, due_ns)` called once now >= due_ns; equal instants in order of asking."""
        self._order += 1
        heapq.heappush(self._entries, (due_ns, self._order, then, args))

    def take_all(self) -> list[Entry]:
        """Everything on it, in order; it is empty afterwards."""
        entries, self._entries = self._entries, []
        return sorted(entries, key=lambda e: e[:2])

    def pump(self) -> bool:
        """Do all that is due; an alarm is set for what is not. False: called from within, the outer call does it."""
        if self._pumping:
            return False
        self._pumping = True
        entries, now_ns = self._entries, self._now_ns
        try:
            while entries and entries[0][0] <= now_ns():
                due_ns, _, then, args = heapq.heappop(entries)
                then(*args, due_ns)
                entries = self._entries  # it may have been taken
        finally:
            self._pumping = False
        if entries and (not self._alarms or entries[0][0] < self._alarms[0]):
            heapq.heappush(self._alarms, entries[0][0])
            self._spawn(self._alarm(entries[0][0]))
        return True

    async def _alarm(self, due_ns: int) -> None:
        await self._sleep_until(due_ns)
        heapq.heappop(self._alarms)
        self._woke(due_ns, self._now_ns())
