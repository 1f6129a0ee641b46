"""Ctrl-C and SIGTERM as one thing, told to a handler for as long as something runs.

Lives here: setting the handler and putting the former ones back, and the handler of a run. May not know: what is
stopped, and how.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

H = TypeVar("H", bound=Callable[[int, object], None])


class Interrupts:
    """The first asks for a drain, the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.count = 0
        self.drained = False

    def __call__(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


@contextmanager
def told_to(handler: H) -> Iterator[H]:
    """SIGINT and SIGTERM go to the handler while inside."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    finally:
        for number, old in before.items():
            signal.signal(number, old)
