"""What a field of a trace row may be, and the sentence that says why it is not: file, line, field, value, remedy.

Lives here: the place of a row, and predicates on plain JSON values. May not know: which fields there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Check = tuple[Callable[[object], bool], str]
"""what a value must be, and what to say where it is not"""
MAX_MS = 4_000_000_000_000
"""127 years: in ns it still fits 64 bits, with room for a sum."""
MAX_TOKENS = 2**31
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Where:
    """Where a row stands: the file as the user named it, its line (Parquet: row), its number among the rows from 1."""

    path: str
    line: int
    row: int

    def fault(self, name: str, value: object, want: str) -> str:
        """One sentence: file, line, field, value, remedy."""
        shown = repr(value)
        if len(shown) > _SHOWN:
            shown = shown[: _SHOWN - 3] + "..."
        return f"{self.path}:{self.line}: {name} is {shown}; {want}"


def is_int(value: object, limit: int = MAX_TOKENS) -> bool:
    """A whole number from 0, below the limit."""
    return type(value) is int and 0 <= value < limit


def token_count(value: object) -> bool:
    """A number of tokens."""
    return is_int(value)


def milliseconds(value: object) -> bool:
    """A time or a span."""
    return type(value) in (int, float) and 0 <= value < MAX_MS  # type: ignore[operator]


def word(value: object) -> bool:
    """A string that is not empty."""
    return type(value) is str and value != ""


def flag(value: object) -> bool:
    """True or false."""
    return type(value) is bool


def ids(value: object) -> bool:
    """A list of 64-bit numbers."""
    return type(value) is list and all(type(v) is int and 0 <= v < 2**64 for v in value)


def text(value: object) -> bool:
    """A string."""
    return type(value) is str


def json_object(value: object) -> bool:
    """An object."""
    return type(value) is dict


def objects(value: object) -> bool:
    """A list of objects."""
    return type(value) is list and all(type(v) is dict for v in value)


def runs(value: object) -> bool:
    """A list of [first, count] pairs."""
    return type(value) is list and all(
        type(v) is list and len(v) == 2 and all(is_int(x, 2**64) for x in v) for v in value
    )


def one_of(names: tuple[str, ...]) -> Check:
    """One of these words."""
    known = frozenset(names)
    return (lambda value: type(value) is str and value in known), "give one of " + ", ".join(names)
