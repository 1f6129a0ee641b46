"""From a request's bytes to a connection: the requests of one turn of the loop are written one after the other.

Why not each at once: a write wakes the server, and where that sleeps, waking it costs the writer more than the write
(6 us in a virtual machine, a seventh of all a request costs). A server woken by the first of several is awake for the
others; and reads that wait in the loop are stamped before anything is written. What came due by an alarm is written as
soon as all that is due is rendered, what a read brought about at the end of the turn, and MOST at the latest. The sent
stamp is taken after the write, so every wait is in the lateness. May not know: the graph, what is in a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from engines.http1 import Connection
from engines.pool import Pool
from loadgen.client import Exchange
from loadgen.tally import Tally
from traces.seams import NowNs

MOST = 16
"""requests that may wait for one another"""


class Outbox:
    """Requests on their way to a connection."""

    __slots__ = ("_flush", "_kept", "_loop", "_now_ns", "_pool", "_sent", "_spawn", "_tally", "_unsure")

    def __init__(
        self,
        pool: Pool,
        now_ns: NowNs,
        tally: Tally,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        flush: Callable[[], None],
        sent: Callable[[Exchange, int], None],
    ) -> None:
        """flush: called at the end of a turn in which something was put, and to call `send`. sent: at each sending."""
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._now_ns = now_ns
        self._tally = tally
        self._spawn = spawn
        self._flush = flush
        self._sent = sent
        self._kept: list[tuple[Exchange, bytes]] = []
        self._unsure: list[Connection] = []
        """connections whose transport was given bytes that it may not have written yet"""

    def put(self, exchange: Exchange, data: bytes) -> None:
        """Send at the end of the turn."""
        kept = self._kept
        if not kept:
            self._loop.call_soon(self._flush)
        kept.append((exchange, data))
        if len(kept) >= MOST:
            self.send()

    def send(self) -> None:
        """Send all that was put."""
        kept, self._kept = self._kept, []
        for exchange, data in kept:
            if exchange.outcome is None:  # else given up meanwhile
                connection = self._pool.take()
                if connection is None:
                    self._spawn(self._connect(exchange, data))
                else:
                    self._write(exchange, connection, data)

    async def _connect(self, exchange: Exchange, data: bytes) -> None:
        try:
            connection = await self._pool.acquire()
        except OSError as error:
            exchange.finish("unreachable", str(error), self._now_ns())
            return
        if exchange.outcome is not None:  # timed out or stopped meanwhile
            connection.close()
            return
        self._write(exchange, connection, data)
        self._flush()

    def _write(self, exchange: Exchange, connection: Connection, data: bytes) -> None:
        exchange.connection = connection
        exchange.reused = connection.reused
        connection.send(data, exchange)
        now = exchange.sent_ns = exchange.last_read_ns = self._now_ns()
        self._tally.sent(now - exchange.due_ns)
        if not connection.taken:
            if not self._unsure:
                self._loop.call_soon(self._check)
            self._unsure.append(connection)
        self._sent(exchange, now)

    def _check(self) -> None:
        """One turn of the loop after a send through a transport (uvloop writes at the end of a turn): is it out?"""
        unsure, self._unsure = self._unsure, []
        queued = sum([c.write_buffer_size > 0 for c in unsure])
        if queued:
            self._tally.queued(queued)
