"""What every server over the embedded engine needs: the engine with its journals, and an aiohttp listener.

The same in real and in virtual time: `serve` says where to listen. May not know: routes, what is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from engines.embedded.http_in import large_request
from engines.embedded.options import EngineOptions, sensors_of
from engines.embedded.profiles import Profile, load_profile
from engines.embedded.shell import Engine
from traces.journal import JournalWriter
from traces.seams import NowNs, Serve, SleepUntil
from traces.status import StatusPage

KEEP_ALIVE_S = 5.0
"""uvicorn's, and so vLLM's"""


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where an engine shows itself. status needs the slots of status_names()."""

    truth: JournalWriter | None = None
    steps: JournalWriter | None = None
    status: StatusPage | None = None


def engine_of(
    options: EngineOptions, now_ns: NowNs, sleep_until: SleepUntil, outlets: Outlets
) -> tuple[Engine, Profile]:
    """The engine that options describe, not yet stepping."""
    profile = load_profile(options.profile)
    engine = Engine(
        profile,
        options.limits,
        now_ns=now_ns,
        sleep_until=sleep_until,
        truth=outlets.truth,
        steps=outlets.steps,
        status=outlets.status,
        sensors=sensors_of(options, profile) if outlets.status is not None else None,
        tick_ns=options.tick_ns,
    )
    return engine, profile


class Listening:
    """A server that takes connections."""

    def __init__(self, server: web.Server, listener: asyncio.AbstractServer, port: int) -> None:
        self.port = port
        self._server, self._listener = server, listener

    def refuse(self) -> None:
        """Take no new connections."""
        self._listener.close()

    async def close(self) -> None:
        """Stop serving."""
        self._listener.close()
        await self._server.shutdown(0.1)
        await self._listener.wait_closed()


async def listen(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], serve: Serve, host: str, port: int
) -> Listening:
    """Serve requests with `handle`, which is cancelled when its client leaves. OSError when the port is taken."""
    server = web.Server(
        handle,
        request_factory=large_request,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        access_log=None,
    )
    listener = await serve(cast(Any, server), host, port)
    sockets = getattr(listener, "sockets", ())  # uvloop's server is no asyncio.Server
    address = sockets[0].getsockname() if sockets else getattr(listener, "address", (host, port))
    return Listening(server, listener, int(address[1]))
