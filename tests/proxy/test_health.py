"""An engine that is passed over: what counts against it, for how long, and how it comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.health import MAX_DEATHS, OUT_NS, Health

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
TWO = ("http://127.0.0.1:9001", "http://127.0.0.1:9000")
S = 1_000_000_000


def dead(now_ns: int = 0) -> Health:
    """One that has just died too often."""
    health = Health()
    for _ in range(MAX_DEATHS):
        health.died(now_ns)
    return health


def test_deaths_count_in_a_row() -> None:
    health = Health()
    for _ in range(3):
        for _ in range(MAX_DEATHS - 1):
            health.died(5)
        assert not health.out(5)
        health.answered()
    assert dead(5).out(5 + OUT_NS - 1) and not dead(5).out(5 + OUT_NS)


def test_one_that_was_out_is_tried_once_at_a_time_until_it_answers() -> None:
    health = dead()
    health.tried(OUT_NS)
    health.reached()  # so it did before
    assert health.out(OUT_NS + 1)
    health.died(OUT_NS + 2)
    assert health.out(2 * OUT_NS + 1)
    health.tried(3 * OUT_NS)
    health.answered()
    assert not health.out(3 * OUT_NS + 1)


def test_one_that_was_only_out_of_reach_is_back_once_it_is_reached() -> None:
    health = Health()
    health.unreachable(0)
    assert health.out(1)
    health.tried(OUT_NS)
    assert health.out(OUT_NS + 1)
    health.reached()
    assert not health.out(OUT_NS + 1)


class Dying(asyncio.Protocol):
    """Takes a request and dies, while `dies` says so; else answers."""

    def __init__(self, made: list[Dying]) -> None:
        self.made = made
        self.dies = True
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.made:
            self.dies = self.made[-1].dies
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        if self.dies:
            self.transport.abort()
        else:
            self.transport.write(OK)


@pytest.fixture
def answering() -> Any:
    """What an engine that works does with a request."""

    def on_data(wire: Any) -> None:
        if wire.got.endswith(b"}"):
            wire.send(OK)

    return on_data


def test_an_engine_that_dies_at_once_does_not_draw_every_request(rig: Any, post: Any, answering: Any) -> None:
    made: list[Dying] = []

    async def scenario(r: Any) -> None:
        await r.loop.create_server(lambda: Dying(made), "127.0.0.1", 9001)

        async def ask() -> tuple[str, str]:
            client = await r.client(post(b'{"model":"m"}'))
            await client.has(b"\r\n\r\n")
            record = await r.settle(len(r.records) + 1)
            return record.outcome, record.upstream

        assert [await ask() for _ in range(5)] == [("upstream_died", "127.0.0.1:9001")] * 3 + [
            ("ok", "127.0.0.1:9000")
        ] * 2
        assert len(made) == 3  # none of the requests was sent again
        await r.sleep(2.1)
        assert await ask() == ("upstream_died", "127.0.0.1:9001")  # looked whether it is back: no
        assert await ask() == ("ok", "127.0.0.1:9000")
        await r.sleep(2.1)
        made[-1].dies = False
        assert [await ask() for _ in range(3)] == [("ok", "127.0.0.1:9001")] * 3  # it is

    rig(scenario, on_data=answering, upstreams=TWO)


def test_where_all_die_each_is_tried(rig: Any, post: Any) -> None:
    made: list[Dying] = []

    async def scenario(r: Any) -> None:
        for port in (9001, 9000):
            await r.loop.create_server(lambda: Dying(made), "127.0.0.1", port)
        for count in range(1, 9):
            client = await r.client(post(b'{"model":"m"}'))
            await client.has(b"502 Bad Gateway")
            assert (await r.settle(count)).outcome == "upstream_died"
        assert {record.upstream for record in r.records} == {"127.0.0.1:9000", "127.0.0.1:9001"}
        assert len(made) == 8

    rig(scenario, listen=False, upstreams=TWO)


def test_a_client_that_leaves_before_the_reply_says_nothing_of_the_engine(rig: Any, post: Any) -> None:
    async def scenario(r: Any) -> None:
        for count in range(1, 2 * MAX_DEATHS):
            client = await r.client(post(b'{"model":"m"}'))
            await r.sleep(0.1)
            client.transport.close()
            assert (await r.settle(count)).outcome == "client_left"
        assert not r.proxy._hub.pools[0].health.deaths

    rig(scenario)
