"""Child processes that never outlive their parent: each holds a pipe from it; its end means "close and leave".

A kill -9 of the parent closes the pipe, so the child sees the end within a moment, closes its journal, restores what it
turned, and exits. `target` must be a module-level function `target(lifeline, *args)`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from threading import Event, Thread
from typing import Any


@dataclass
class Child:
    """A spawned process and our end of its lifeline."""

    process: SpawnProcess
    lifeline: Connection

    def stop(self, timeout_s: float = 10.0) -> int | None:
        """Close the lifeline, wait for the child to leave by itself; kill it past the timeout. Exit code."""
        self.lifeline.close()
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def spawn(target: Callable[..., None], *args: Any, name: str) -> Child:
    """Start `target(lifeline, *args)` in a fresh interpreter."""
    context = multiprocessing.get_context("spawn")
    child_end, parent_end = context.Pipe(duplex=True)
    process = context.Process(target=_begin, args=(child_end, _Work(target, args)), name=name, daemon=False)
    # Ctrl-C goes to the whole group, and the parent decides: a child has it blocked until it ignores it (_begin)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    child_end.close()
    return Child(process, parent_end)


class _Work:
    """What a child is to do, unpickled (which imports it) only when the child already watches its parent."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.work: tuple[Callable[..., None], tuple[Any, ...]] | bytes = (target, args)

    def __getstate__(self) -> bytes:
        return bytes(ForkingPickler.dumps(self.work))

    def __setstate__(self, state: bytes) -> None:
        self.work = state


def _begin(lifeline: Connection, packed: _Work) -> None:
    """First in every child: from here on a parent that dies ends it, also in the seconds that imports may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    begun = Event()
    Thread(target=_leave_unbegun, args=(begun,), name="parent", daemon=True).start()
    assert isinstance(packed.work, bytes)
    target, args = pickle.loads(packed.work)
    begun.set()
    try:
        target(lifeline, *args)
    except BrokenPipeError:
        if not _left(lifeline):
            raise
        # what it had to say to its parent, that it has started for instance, nobody hears any more


def _left(lifeline: Connection) -> bool:
    """Whether the parent closed its end or died."""
    try:
        while lifeline.poll(0):
            lifeline.recv_bytes()
    except (EOFError, OSError):
        return True
    return False


def _leave_unbegun(begun: Event) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if not begun.is_set():
        os._exit(1)


def on_lifeline_end(lifeline: Connection, then: Callable[[], None]) -> None:
    """Call `then` (from a daemon thread) once the parent closed its end or died."""

    def watch() -> None:
        try:
            while True:
                lifeline.recv_bytes()
        except (EOFError, OSError):
            then()

    Thread(target=watch, name="lifeline", daemon=True).start()
