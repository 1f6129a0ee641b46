"""Clocks of other machines on our axis: offset by round trips, drift by doing so twice, and the mapping between.

Why: every host has a monotonic clock of its own, so stamps from another node mean nothing here until they are mapped;
how far off that mapping may be is recorded beside it. Pure but for `Skew.now_ns`; `measure` calls what it is given.
May not know: Ray, sockets, journals' files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from traces.errors import UserError


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


@dataclass(frozen=True, slots=True)
class Skew:
    """A clock set wrong on purpose, to test what measures it: theirs = true + offset + drift since `since_ns`."""

    offset_ns: int = 0
    drift_ppm: float = 0.0
    since_ns: int = 0

    def at(self, true_ns: int) -> int:
        """What it shows at an instant of the true clock."""
        return true_ns + self.offset_ns + round((true_ns - self.since_ns) * self.drift_ppm / 1e6)

    def now_ns(self) -> int:
        """The skewed clock."""
        return self.at(time.monotonic_ns())

    def true_ns(self, shown_ns: int) -> int:
        """The true instant from which on it shows at least that."""
        rate = 1 + self.drift_ppm / 1e6
        true_ns = self.since_ns + int((shown_ns - self.offset_ns - self.since_ns) / rate)
        while self.at(true_ns) < shown_ns:
            true_ns += 1
        return true_ns


SKEW_VARIABLE = "JOULEGRAPH_CLOCK_SKEW"
"""OFFSET_MS:DRIFT_PPM, set on a node: its shard and sampler then run on a clock that is so wrong"""


def skew_from(text: str | None, since_ns: int) -> Skew | None:
    """The skew of a node by its environment; None where none is asked for. UserError for another text."""
    if not text:
        return None
    offset_ms, _, ppm = text.partition(":")
    try:
        return Skew(round(float(offset_ms) * 1e6), float(ppm or 0), since_ns)
    except ValueError as error:
        raise UserError(f"{SKEW_VARIABLE}={text}: not OFFSET_MS:DRIFT_PPM, like 250:50; correct or unset it") from error


STAMPS = ("due_ns", "t_end_ns", "t_sent_ns", "t_first_byte_ns", "t_first_token_ns", "t_last_token_ns")
"""Instants of a dispatch row; durations and deltas of reads need no mapping below 100 ppm"""


def mapped(row: dict[str, Any], mapping: Mapping) -> dict[str, Any]:
    """A dispatch row with its instants on our axis."""
    return {k: mapping.ours(v) if k in STAMPS and v is not None else v for k, v in row.items()}
