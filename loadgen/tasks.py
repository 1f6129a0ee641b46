"""The coroutines of a replay and how it ends: well, or with the first error of any of them.

Why: the loop would only log an error of a task or a callback; here it surfaces to whoever awaits the end.
May not know: workflows, requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Whatever goes on beside the callbacks, and the end of it all."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[None]] = set()
        self._over = self._loop.create_future()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin it; an error in it is the end."""
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """The end, by an error (a bug, bad input)."""
        if not self._over.done():
            self._over.set_exception(error)

    def finish(self) -> None:
        """The end: nothing is left to do."""
        if not self._over.done():
            self._over.set_result(None)

    async def over(self) -> None:
        """Return at the end; raise what it ended by."""
        await self._over

    def cancel(self) -> None:
        """Leave nothing running."""
        for task in self._running:
            task.cancel()
