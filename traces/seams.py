"""The edges of the world, as types: time and connections come in as arguments, so tests and virtual time supply theirs.

Real shells pass `time.monotonic_ns`, a pacer, `loop.create_connection` and `loop.create_server`; runs in virtual time
pass those of joulegraph.virtual. Nothing here runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

NowNs = Callable[[], int]
"""Monotonic nanoseconds, one axis for all processes of a host (time.monotonic_ns)."""

SleepUntil = Callable[[int], Awaitable[None]]
"""Returns once now >= due_ns, never earlier."""


class Connect(Protocol):
    """Shape of loop.create_connection: opens one transport for one protocol."""

    async def __call__(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, ssl: Any = None
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]: ...


class Serve(Protocol):
    """Shape of loop.create_server: accepts connections, one protocol each."""

    async def __call__(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, ssl: Any = None
    ) -> asyncio.AbstractServer: ...
