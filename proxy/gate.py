"""The concurrency limit: who may go to the engine now, who waits, who is turned away. Pure; first in, first out.

The limit may change at any time (it is the run-time batch-size knob). May not know: sockets, clocks, HTTP.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Literal, TypeVar

W = TypeVar("W")


class Gate(Generic[W]):
    """Counts the ones inside and queues the ones outside. limit None: no limit."""

    def __init__(self, limit: int | None, max_queue: int) -> None:
        self.limit = limit
        self.max_queue = max_queue
        self.inside = 0
        self._queue: deque[W] = deque()

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queue)

    def enter(self, who: W) -> Literal["in", "queued", "full"]:
        """Ask to go in."""
        if self.limit is None or (self.inside < self.limit and not self._queue):
            self.inside += 1
            return "in"
        if len(self._queue) >= self.max_queue:
            return "full"
        self._queue.append(who)
        return "queued"

    def leave(self) -> list[W]:
        """One inside is done; those who may go in now (already counted inside)."""
        self.inside -= 1
        return self._admit() if self._queue else []

    def withdraw(self, who: W) -> None:
        """One in the queue went away."""
        self._queue.remove(who)

    def set_limit(self, limit: int | None) -> list[W]:
        """Change the limit; those who may go in now."""
        self.limit = limit
        return self._admit()

    def _admit(self) -> list[W]:
        free: list[W] = []
        while self._queue and (self.limit is None or self.inside < self.limit):
            self.inside += 1
            free.append(self._queue.popleft())
        return free
