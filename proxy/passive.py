"""Reads of our own on a Parrot's intermediate values, to see when calls were ready that nobody asks for.

They go out after the client's GET that activated the call, with its criteria, so that they decide nothing: the first
activation does. Lives here: when to read, the reading. May not know: records, requests of clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from engines.http1 import Connection
from engines.parrot.lineage import CallNode
from engines.parrot.protocol import SESSION_AUTH, VAR, parse_json
from engines.pool import Pool
from proxy.exchange import Exchange

PASSIVE_AFTER_S = 0.01
"""between the GET that activates and our own on what it activated: Parrot takes a request in 2 to 3 ms"""

MAX_EMPTY = 64
"""bytes at the start of a reply that are kept: one with an empty value is shorter"""

Ended = Callable[[CallNode, int | None], None]
"""takes a node and when its value was there; None: it was not"""


class _Passive:
    """One reading of our own: learns when a value came and whether it is empty. A Reply of engines.http1."""

    def __init__(self, node: CallNode, ended: Callable[[_Passive, int | None], None]) -> None:
        self.node = node
        self.connection: Connection | None = None
        self._ended = ended
        self._status = 0
        self._start = b""

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """Only 200 means that there is a value."""
        self._status = status

    def body(self, data: bytes, now_ns: int) -> None:
        """Of a value the start is enough to tell whether it is empty."""
        if len(self._start) < MAX_EMPTY:
            self._start += data[:MAX_EMPTY]

    def done(self, now_ns: int) -> None:
        """The value is there."""
        self.node.empty = (parse_json(self._start) or {}).get("content") == ""
        self._ended(self, now_ns if self._status == 200 else None)

    def lost(self, why: str, now_ns: int) -> None:
        """The core closed the connection."""
        self.connection = None
        self._ended(self, None)


class PassiveReads:
    """What is being read. prefix: path before /v1 of the core; on: whether anything is read at all."""

    def __init__(
        self,
        pool: Pool,
        prefix: str,
        host: str,
        key: str | None,
        on: bool,
        ended: Callable[[CallNode, int | None], None],
    ) -> None:
        self._pool, self._prefix, self._host, self._key, self._on = pool, prefix, host, key, on
        self._ended = ended
        self._passive: dict[int, _Passive] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def reads(self, node: CallNode) -> bool:
        """Whether a reading of it is on its way."""
        return id(node) in self._passive

    def later(self, exchange: Exchange, active: list[CallNode], sink: CallNode) -> None:
        """Read what a GET activated, once that GET is on its way: the first activation decides the criteria."""
        others = [n for n in active if n is not sink]
        if others and self._on:
            asyncio.get_running_loop().call_later(PASSIVE_AFTER_S, self._watch_when_sent, exchange, others)

    def _watch_when_sent(self, exchange: Exchange, nodes: list[CallNode]) -> None:
        if exchange.t_upstream_ns is not None:
            self.now(nodes)
        elif exchange.outcome is None and not self._closed:
            asyncio.get_running_loop().call_later(PASSIVE_AFTER_S, self._watch_when_sent, exchange, nodes)

    def now(self, nodes: list[CallNode]) -> None:
        if self._closed or not self._on:
            return
        for node in nodes:
            if node.output is not None and node.t_ready_ns is None and id(node) not in self._passive:
                passive = self._passive[id(node)] = _Passive(node, self._passive_ended)
                self._spawn(self._read_passively(passive))

    async def _read_passively(self, passive: _Passive) -> None:
        try:
            connection = await self._pool.acquire(fresh=True)
        except OSError:
            self._passive_ended(passive, None)
            return
        if self._passive.get(id(passive.node)) is not passive:  # dropped meanwhile
            connection.close()
            return
        passive.connection = connection
        connection.send(self._request(passive.node), passive)

    def _request(self, node: CallNode) -> bytes:
        fields = {"session_id": node.workflow.session_id, "session_auth": SESSION_AUTH, "criteria": node.criteria}
        body = orjson.dumps(fields)
        lines = [
            f"GET {self._prefix}{VAR}/{node.output} HTTP/1.1",
            f"Host: {self._host}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *([f"Authorization: Bearer {self._key}"] if self._key is not None else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def _passive_ended(self, passive: _Passive, ready_ns: int | None) -> None:
        if self._passive.get(id(passive.node)) is passive:
            del self._passive[id(passive.node)]
        if passive.connection is not None:
            self._pool.release(passive.connection)
            passive.connection = None
        self._ended(passive.node, ready_ns)

    def _drop(self, passive: _Passive) -> None:
        self._passive.pop(id(passive.node), None)
        if passive.connection is not None:
            passive.connection.abort()
            passive.connection = None

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def drop_all(self) -> None:
        """The core is gone."""
        for passive in list(self._passive.values()):
            self._drop(passive)

    def close(self) -> None:
        """No more reads."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self.drop_all()
