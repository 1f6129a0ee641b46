"""Progress of a run in virtual time: one line every second of real time, on stderr, only where it helps.

May not know: what runs. Virtual instants come in; the real clock is only for not printing too often.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from traces.status import StatusPage, StatusReader


class Progress:
    """Shows how far a virtual run is; nothing when quiet or when stderr is no terminal and the run is short."""

    def __init__(self, title: str, *, quiet: bool = False, every_s: float = 1.0) -> None:
        self._title = title
        self._terminal = sys.stderr.isatty() and not quiet
        self._every_s = every_s if self._terminal else 10.0
        self._due_s = time.monotonic() + self._every_s
        self._start_ns: int | None = None
        self._wrote = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wrote and self._terminal:
            sys.stderr.write("\n")

    def show(self, now_ns: int, page: StatusPage) -> None:
        """Called by the run with its virtual instant and the generator's status page."""
        if self._start_ns is None:
            self._start_ns = now_ns
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + self._every_s
        load = StatusReader(page).all()
        line = (
            f"{self._title}: {(now_ns - self._start_ns) / 1e9:,.0f} s of virtual time, "
            f"{load['workflows_done']} of {load['workflows_started']} workflows done, "
            f"{load['requests_done']} requests, {load['tokens_out']:,} tokens"
        )
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
        sys.stderr.write(f"\r{line[:width]:<{width}}" if self._terminal else f"{line}\n")
        sys.stderr.flush()
        self._wrote = True

    def say(self, sentence: str) -> None:
        """A line of its own, whatever is being shown."""
        sys.stderr.write(f"\n{sentence}\n" if self._wrote and self._terminal else f"{sentence}\n")
        self._wrote = False
