"""Independent pieces of work in as many processes as there are cores; results come in the order asked for.

Nothing of a result depends on how many there are. May not know: what the work is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


@contextmanager
def cores() -> Iterator[ProcessPoolExecutor]:
    """A pool that takes functions of modules and arguments that can be pickled. Whoever leaves early waits for nothing
    that has not begun."""
    pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), _begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin() -> None:
    """Ctrl-C at the terminal ends a worker at once and silently; the parent says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(asked: dict[K, Future[tuple[T, str]]], say: Callable[[str], None]) -> dict[K, T]:
    """What was asked for, each told as it is taken."""
    out: dict[K, T] = {}
    for key, one in asked.items():
        out[key], told = one.result()
        say(told)
    return out
