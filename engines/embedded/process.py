"""The embedded engine as a process of its own: real time, real sockets, journals and a status page as files.

`engine_process` is made for traces.child.spawn: it says its port through the lifeline when it is ready (or the sentence
that says why not) and leaves when the lifeline ends. `serve_forever` is what the command line runs.
May not know: routes, steps.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from engines.embedded.server import EngineOptions, RunningEngine, start, status_names
from traces.child import on_lifeline_end
from traces.errors import UserError
from traces.journal import JournalWriter
from traces.seams import Serve
from traces.status import StatusPage

_SAME_SIGNAL_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an engine process needs; picklable."""

    options: EngineOptions = field(default_factory=lambda: EngineOptions(tick_ns=5_000_000))
    host: str = "127.0.0.1"
    port: int = 0
    truth: Path | None = None
    """truth.jsonl; None: not kept"""
    steps: Path | None = None
    """engine.jsonl"""
    status: Path | None = None
    """status page with the simulated sensors"""
    drain_s: float = 0.0
    """how long running requests may go on after the stop"""


async def sleep_until(due_ns: int) -> None:
    """Real time: never early. uvloop's timers may fire up to a millisecond early, so look again."""
    while (left := due_ns - time.monotonic_ns()) > 0:
        await asyncio.sleep(left / 1e9)


def _journal(path: Path | None, name: str) -> JournalWriter | None:
    if path is None:
        return None
    return JournalWriter(path, name, mono_ns=time.monotonic_ns(), wall_ns=time.time_ns())


def _page(config: EngineConfig) -> StatusPage | None:
    if config.status is None:
        return None
    try:
        return StatusPage(status_names(config.options), config.status)
    except OSError as error:
        raise UserError(f"{config.status}: cannot write the status page ({error.strerror}); choose another") from None


async def serve(config: EngineConfig, ready: Callable[[RunningEngine], None], stop: asyncio.Event) -> None:
    """Run the engine until `stop`, then drain and close everything. UserError when it cannot start."""
    loop = asyncio.get_running_loop()
    journals = [_journal(config.truth, "truth"), _journal(config.steps, "engine")]
    try:
        page = _page(config)
        try:
            running = await start(
                config.options,
                host=config.host,
                port=config.port,
                now_ns=time.monotonic_ns,
                sleep_until=sleep_until,
                serve=cast(Serve, loop.create_server),
                truth=journals[0],
                steps=journals[1],
                status=page,
            )
        except OSError as error:
            why = error.strerror or error
            raise UserError(
                f"cannot listen on {config.host}:{config.port} ({why}); choose a free port with --port"
            ) from None
        gc.freeze()
        ready(running)
        await stop.wait()
        if config.drain_s:
            await running.drain(config.drain_s)
        await running.close()
    finally:
        for journal in journals:
            if journal is not None:
                journal.close()


def run(
    config: EngineConfig,
    ready: Callable[[RunningEngine], None],
    watch: Callable[[Callable[[], None]], None],
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """A loop around `serve`; `watch(stop)` is told how to end it (from any thread). signals: those that drain it."""
    import uvloop

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            with suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(stop.set)

        first: list[int] = []
        for number in signals:
            loop.add_signal_handler(number, _signalled, stop, first)
        watch(end)
        await serve(config, ready, stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _signalled(stop: asyncio.Event, first: list[int]) -> None:
    """First signal: drain. A second one (not the same one sent to the whole group): leave at once."""
    now = time.monotonic_ns()
    if first and now - first[0] > _SAME_SIGNAL_NS:
        os._exit(130)
    first.append(now)
    stop.set()


def engine_process(lifeline: Connection, config: EngineConfig) -> None:
    """Target of traces.child.spawn. Sends the port (int) when ready, or a sentence (str) and exits with 2."""

    def ready(running: RunningEngine) -> None:
        lifeline.send(running.port)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides who leaves when
    try:
        run(config, ready, lambda end: on_lifeline_end(lifeline, end), signals=(signal.SIGTERM,))
    except UserError as error:
        with suppress(OSError):
            lifeline.send(str(error))
        raise SystemExit(2) from None
