"""The terminal shell of the live view: a refreshed panel on a terminal, one plain line every few seconds elsewhere.

Everything goes to stderr, so that --json owns stdout. The caller drives it with `update` (from its own loop, thread or
process: never from a data worker) and handles Ctrl-C itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live

from joulegraph.live.keys import silent_terminal
from joulegraph.live.render import plain, render
from joulegraph.live.watch import Watch

REFRESH_NS = 500_000_000
PLAIN_NS = 5_000_000_000


class LiveView:
    """Shows one Watch until left. quiet: shows nothing (for --json without a terminal)."""

    def __init__(
        self, watch: Watch, *, file: TextIO | None = None, console: Console | None = None, quiet: bool = False
    ) -> None:
        self.watch = watch
        self.console = console or Console(file=file or sys.stderr)
        self.fancy = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.quiet = quiet
        self.note: str | None = None
        """one sentence shown until changed, e.g. that the run is draining"""
        self._live = Live(console=self.console, auto_refresh=False, transient=False) if self.fancy else None
        self._due_ns: int | None = None
        self._terminal = ExitStack()
        self.keys: int | None = None
        """descriptor of the terminal's keys while shown there"""

    def __enter__(self) -> LiveView:
        if self._live:
            self.keys = self._terminal.enter_context(silent_terminal())
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        self.keys = None
        self._terminal.close()

    def update(self, now_ns: int, joules: Mapping[str, float | None] | None = None, *, last: bool = False) -> bool:
        """Refresh when due (always when `last`); True when something was shown."""
        if self.quiet or (not last and self._due_ns is not None and now_ns < self._due_ns):
            return False
        state = self.watch.read(now_ns, joules, self.note)
        if self._live:
            self._live.update(render(state, self.console.width), refresh=True)
        else:
            self.console.print(plain(state), soft_wrap=True, markup=False, highlight=False)
        self._due_ns = now_ns + (REFRESH_NS if self._live else PLAIN_NS)
        return True
