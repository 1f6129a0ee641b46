"""The HTTP/1.1 client: framing in any cut, reuse, ends of every kind as data, backpressure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.http1 import Connection
from engines.pool import Pool, Unreachable
from engines.replies import HEAD_LIMIT
from joulegraph.virtual import VirtualLoop, run_virtual

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Recorder:
    """A Reply that keeps what it was told."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.reads: list[tuple[bytes, int]] = []
        self.why: str | None = None
        self.ends = 0
        self.finished = asyncio.Event()

    @property
    def data(self) -> bytes:
        return b"".join(data for data, _ in self.reads)

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status, self.headers = status, headers

    def body(self, data: bytes, now_ns: int) -> None:
        self.reads.append((data, now_ns))

    def done(self, now_ns: int) -> None:
        self.ends += 1
        self.finished.set()

    def lost(self, why: str, now_ns: int) -> None:
        self.ends += 1
        self.why = why
        self.finished.set()


class Slow(Recorder):
    """Calls first_read within its first body; keeps sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.first_read: Callable[[], None] = print
        self.paused = asyncio.Event()
        self.size = 0

    def body(self, data: bytes, now_ns: int) -> None:
        if not self.size:
            self.first_read()
            self.paused.set()
        self.size += len(data)


class ScriptedServer(asyncio.Protocol):
    """Answers the n-th request of a connection with the n-th script: pieces to write, then maybe close."""

    def __init__(self, scripts: list[list[bytes | None]], delay_s: float = 0.001) -> None:
        self.scripts = list(scripts)
        self.delay_s = delay_s
        self.received = b""
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        script = self.scripts.pop(0) if self.scripts else [None]
        self.task = asyncio.get_running_loop().create_task(self.play(script))

    async def play(self, script: list[bytes | None]) -> None:
        for piece in script:
            if piece is None:
                self.transport.close()
            else:
                self.transport.write(piece)
            await asyncio.sleep(self.delay_s)


def play(scripts: list[list[bytes | None]], client: Callable[[Pool, VirtualLoop], Any]) -> Any:
    """Run `client` against a scripted server in virtual time."""

    async def main(loop: VirtualLoop) -> Any:
        server = await loop.create_server(lambda: ScriptedServer(scripts), "127.0.0.1", 9000)
        pool = Pool("127.0.0.1", 9000, connect=loop.create_connection, now_ns=loop.now_ns)
        try:
            return await client(pool, loop)
        finally:
            pool.close()
            server.close()
            await asyncio.sleep(1)

    return run_virtual(main)


async def exchange(pool: Pool, request: bytes = REQUEST) -> tuple[Connection, Recorder]:
    connection, reply = await pool.acquire(), Recorder()
    connection.send(request, reply)
    await reply.finished.wait()
    return connection, reply


def one(script: list[bytes | None], request: bytes = REQUEST) -> tuple[Recorder, bool]:
    async def client(pool: Pool, _: VirtualLoop) -> tuple[Recorder, bool]:
        connection, reply = await exchange(pool, request)
        await asyncio.sleep(0.01)
        clean = connection.clean
        pool.release(connection)
        return reply, clean

    result: tuple[Recorder, bool] = play([script], client)
    assert result[0].ends == 1
    return result


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "status", "body", "clean"),
    [
        ([HELLO], 200, b"hello", True),
        ([CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"], 200, b"hello world", True),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b"", True),
        ([b"HTTP/1.1 200 OK\r\n\r\nto the ", b"end", None], 200, b"to the end", False),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], 200, b"ok", False),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"], 200, b"ok", False),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO], 200, b"hello", True),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", HELLO], 200, b"hello", True),
        ([HELLO + b"surplus"], 200, b"hello", False),
        ([HELLO + HELLO], 200, b"hello", False),
        ([HELLO, HELLO], 200, b"hello", False),
        ([b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"], 500, b"oops", True),
    ],
)
def test_replies(script: list[bytes | None], status: int, body: bytes, clean: bool) -> None:
    reply, was_clean = one(script)
    assert (reply.status, reply.data, reply.why, was_clean) == (status, body, None, clean)
    assert b"link" not in [name.lower() for name, _ in reply.headers]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ([None], "the engine closed the connection before a complete reply head"),
        ([b"HTTP/1.1 200", None], "the engine closed the connection before a complete reply head"),
        ([HELLO[:-2], None], "the engine closed the connection in the middle of the reply"),
        ([CHUNKED + b"5\r\nhel", None], "the engine closed the connection in the middle of the reply"),
        ([b"SSH-2.0-x\r\n"], "the reply is not valid HTTP/1.1"),
        ([CHUNKED + b"zz\r\n"], "the reply is not valid HTTP/1.1"),
        ([b"HTTP/1.1 101 Switching\r\n\r\n" + HELLO], "the reply is not valid HTTP/1.1 (protocols switched unasked)"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * HEAD_LIMIT], f"the reply head is over {HEAD_LIMIT} bytes"),
    ],
)
def test_failures_are_data(script: list[bytes | None], why: str) -> None:
    reply, clean = one(script)
    assert reply.why is not None
    assert reply.why.startswith(why)
    assert not clean


@settings(deadline=None)
@given(
    st.sampled_from([HELLO, CHUNKED + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: z\r\n\r\n"]),
    st.lists(st.integers(1, 120), max_size=8),
)
def test_any_cut_of_the_wire_gives_the_same_reply(wire: bytes, places: list[int]) -> None:
    borders = sorted({min(p, len(wire)) for p in places} | {0, len(wire)})
    reply, clean = one([wire[a:b] for a, b in pairwise(borders)])
    assert reply.data in (b"hello", b"hello world")
    assert (reply.why, clean) == (None, True)


def test_reads_are_stamped_one_body_call_per_read() -> None:
    reply, _ = one([CHUNKED, b"1\r\na\r\n1\r\nb\r\n", b"1\r\nc\r\n", b"0\r\n\r\n"])
    assert [data for data, _ in reply.reads] == [b"ab", b"c"]
    assert reply.reads[1][1] - reply.reads[0][1] == 1_000_000


def test_last_in_first_out_reuse_and_ageing() -> None:
    async def client(pool: Pool, loop: VirtualLoop) -> None:
        await pool.prewarm(3)
        assert (pool.opened, pool.idle) == (3, 3)
        connection, _ = await exchange(pool)
        assert connection.reused
        pool.release(connection)
        assert await pool.acquire() is connection
        pool.release(connection)
        await asyncio.sleep(3.9)
        fresh = await pool.acquire(fresh=True)
        assert (fresh.reused, pool.opened) == (False, 4)
        fresh.abort()
        await asyncio.sleep(0.2)
        after, _ = await exchange(pool)
        assert (after.reused, pool.opened, pool.idle) == (False, 5, 0)
        pool.release(after)

    play([[HELLO], [HELLO]], client)


def test_idle_connections_that_end_leave_the_pool() -> None:
    async def client(pool: Pool, _: VirtualLoop) -> None:
        connection, _reply = await exchange(pool)
        pool.release(connection)
        assert pool.idle == 1
        await asyncio.sleep(0.1)
        assert (pool.idle, connection.closed) == (0, True)

    play([[HELLO, b"", None]], client)


def test_a_reused_connection_that_dies_before_any_byte_is_retryable_and_only_then() -> None:
    async def client(pool: Pool, _: VirtualLoop) -> list[bool]:
        out = []
        for _ in range(2):
            first, _reply = await exchange(pool)
            out.append(first.retryable)
            pool.release(first)
            second, reply = await exchange(pool)
            assert second is first
            assert reply.why is not None
            out.append(second.retryable)
        return out

    # The second connection dies after one byte of its second reply.
    async def main(loop: VirtualLoop) -> Any:
        scripts: list[list[list[bytes | None]]] = [[[HELLO], [None]], [[HELLO], [b"H", None]]]
        server = await loop.create_server(lambda: ScriptedServer(scripts.pop(0)), "127.0.0.1", 9000)
        pool = Pool("127.0.0.1", 9000, connect=loop.create_connection, now_ns=loop.now_ns)
        out = await client(pool, loop)
        server.close()
        await asyncio.sleep(1)
        return out

    assert run_virtual(main) == [False, True, False, False]


def test_sending_on_a_connection_that_is_gone_is_lost_not_raised() -> None:
    async def client(pool: Pool, _: VirtualLoop) -> str | None:
        connection = await pool.acquire()
        connection.close()
        reply = Recorder()
        connection.send(REQUEST, reply)
        await reply.finished.wait()
        return reply.why

    assert play([], client) == "the connection was closed before the request was sent"


def test_abort_is_the_last_word() -> None:
    async def client(pool: Pool, _: VirtualLoop) -> int:
        connection, reply = await pool.acquire(), Recorder()
        connection.send(REQUEST, reply)
        await asyncio.sleep(0.0015)
        connection.abort()
        await asyncio.sleep(0.1)
        assert reply.data == b"a"
        return reply.ends

    assert play([[CHUNKED + b"1\r\na\r\n", b"", b"", b"1\r\nb\r\n"]], client) == 0


def test_nobody_listens() -> None:
    async def main(loop: VirtualLoop) -> None:
        pool = Pool("127.0.0.1", 9, connect=loop.create_connection, now_ns=loop.now_ns)
        with pytest.raises(Unreachable, match=r"cannot connect to 127\.0\.0\.1:9 \("):
            await pool.acquire()
        with pytest.raises(OSError, match="cannot connect"):
            await pool.prewarm(2)

    run_virtual(main)


REPLIES = {
    b"chunked": CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    b"counted": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
    b"empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    b"patience": b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
}


@given(st.lists(st.tuples(st.sampled_from(sorted(REPLIES)), st.lists(st.integers(1, 90), max_size=4)), max_size=8))
@settings(max_examples=60)
def test_replies_on_one_connection_whose_heads_come_again(asked: list[tuple[bytes, list[int]]]) -> None:
    """A head seen before is taken from memory: what the caller is told stays the same, however the reads fall."""

    def cut(data: bytes, at: list[int]) -> list[bytes | None]:
        marks = [0, *sorted({c for c in at if c < len(data)}), len(data)]
        return [data[a:b] for a, b in pairwise(marks)]

    async def client(pool: Pool, loop: VirtualLoop) -> None:
        for name, _ in asked:
            connection, reply = await exchange(pool)
            want = {b"empty": (200, b""), b"not found": (404, b"no"), b"patience": (200, b"hello")}
            assert (reply.status, reply.data) == want.get(name, (200, b"hello world"))
            assert reply.headers
            assert (reply.ends, reply.why) == (1, None)
            assert connection.clean
            pool.release(connection)
        assert pool.opened == min(1, len(asked))

    play([cut(REPLIES[name], at) for name, at in asked], client)


def test_surplus_after_a_reply_with_a_known_head_is_not_taken_for_body() -> None:
    async def client(pool: Pool, loop: VirtualLoop) -> None:
        for _ in range(2):
            connection, reply = await exchange(pool)
            pool.release(connection)
        assert (reply.data, pool.idle) == (b"hello", 0)

    play([[HELLO], [HELLO + HELLO]], client)


@pytest.mark.parametrize("uv", [False, True])
def test_real_sockets_with_backpressure_both_ways(uv: bool) -> None:
    import uvloop

    total = 8_000_000

    class Big(asyncio.Protocol):
        """Takes a request slowly, then sends a large reply as fast as the client lets it."""

        def connection_made(self, transport: Any) -> None:
            self.transport, self.seen = transport, 0
            transport.pause_reading()
            asyncio.get_running_loop().call_later(0.05, transport.resume_reading)

        def data_received(self, data: bytes) -> None:
            self.seen += len(data)
            if self.seen == total:
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total + b"y" * total)

    async def main() -> None:
        import time

        loop = asyncio.get_running_loop()
        server = await loop.create_server(Big, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = Pool("127.0.0.1", port, connect=loop.create_connection, now_ns=time.monotonic_ns)
        connection, reply = await pool.acquire(), Slow()
        reply.first_read = connection.pause_reading
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (total - 60)
        connection.send(head + b"x" * (total - len(head)), reply)
        assert not connection.taken
        assert connection.write_buffer_size > 0
        await asyncio.wait_for(reply.paused.wait(), 30)
        assert connection.write_buffer_size == 0
        before = reply.size
        await asyncio.sleep(0.05)
        assert before == reply.size
        assert before < total
        connection.resume_reading()
        await asyncio.wait_for(reply.finished.wait(), 30)
        assert reply.size == total
        pool.release(connection)
        assert pool.idle == 1
        pool.close()
        server.close()
        await server.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uv else None) as runner:
        runner.run(main())
