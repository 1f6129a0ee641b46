"""Waking at an absolute instant: one timerfd per loop, because event-loop timers are late (and uvloop's early).

uvloop's loop.time() moves in whole milliseconds and its timers may fire early; an absolute CLOCK_MONOTONIC timerfd read
through loop.add_reader wakes within a fraction of a millisecond. Below Python 3.13 it is reached through ctypes.
Linux only. May not know: what is being paced. Virtual time needs none of this: it passes loop.sleep_until.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import struct
from collections.abc import Callable
from functools import partial
from types import TracebackType

from traces.seams import NowNs

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK | TFD_CLOEXEC
_ITIMERSPEC = struct.Struct("@qqqq")


class TimerFd:
    """An absolute one-shot timer as a file descriptor."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")

    def arm(self, due_ns: int) -> None:
        """Become readable once CLOCK_MONOTONIC >= due_ns; an instant in the past fires at once."""
        seconds, ns = divmod(max(1, due_ns), 1_000_000_000)
        spec = _ITIMERSPEC.pack(0, 0, seconds, ns)
        if self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def clear(self) -> None:
        """Take the expiry so that the descriptor is no longer readable."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Pacer:
    """`await sleep_until(due_ns)`: returns once now >= due_ns, never earlier. One timer for all sleepers of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, now_ns: NowNs) -> None:
        self._loop = loop
        self._now_ns = now_ns
        self._timer = TimerFd()
        self._armed_ns: int | None = None
        self._order = 0
        self._sleepers: list[tuple[int, int, Callable[[], None]]] = []
        loop.add_reader(self._timer.fd, self._fire)

    def __enter__(self) -> Pacer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def call_at(self, due_ns: int, then: Callable[[], None]) -> None:
        """Call `then` from the loop once now >= due_ns. Cheaper than a sleeping task; cannot be taken back."""
        self._order += 1
        heapq.heappush(self._sleepers, (due_ns, self._order, then))
        self._rearm()

    async def sleep_until(self, due_ns: int) -> None:
        """Suspend until now >= due_ns; at once when it has passed."""
        if self._now_ns() >= due_ns:
            return
        future = self._loop.create_future()
        self.call_at(due_ns, partial(_wake, future))
        await future

    def close(self) -> None:
        """Release the timer. Sleepers still waiting are left to their task's cancellation."""
        if self._timer.fd >= 0:
            self._loop.remove_reader(self._timer.fd)
            self._timer.close()

    def _arm(self, due_ns: int) -> None:
        self._armed_ns = due_ns
        self._timer.arm(due_ns)

    def _fire(self) -> None:
        self._timer.clear()
        self._armed_ns = None
        while self._sleepers and self._sleepers[0][0] <= self._now_ns():
            heapq.heappop(self._sleepers)[2]()
        self._rearm()

    def _rearm(self) -> None:
        if self._sleepers and (self._armed_ns is None or self._sleepers[0][0] < self._armed_ns):
            self._arm(self._sleepers[0][0])


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
