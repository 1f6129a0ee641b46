"""A scripted server for the load generator's tests: what it answers, and when, is a function of the request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson
import pytest

Act = tuple[int, bytes | None]
"""(wait ns after the previous act, bytes to write; None closes the connection)"""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Asked:
    """One request as the server saw it."""

    t_ns: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def token(text: str = " tok") -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": None}]})


def finish(prompt: int, completion: int) -> bytes:
    last = event({"id": "c", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return last + event({"id": "c", "choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def stream(asked: Asked, *, first_ns: int, gap_ns: int) -> list[Act]:
    """A whole /v1/completions stream of max_tokens tokens, each its own write."""
    prompt, n = asked.body["prompt"], asked.body["max_tokens"]
    length = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    acts: list[Act] = [(0, HEAD), (first_ns, chunk(token()))]
    acts += [(gap_ns, chunk(token(f" t{i}"))) for i in range(1, n)]
    return [*acts, (0, chunk(finish(length, n)) + b"0\r\n\r\n")]


def plain(status: int, value: object) -> list[Act]:
    """A reply that is one JSON document."""
    body = orjson.dumps(value)
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return [(0, head.encode() + body)]


@dataclass
class ScriptedServer:
    """Answers each request with the acts its script gives. Works on any loop that has create_server."""

    now_ns: Callable[[], int]
    sleep_until: Callable[[int], Awaitable[None]]
    script: Callable[[Asked], Iterable[Act]]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, loop: asyncio.AbstractEventLoop, ssl: Any = None) -> tuple[Any, int]:
        server = await loop.create_server(lambda: _Session(self), "127.0.0.1", 0, ssl=ssl)
        address = getattr(server, "address", None)
        return server, address[1] if address else server.sockets[0].getsockname()[1]


class _Session(asyncio.Protocol):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""
        self._url = ""
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        asked = Asked(self._server.now_ns(), self._url, self._headers, orjson.loads(self._body))
        self._headers, self._body = {}, b""
        self._server.asked.append(asked)
        task = asyncio.get_running_loop().create_task(self._answer(asked))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _answer(self, asked: Asked) -> None:
        at = asked.t_ns
        for wait_ns, data in self._server.script(asked):
            at += wait_ns
            if wait_ns:
                await self._server.sleep_until(at)
            if self._gone:
                return
            if data is None:
                self._transport.abort()
                return
            self._transport.write(data)


@contextmanager
def serving() -> Iterator[tuple[int, ScriptedServer]]:
    """The scripted server on a loop in a thread; its port and itself."""
    loop = asyncio.new_event_loop()

    async def sleep_until(due_ns: int) -> None:
        while (left := due_ns - time.monotonic_ns()) > 0:
            await asyncio.sleep(left / 1e9)

    script = lambda a: stream(a, first_ns=2_000_000, gap_ns=1_000_000)  # noqa: E731
    server = ScriptedServer(time.monotonic_ns, sleep_until, script)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener, port = asyncio.run_coroutine_threadsafe(server.start(loop), loop).result()

    async def close() -> None:
        listener.close()
        for task in list(server.tasks):
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await asyncio.sleep(0)

    try:
        yield port, server
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True)
class Kit:
    """The helpers above as one fixture, since test files import product packages only."""

    Server: type[ScriptedServer] = ScriptedServer
    stream: Callable[..., list[Act]] = field(default=stream)
    plain: Callable[..., list[Act]] = field(default=plain)
    chunk: Callable[[bytes], bytes] = field(default=chunk)
    token: Callable[..., bytes] = field(default=token)
    finish: Callable[[int, int], bytes] = field(default=finish)
    serving: Callable[[], Any] = field(default=serving)
    head: bytes = HEAD


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
