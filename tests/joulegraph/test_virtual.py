"""Virtual time: exact sleeps, ordered bytes, backpressure, refusal, deadlock named; aiohttp runs in it unchanged."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from joulegraph.virtual import VirtualLoop, run_virtual

SECOND = 1_000_000_000


class Collector(asyncio.Protocol):
    """Keeps every read with its instant."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.reads: list[tuple[int, bytes]] = []
        self.lost = loop.create_future()
        self.paused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reads.append((self.loop.now_ns(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.paused += 1


@given(st.lists(st.integers(0, 10 * SECOND), min_size=1, max_size=20))
def test_sleeps_end_exactly_and_in_order(delays: list[int]) -> None:
    async def main(loop: VirtualLoop) -> list[tuple[int, int]]:
        start = loop.now_ns()
        woke: list[tuple[int, int]] = []

        async def one(delay: int) -> None:
            await loop.sleep_until(start + delay)
            woke.append((delay, loop.now_ns() - start))

        await asyncio.gather(*(one(d) for d in delays))
        return woke

    woke = run_virtual(main)
    assert all(0 <= at - due <= 1000 for due, at in woke)  # the loop counts in float seconds
    assert [due for due, _ in woke] == sorted(d for d, _ in woke)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=30))
def test_each_write_is_one_read_in_order_and_close_comes_last(pieces: list[bytes]) -> None:
    async def main(loop: VirtualLoop) -> list[bytes]:
        far = Collector(loop)
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        near = Collector(loop)
        await loop.create_connection(lambda: near, "127.0.0.1", server.address[1])
        for piece in pieces:
            near.transport.write(piece)
        near.transport.close()
        await asyncio.gather(near.lost, far.lost)
        return [data for _, data in far.reads]

    assert run_virtual(main) == pieces


def test_a_reader_that_stops_pauses_its_writer() -> None:
    async def main(loop: VirtualLoop) -> tuple[int, int]:
        far, near = Collector(loop), Collector(loop)
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        await loop.create_connection(lambda: near, "127.0.0.1", server.address[1])
        far.transport.pause_reading()
        for _ in range(3):
            near.transport.write(b"x" * 40_000)
        await asyncio.sleep(1)
        stopped = len(far.reads)
        far.transport.resume_reading()
        await asyncio.sleep(1)
        assert sum(len(d) for _, d in far.reads) == 120_000
        near.transport.close()
        await far.lost
        return near.paused, stopped

    assert run_virtual(main) == (1, 0)


def test_nobody_listening_refuses_and_a_port_is_taken_once() -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(lambda: Collector(loop), "127.0.0.1", 9)
        await loop.create_server(lambda: Collector(loop), "127.0.0.1", 9)
        with pytest.raises(OSError, match="already in use"):
            await loop.create_server(lambda: Collector(loop), "127.0.0.1", 9)

    run_virtual(main)


def test_waiting_for_nothing_is_an_error_not_a_hang() -> None:
    async def main(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main)


def test_an_aiohttp_server_streams_for_an_hour_in_a_moment() -> None:
    async def main(loop: VirtualLoop) -> list[int]:
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(60):
                await loop.sleep_until(loop.now_ns() + 60 * SECOND)
                await response.write(b"tick")
            return response

        app = web.Application()
        app.router.add_get("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        assert runner.server is not None
        server = await loop.create_server(runner.server, "127.0.0.1", 0)
        client = Collector(loop)
        await loop.create_connection(lambda: client, "127.0.0.1", server.address[1])
        client.transport.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await client.lost
        await runner.cleanup()
        return [t for t, data in client.reads if b"tick" in data]

    started = time.monotonic()
    ticks = run_virtual(main)
    assert [b - a for a, b in itertools.pairwise(ticks)] == [60 * SECOND] * 59
    assert time.monotonic() - started < 5
