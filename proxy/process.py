"""One proxy worker as a process of its own: uvloop, journal, status page, signals, and no life without its parent.

`proxy_process` is the target of traces.child.spawn. It sends {"port": N} over the lifeline when it listens (or
{"error": sentence}), drains and leaves on SIGTERM or when the lifeline ends. May not know: what other workers do.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from proxy.config import ProxyConfig
from proxy.page import slot_names
from proxy.server import RunningProxy, start
from traces.errors import UserError
from traces.journal import QueuedWriter
from traces.rundir import RunDir
from traces.status import StatusPage

GC_THRESHOLD = 50_000
TICK_S = 0.25
_M_TRIM_THRESHOLD, _M_TOP_PAD = -1, -2  # malloc.h of glibc
FLUSH_S = 0.05
"""short, so that few rows wait and their memory is used again while it is warm"""


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What one worker process needs besides the proxy's own configuration."""

    proxy: ProxyConfig
    host: str
    port: int
    out: Path
    """run directory"""
    status: Path | None = None
    """status page file"""
    worker: int = 0
    reuse_port: bool = False
    drain_s: float = 10.0
    queue_limit: int = 100_000


def proxy_process(lifeline: Connection, config: ProcessConfig) -> None:
    """Run one worker until SIGTERM or the end of the lifeline."""
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _keep_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(lifeline, config))


def _keep_memory() -> None:
    """Stop glibc from giving the heap's top back after every flush of the journal: each row then costs a page fault
    (5 us of the 106 us per request measured). Other C libraries have no mallopt; then it stays as it is."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 32 << 20)
    mallopt(_M_TOP_PAD, 4 << 20)


async def _run(lifeline: Connection, config: ProcessConfig) -> None:
    loop = asyncio.get_running_loop()
    leave, now = asyncio.Event(), asyncio.Event()
    running: RunningProxy | None = None
    try:
        run = RunDir(config.out)
        writer = run.writer("requests", str(config.worker), mono_ns=time.monotonic_ns(), wall_ns=time.time_ns())
        journal = QueuedWriter(writer, limit=config.queue_limit, every_s=FLUSH_S)
        page = StatusPage(slot_names(), config.status)
        try:
            running = await start(
                config.proxy,
                host=config.host,
                port=config.port,
                now_ns=time.monotonic_ns,
                connect=loop.create_connection,  # type: ignore[arg-type]
                serve=_serve(loop, config.reuse_port, config.proxy.head_timeout_ns / 1e9),
                write_line=journal.put,  # lines are made here and now: the thread would hold the GIL for whole batches
                status=page,
            )
        except UserError:
            journal.close()
            raise
    except UserError as error:
        lifeline.send({"error": str(error)})
        return
    loop.add_signal_handler(signal.SIGTERM, leave.set)
    loop.add_signal_handler(signal.SIGUSR1, now.set)
    loop.add_signal_handler(signal.SIGHUP, journal.reopen)
    threading.Thread(target=_listen, args=(lifeline, loop, running, leave), name="lifeline", daemon=True).start()
    lifeline.send({"port": running.port})
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)
    ticker = loop.create_task(_tick(page, journal, writer.path))
    await leave.wait()
    draining, cut = loop.create_task(running.drain(config.drain_s)), loop.create_task(now.wait())
    await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
    cut.cancel()
    if not draining.done():  # told twice: what still runs is cut and recorded
        draining.cancel()
        await running.drain(0.0)
    ticker.cancel()
    journal.close()
    _show(page, journal)
    if journal.error is not None:
        sys.stderr.write(
            f"proxy: {journal.dropped} records lost, {writer.path} could not be written: {journal.error}\n"
        )


def _serve(loop: asyncio.AbstractEventLoop, reuse_port: bool, handshake_s: float) -> Any:
    async def serve(factory: Any, host: str, port: int, *, ssl: Any = None) -> asyncio.AbstractServer:
        return await loop.create_server(
            factory,
            host,
            port,
            ssl=ssl,
            ssl_handshake_timeout=handshake_s if ssl is not None else None,
            backlog=4096,
            reuse_port=reuse_port or None,
            family=_family(host),
        )

    return serve


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _listen(lifeline: Connection, loop: asyncio.AbstractEventLoop, running: RunningProxy, leave: asyncio.Event) -> None:
    """Messages of the parent: {"limit": N | None}; its end means: drain and leave."""
    try:
        while True:
            message = lifeline.recv()
            if isinstance(message, dict) and "limit" in message:
                loop.call_soon_threadsafe(running.set_limit, message["limit"])
    except (EOFError, OSError):
        try:
            loop.call_soon_threadsafe(leave.set)
        except RuntimeError:
            pass  # the loop is closed: we are leaving already


async def _tick(page: StatusPage, journal: QueuedWriter, path: Path) -> None:
    told = False
    while True:
        _show(page, journal)
        if journal.error is not None and not told:
            told = True
            sys.stderr.write(f"proxy: {path} cannot be written ({journal.error}): requests go on, records are lost\n")
        await asyncio.sleep(TICK_S)


def _show(page: StatusPage, journal: QueuedWriter) -> None:
    page.set("journal_depth", journal.depth)
    page.set("journal_dropped", journal.dropped)
