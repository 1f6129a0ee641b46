"""Beside a real-time run: a thread that scrapes /metrics and one that receives OTLP spans, each with its own journal.

    with watching(run, "http://127.0.0.1:8000", otlp_port=4318) as watch: ...

A page that cannot be read is a line of kind "log", once, until it can be read again; nothing here fails a run.
May not know: what the figures mean.
"""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from engines.launchers.scrape import Scraper
from joulegraph.join.otlp import Damaged, spans
from joulegraph.join.spans import record
from traces.errors import UserError
from traces.journal import JournalWriter
from traces.rundir import RunDir

BODY_LIMIT = 16 << 20
_GZIP_LIMIT = 64 << 20


@dataclass
class Watch:
    """What was joined; filled while the run goes on."""

    scrapes: int = 0
    failed: int = 0
    spans: int = 0
    otlp_port: int | None = None
    _ends: list[Callable[[], None]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {"scrapes": self.scrapes, "failed_scrapes": self.failed, "spans": self.spans}


@contextmanager
def watching(run: RunDir, url: str | None, *, otlp_port: int | None = None) -> Iterator[Watch]:
    """Scrape `url`/metrics (None: not) and take spans on 127.0.0.1:otlp_port (None: not; 0: a free one).

    UserError when the port is taken.
    """
    watch = Watch()
    try:
        if otlp_port is not None:
            watch._ends.append(_receive(run, watch, otlp_port))
        if url is not None:
            watch._ends.append(_scrape(run, watch, url))
        yield watch
    finally:
        for end in watch._ends:
            end()


def _writer(run: RunDir, who: str) -> JournalWriter:
    return run.writer("engine", who, mono_ns=time.monotonic_ns(), wall_ns=time.time_ns())


def _scrape(run: RunDir, watch: Watch, url: str) -> Callable[[], None]:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    writer = _writer(run, "metrics")
    scraper = Scraper(parts.hostname or "127.0.0.1", parts.port or 80, writer.write)

    def end() -> None:
        scraper.close()
        watch.scrapes, watch.failed = scraper.reads, scraper.failures
        writer.close()

    return end


def _receive(run: RunDir, watch: Watch, port: int) -> Callable[[], None]:
    """A loop of its own in a thread; returns what stops it. UserError when the port is taken."""
    loop = asyncio.new_event_loop()
    started: list[int | str] = []
    ready = threading.Event()
    stop = asyncio.Event()
    writer = _writer(run, "spans")

    async def main() -> None:
        runner = await _server(watch, writer)
        try:
            started.append(await _listen(runner, port))
            ready.set()
            await stop.wait()
        except OSError as error:
            started.append(f"OTLP port {port} cannot be listened on ({error.strerror}); choose another")
        finally:
            ready.set()
            await runner.cleanup()

    def body() -> None:
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    thread = threading.Thread(target=body, name="otlp", daemon=True)
    thread.start()
    ready.wait(10.0)
    found = started[0] if started else "the OTLP receiver did not start in time"
    if isinstance(found, str):
        thread.join(5.0)
        writer.close()
        raise UserError(found)
    watch.otlp_port = found

    def end() -> None:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5.0)
        if not thread.is_alive():
            writer.close()

    return end


async def _server(watch: Watch, writer: JournalWriter) -> Any:
    from aiohttp import web

    async def traces(request: web.Request) -> web.Response:
        try:
            found = spans(unpacked(await request.read()))
        except (Damaged, zlib.error) as error:
            return web.Response(status=400, text=f"not an OTLP trace export in protobuf: {error}")
        now_ns = time.monotonic_ns()
        for span in found:
            row = record(span, now_ns)
            if row is not None:
                writer.write(row)
                watch.spans += 1
        writer.flush()
        return web.Response(body=b"", content_type="application/x-protobuf")

    app = web.Application(client_max_size=BODY_LIMIT)
    app.router.add_post("/v1/traces", traces)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    return runner


async def _listen(runner: Any, port: int) -> int:
    from aiohttp import web

    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return int(runner.addresses[0][1])


def unpacked(body: bytes) -> bytes:
    """A body that may still be gzip (aiohttp unpacks what says so). zlib.error or Damaged when it is broken."""
    if not body.startswith(b"\x1f\x8b"):
        return body
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    plain = unzip.decompress(body, _GZIP_LIMIT)
    if not unzip.eof:
        raise Damaged("gzip that does not end, or is too large")
    return plain
