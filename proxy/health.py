"""Whether an engine is passed over for others: told by what its connections did, nothing is asked of it for that.

An engine that cannot be reached is out at once; one that takes connections and ends them without a byte is out after a
few in a row, else it would draw every request, having the fewest under way. Out is for a short time; then one request
at a time goes there until one is answered. Pure: events with now_ns in. May not know: sockets, other engines, requests.
"""

from __future__ import annotations

from dataclasses import dataclass

OUT_NS = 2_000_000_000
"""how long an engine is passed over"""

MAX_DEATHS = 3
"""fresh connections in a row that may die before any byte of a reply: one or two can be a request's own fault"""


@dataclass(slots=True)
class Health:
    """What the last events at one engine say of it."""

    out_until_ns: int = 0
    """0: nothing is held against it"""
    deaths: int = 0

    def out(self, now_ns: int) -> bool:
        """Others are to be preferred."""
        return self.out_until_ns > now_ns

    def tried(self, now_ns: int) -> None:
        """A connection is asked for. Of one that was out, the answer is waited for before others go there too."""
        if self.out_until_ns:
            self.out_until_ns = now_ns + OUT_NS

    def unreachable(self, now_ns: int) -> None:
        """There was no connection."""
        self.out_until_ns = now_ns + OUT_NS

    def reached(self) -> None:
        """There was one: enough for an engine that was only out of reach."""
        if self.deaths < MAX_DEATHS:
            self.out_until_ns = 0

    def died(self, now_ns: int) -> None:
        """A fresh connection with a request on it ended before any byte of a reply."""
        self.deaths += 1
        if self.deaths >= MAX_DEATHS:
            self.out_until_ns = now_ns + OUT_NS

    def answered(self) -> None:
        """Bytes of a reply came."""
        self.deaths = self.out_until_ns = 0
