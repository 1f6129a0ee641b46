"""The terminal while a live view owns it: nothing typed is echoed into the panel (not even ^C), keys can be read.

Lives here: termios, and nothing else of the view. Signals go on working (ISIG stays). A process in the background or
without a terminal changes nothing: setting a terminal from the background would stop it.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_terminal() -> Iterator[int | None]:
    """Echo off and keys unbuffered until left; the descriptor to read keys from, None where there is no terminal."""
    fd = _foreground()
    if fd is None:
        yield None
        return
    before = termios.tcgetattr(fd)
    now = termios.tcgetattr(fd)
    now[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(fd, termios.TCSADRAIN, now)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)  # what was typed meanwhile is nobody's command


def _foreground() -> int | None:
    try:
        fd = sys.stdin.fileno()
        return fd if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp() else None
    except (OSError, ValueError, AttributeError):  # closed, not a file, not our terminal
        return None


def pressed(fd: int | None, wait_s: float) -> str:
    """Keys typed within wait_s, "" when none; waits all the same where there is no terminal."""
    ready, _, _ = select.select([] if fd is None else [fd], [], [], wait_s)
    if not ready or fd is None:
        return ""
    typed = os.read(fd, 64)
    if not typed:  # the terminal is gone; without this the caller would spin
        time.sleep(wait_s)
    return typed.decode("latin-1")
