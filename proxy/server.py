"""Start and stop one proxy worker on the running loop: real sockets and uvloop, or virtual time and memory.

Everything from the outside comes in as arguments: time, connections, the listener, where records go. May not know: the
command line, processes, journals.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import orjson

from proxy.config import ProxyConfig, check, parse_target
from proxy.front import Front
from proxy.hub import Hub
from traces.errors import UserError
from traces.records import RequestRecord, from_row
from traces.seams import Connect, NowNs, Serve
from traces.status import StatusPage

FLUSH_S = 0.05
"""between two looks at clients that still take the end of their reply"""


class RunningProxy:
    """One worker that listens."""

    def __init__(self, hub: Hub, server: asyncio.AbstractServer, port: int) -> None:
        self._hub = hub
        self._server = server
        self.port = port

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._hub.in_flight

    def set_limit(self, limit: int | None) -> None:
        """Change the concurrency limit now; None removes it."""
        self._hub.set_limit(limit)

    async def drain(self, timeout_s: float) -> int:
        """Accept nothing new, let what runs finish for up to timeout_s; how many had to be cut off."""
        hub = self._hub
        self._server.close()
        hub.draining = True
        for front in list(hub.fronts):
            front.sweep(hub.now_ns())
        try:
            async with asyncio.timeout(timeout_s):
                await hub.idle()
                while any(front.flushing() for front in hub.fronts):
                    await asyncio.sleep(FLUSH_S)
        except TimeoutError:
            pass
        left = hub.in_flight
        await self.close()
        return left

    async def close(self) -> None:
        """Stop at once; requests under way are recorded as cancelled."""
        hub = self._hub
        self._server.close()
        hub.draining = True
        for front in list(hub.fronts):
            front.stop("the proxy is shutting down")
        await hub.idle()
        if hub.parrot is not None:
            hub.parrot.close()
        for pool in hub.pools:
            pool.close()
        hub.stop()
        await asyncio.sleep(0)  # transports report their end in the next turn of the loop
        await asyncio.sleep(0)


async def start(
    config: ProxyConfig,
    *,
    host: str,
    port: int,
    now_ns: NowNs,
    connect: Connect,
    serve: Serve,
    write: Callable[[RequestRecord], None] | None = None,
    write_line: Callable[[bytes], None] | None = None,
    status: StatusPage | None = None,
) -> RunningProxy:
    """Listen on host:port (0: any free port). UserError when the configuration or the port cannot be used.

    Records go to `write`, or, cheaper, as lines of the journal to `write_line`.
    """
    check(config, host)
    if config.engine == "parrot":  # every body is read before it goes on, however long
        config = replace(config, buffer_body=config.max_body)
    tls = _upstream_tls(config) if any(parse_target(url).tls for url in config.upstreams) else None
    rows = _as_records(write) if write_line is None else _as_lines(write_line)
    hub = Hub(config, now_ns=now_ns, connect=connect, write=rows, write_line=write_line, status=status, tls=tls)

    def front() -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, Front(hub))  # by its methods alone

    try:
        if config.tls_cert is not None:
            server = await serve(front, host, port, ssl=_front_tls(config))
        else:
            server = await serve(front, host, port)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"--listen {host}:{port}: {why}; choose another address or port") from error
    return RunningProxy(hub, server, _port(server, port))


def _as_records(write: Callable[[RequestRecord], None] | None) -> Callable[[dict[str, Any]], None]:
    if write is None:
        raise TypeError("start() needs write or write_line")
    take = write
    return lambda row: take(from_row(RequestRecord, row))


def _as_lines(write_line: Callable[[bytes], None]) -> Callable[[dict[str, Any]], None]:
    return lambda row: write_line(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _port(server: asyncio.AbstractServer, asked: int) -> int:
    sockets = getattr(server, "sockets", ())
    if sockets:
        return int(sockets[0].getsockname()[1])
    address = getattr(server, "address", None)
    return int(address[1]) if address is not None else asked


def _upstream_tls(config: ProxyConfig) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=config.upstream_ca)
    except OSError as error:
        raise UserError(f"--upstream-ca {config.upstream_ca}: cannot be read ({error}); give a PEM file") from error


def _front_tls(config: ProxyConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert or "", config.tls_key)
    except OSError as error:
        raise UserError(f"--tls-cert {config.tls_cert}: cannot be used ({error}); give PEM files") from error
    return context
