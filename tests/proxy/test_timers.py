"""When a request has taken too long: a table of deadlines and slow bodies."""

from __future__ import annotations

import pytest

from proxy.config import ProxyConfig
from proxy.exchange import Exchange
from proxy.timers import MIN_BODY_RATE, overdue
from tests.proxy.test_exchange import head

S = 1_000_000_000
CONFIG = ProxyConfig(("http://127.0.0.1:1",), deadline_ns=100 * S, body_timeout_ns=30 * S)


@pytest.mark.parametrize(
    ("after_s", "size", "waiting", "own_s", "status"),
    [
        (100, 0, False, None, None),
        (101, 0, False, None, 504),
        (11, 0, False, 10, 504),  # its own deadline counts in place of the configured one
        (101, 0, False, 200, None),
        (30, 0, True, None, None),
        (31, 0, True, None, 408),
        (31, MIN_BODY_RATE, True, None, None),  # a second more for what came
        (32, MIN_BODY_RATE, True, None, 408),
        (60, 0, False, None, None),  # the body is here: only the engine is slow
    ],
)
def test_overdue(after_s: int, size: int, waiting: bool, own_s: int | None, status: int | None) -> None:
    exchange = Exchange(head(), 5, 5)
    exchange.deadline_ns = own_s * S if own_s is not None else None
    end = overdue(exchange, size, waiting, CONFIG, 5 + after_s * S)
    assert (end[1].status if end is not None else None) == status


def test_without_a_deadline_nothing_but_a_slow_body_ends_a_request() -> None:
    exchange = Exchange(head(), 5, 5)
    config = ProxyConfig(("http://127.0.0.1:1",))
    assert overdue(exchange, 0, False, config, 1 << 60) is None
