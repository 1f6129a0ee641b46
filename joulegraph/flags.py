"""Types of command-line values: a number out of its range is refused where it is read, with a sentence.

Lives here: what argparse's own int and float let through (negative counts, NaN, ports that do not exist), and the
parser that says it in one line. May not know: what a flag is for. Imports nothing beyond the standard library.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with one sentence instead of the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains the options\n")


def whole(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """A whole number from least to most."""
    wanted = (
        f"give a whole number of at least {least}" if most is None else f"give a whole number from {least} to {most}"
    )

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r}: {wanted}")
        return value

    return read


def real(least: float | None = None, *, above: float | None = None) -> Callable[[str], float]:
    """A finite number, not below `least`, or above `above`."""
    bound = f" of at least {least:g}" if least is not None else f" above {above:g}" if above is not None else ""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        small = (least is not None and value < least) or (above is not None and value <= above)
        if not math.isfinite(value) or small:
            raise argparse.ArgumentTypeError(f"{text!r}: give a number{bound}")
        return value

    return read


port = whole(0, 65535)
"""0 takes any free one"""
