"""The embedded engine in virtual time with a raw client (tests only)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from engines.embedded.server import EngineOptions, RunningEngine, start
from engines.http1 import Connection
from engines.pool import Pool
from joulegraph.virtual import VirtualLoop, run_virtual

T = TypeVar("T")


@dataclass
class Answer:
    """A reply, collected; also a Reply of the HTTP client."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body_bytes: bytes = b""
    wire: bytes = b""
    reads: list[tuple[int, bytes]] = field(default_factory=list)
    why: str | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status = status
        self.headers = {name.decode().lower(): value.decode() for name, value in headers}

    def body(self, data: bytes, now_ns: int) -> None:
        self.body_bytes += data
        self.reads.append((now_ns, data))

    def done(self, now_ns: int) -> None:
        self.over.set()

    def lost(self, why: str, now_ns: int) -> None:
        self.why = why
        self.over.set()

    @property
    def json(self) -> Any:
        return orjson.loads(self.body_bytes)

    @property
    def events(self) -> list[tuple[str | None, Any]]:
        """(event name, data) of a stream."""
        out = []
        for raw in self.body_bytes.split(b"\n\n")[:-1]:
            name = None
            if raw.startswith(b"event: "):
                line, _, raw = raw.partition(b"\n")
                name = line[7:].decode()
            data = raw.removeprefix(b"data: ")
            out.append((name, data.decode() if data == b"[DONE]" else orjson.loads(data)))
        return out

    @property
    def chunks(self) -> list[bytes]:
        """HTTP chunks as they were framed on the wire."""
        rest = self.wire.partition(b"\r\n\r\n")[2]
        out = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size, 16)
            if n == 0:
                assert rest == b"\r\n"
                break
            out.append(rest[:n])
            assert rest[n : n + 2] == b"\r\n"
            rest = rest[n + 2 :]
        return out


class Client:
    """Requests to one port of one virtual loop."""

    def __init__(self, loop: VirtualLoop, running: RunningEngine) -> None:
        self.loop, self.running = loop, running
        self.pool = Pool("127.0.0.1", running.port, connect=loop.create_connection, now_ns=loop.now_ns)

    async def open(
        self, path: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[Connection, Answer]:
        """Send a request; the reply may still be coming."""
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        fields = {"Host": "x", "Content-Length": str(len(raw))}
        if body is not None:
            fields["Content-Type"] = "application/json"
        fields |= headers or {}
        lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        connection, answer = await self.pool.acquire(fresh=True), Answer()

        def keep(data: bytes, now_ns: int) -> None:
            answer.wire += data

        connection.wire = keep
        connection.send("\r\n".join(lines).encode() + b"\r\n\r\n" + raw, answer)
        return connection, answer

    async def call(self, path: str, body: Any = None, **options: Any) -> Answer:
        """A whole exchange."""
        connection, answer = await self.open(path, body, **options)
        await answer.over.wait()
        assert answer.why is None, answer.why
        self.pool.release(connection)
        return answer


def with_engine(work: Callable[[Client], Awaitable[T]], options: EngineOptions | None = None, **journals: Any) -> T:
    """Start the embedded engine in virtual time, run `work(client)`, close everything."""

    async def main(loop: VirtualLoop) -> T:
        running = await start(
            options or EngineOptions(),
            now_ns=loop.now_ns,
            sleep_until=loop.sleep_until,
            serve=loop.create_server,
            **journals,
        )
        client = Client(loop, running)
        try:
            return await work(client)
        finally:
            client.pool.close()
            await running.close()

    return run_virtual(main)
