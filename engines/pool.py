"""Keep-alive connections to one engine: taken, given back, aged away before the engine closes them.

Lives here: reuse, pre-warming, and the reply heads seen lately (an engine repeats its head byte for byte for up to a
second, so it is parsed once). May not know: what is sent, who asks, what a retry costs.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from engines.http1 import Connection
from engines.replies import Head
from traces.seams import Connect, NowNs

IDLE_NS = 4_000_000_000
"""vLLM's server closes idle connections at 5 s; ours must go first"""


class Unreachable(ConnectionError):
    """No connection to the engine: one sentence saying where and why."""


class Pool:
    """Keep-alive connections to one engine. Last in, first out, so that a quiet spell lets the surplus age away."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect: Connect,
        now_ns: NowNs,
        ssl: Any = None,
        idle_ns: int = IDLE_NS,
    ) -> None:
        self.host = host
        self.port = port
        self.now_ns = now_ns
        self.opened = 0
        """connections opened so far"""
        self.heads: dict[bytes, Head] = {}
        """reply heads seen lately by their bytes (engines.replies)"""
        self._connect = connect
        self._ssl = ssl
        self._idle_ns = idle_ns
        self._idle: dict[Connection, None] = {}

    @property
    def idle(self) -> int:
        """Connections waiting for a request."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """An idle connection still young enough, or None. Never waits."""
        now = self.now_ns()
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.closed and now - connection.idle_since_ns < self._idle_ns:
                connection.reused = True
                return connection
            connection.close()
        return None

    async def acquire(self, *, fresh: bool = False) -> Connection:
        """An idle connection, else a new one. Raises Unreachable (an OSError) with one sentence."""
        connection = None if fresh else self.take()
        return connection if connection is not None else await self._open()

    async def _open(self) -> Connection:
        try:
            _, protocol = await self._connect(lambda: Connection(self), self.host, self.port, ssl=self._ssl)
        except OSError as error:
            raise Unreachable(f"cannot connect to {self.host}:{self.port} ({error.strerror or error})") from error
        self.opened += 1
        return cast(Connection, protocol)

    def release(self, connection: Connection) -> None:
        """Give a connection back after `done`; one that cannot carry another request is closed."""
        if not connection.rest():
            connection.close()
            return
        now = connection.idle_since_ns = self.now_ns()
        idle = self._idle
        idle[connection] = None
        if now - next(iter(idle)).idle_since_ns >= self._idle_ns:
            self._expire(now)

    def _expire(self, now: int) -> None:
        """Close what has aged past the limit; the oldest come first in the dict."""
        while self._idle:
            oldest = next(iter(self._idle))
            if now - oldest.idle_since_ns < self._idle_ns:
                return
            del self._idle[oldest]
            oldest.close()

    def forget(self, connection: Connection) -> None:
        """Called by a connection that ended."""
        self._idle.pop(connection, None)

    async def prewarm(self, n: int) -> None:
        """Open connections until n are idle. Raises Unreachable."""
        missing = n - len(self._idle)
        opened = await asyncio.gather(*(self._open() for _ in range(missing)), return_exceptions=True)
        for result in opened:
            if isinstance(result, Connection):
                self.release(result)
        for result in opened:
            if isinstance(result, BaseException):
                raise result

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            connection, _ = self._idle.popitem()
            connection.close()
