"""What goes on beside the requests: their time allowance, and how late the loop itself wakes.

Endless coroutines, ended by cancellation. May not know: workflows, what is sent, where.
"""

from __future__ import annotations

from collections.abc import Iterable

from loadgen.client import Exchange
from loadgen.tally import Tally
from traces.seams import NowNs, SleepUntil

_LAG_EVERY_NS = 250_000_000
_REPEATED_EVERY_NS = 100_000_000


async def watch_lag(tally: Tally, now_ns: NowNs, sleep_until: SleepUntil) -> None:
    """Wake four times a second for nothing: how late says how late the stamps of reads may be."""
    while True:
        due_ns = now_ns() + _LAG_EVERY_NS
        await sleep_until(due_ns)
        tally.woke(now_ns() - due_ns)
        tally.publish()


async def watch_timeouts(
    in_flight: Iterable[Exchange], allowance_ns: int, now_ns: NowNs, sleep_until: SleepUntil
) -> None:
    """All requests have the same allowance, so the one sent first is, but for what was late, the next to expire.

    in_flight: in order of sending; looked at anew at each wake.
    """
    while True:
        now = now_ns()
        oldest = next(iter(in_flight), None)
        if oldest is None:
            await sleep_until(now + allowance_ns)
        elif oldest.due_ns + allowance_ns > now:
            await sleep_until(oldest.due_ns + allowance_ns)
        else:
            oldest.give_up("timeout", f"no complete reply within {allowance_ns / 1e9:g} s", now)


async def watch_repeated(
    in_flight: Iterable[Exchange], allowance_ns: int, now_ns: NowNs, sleep_until: SleepUntil
) -> None:
    """Requests sent again were due before those around them in the order of sending: all are looked at, often."""
    while True:
        await sleep_until(now_ns() + _REPEATED_EVERY_NS)
        now = now_ns()
        for exchange in [e for e in in_flight if e.attempt > 1 and e.due_ns + allowance_ns <= now]:
            exchange.give_up("timeout", f"no complete reply within {allowance_ns / 1e9:g} s", now)
