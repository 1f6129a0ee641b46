"""Clocks of other machines on our axis: offset by round trips, drift by doing so twice, and the mapping between.

Why: every host has a monotonic clock of its own, so stamps from another node mean nothing here until they are mapped;
how far off that mapping may be is recorded beside it. Pure but for `measure`, which only calls what it is given.
May not know: Ray, sockets, journals' files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reading:
    """At our instant at_ns the other clock showed at_ns + offset_ns, give or take error_ns."""

    at_ns: int
    offset_ns: int
    error_ns: int


def measure(ask: Callable[[], int], now_ns: Callable[[], int], rounds: int = 32) -> Reading:
    """Ask the other clock several times; the quickest round trip bounds its offset best (half of it is the error)."""
    best: Reading | None = None
    for _ in range(rounds):
        before = now_ns()
        there = ask()
        after = now_ns()
        reading = Reading((before + after) // 2, there - (before + after) // 2, (after - before + 1) // 2)
        if best is None or reading.error_ns < best.error_ns:
            best = reading
    if best is None:
        raise ValueError("at least one round is needed")
    return best


@dataclass(frozen=True, slots=True)
class Mapping:
    """Between another clock and ours, linear through two readings (the same one twice: no drift known)."""

    first: Reading
    last: Reading

    @property
    def drift_ppm(self) -> float | None:
        """How much faster the other clock runs, parts per million; None without two distinct readings."""
        span = self.last.at_ns - self.first.at_ns
        return None if span <= 0 else (self.last.offset_ns - self.first.offset_ns) / span * 1e6

    @property
    def error_ns(self) -> int:
        """Bound on the error of a mapped stamp between the readings."""
        return max(self.first.error_ns, self.last.error_ns)

    def theirs(self, ours_ns: int) -> int:
        """What the other clock shows at our instant."""
        span = self.last.at_ns - self.first.at_ns
        if span <= 0:
            return ours_ns + self.first.offset_ns
        change = self.last.offset_ns - self.first.offset_ns
        return ours_ns + self.first.offset_ns + change * (ours_ns - self.first.at_ns) // span

    def ours(self, theirs_ns: int) -> int:
        """Our instant at which the other clock shows theirs_ns (inverse of `theirs` to the nanosecond or two)."""
        span = self.last.at_ns - self.first.at_ns
        base = theirs_ns - self.first.offset_ns
        if span <= 0:
            return base
        change = self.last.offset_ns - self.first.offset_ns
        return self.first.at_ns + (base - self.first.at_ns) * span // (span + change)

    def as_json(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "offset_ns": self.first.offset_ns,
            "error_ns": self.error_ns,
            "drift_ppm": self.drift_ppm,
            "span_ns": self.last.at_ns - self.first.at_ns,
        }


STAMPS = ("due_ns", "t_end_ns", "t_sent_ns", "t_first_byte_ns", "t_first_token_ns", "t_last_token_ns")
"""Instants of a dispatch row; durations and deltas of reads need no mapping below 100 ppm"""


def mapped(row: dict[str, Any], mapping: Mapping) -> dict[str, Any]:
    """A dispatch row with its instants on our axis."""
    return {k: mapping.ours(v) if k in STAMPS and v is not None else v for k, v in row.items()}
