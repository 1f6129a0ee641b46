"""When a request has taken too long: its own deadline, and clients that send their body too slowly. Pure.

May not know: sockets, clocks, what follows from it.
"""

from __future__ import annotations

from typing import Final

from proxy.config import ProxyConfig
from proxy.exchange import Exchange
from proxy.refusal import Refusal
from traces.records import Outcome

MIN_BODY_RATE: Final = 1024
"""bytes per second below which an upload counts as an attack"""
STALL_NS: Final = 60_000_000_000
"""a client that takes no byte of its reply for this long is cut off"""
LINGER_NS: Final = 1_000_000_000
"""how long a refused request is still read into the void"""


def overdue(
    exchange: Exchange, size: int, waiting: bool, config: ProxyConfig, now: int, held_ns: int = 0
) -> tuple[Outcome, Refusal] | None:
    """How a request under way has to end now, or None. `size`: bytes of its body so far; `waiting`: for more;
    `held_ns`: how long it was not read, because it could not go on."""
    limit = exchange.deadline_ns or config.deadline_ns
    if limit is not None and now - exchange.t_arrival_ns > limit:
        return "timeout", Refusal(504, "deadline", "the proxy's deadline for this request has passed")
    if waiting and now - exchange.t_head_ns - held_ns > config.body_timeout_ns + size * 1_000_000_000 // MIN_BODY_RATE:
        return "client_left", Refusal(408, "slow_body", "the request body did not arrive in time")
    return None
