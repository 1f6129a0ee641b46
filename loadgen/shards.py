"""A replay spread over processes: each workflow stays on one shard, all count from one epoch, results merge to one.

Why: beyond one core. Every shard reads the whole trace and plays its part of it (loadgen.part); due instants, prompts
and wire ids are those of one process. Each shard writes its own dispatch journal and status page. The child leaves when
its lifeline ends. May not know: engines' insides, energy, how a part is played.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import orjson

from loadgen.part import ShardJob, play_real
from loadgen.tally import slot_names
from loadgen.totals import Bounds, ReplayTotals, merged
from traces.child import Child, spawn
from traces.errors import UserError
from traces.journal import JournalWriter
from traces.status import StatusPage

_FLUSH_S = 0.5


class Shards:
    """The parent's side: start, wait until ready, go, poll, stop. Use as a context manager."""

    def __init__(self, jobs: Sequence[ShardJob]) -> None:
        self._bounds: Bounds = jobs[0].options.bounds
        self._children: list[Child] = []
        self._done: dict[int, dict[str, Any]] = {}
        try:
            for job in jobs:
                self._children.append(spawn(shard_process, job, name=f"load-{job.shard}"))
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ready(self, timeout_s: float = 60.0) -> None:
        """Every shard has opened its journal and status page. UserError with a shard's own sentence."""
        deadline = time.monotonic() + timeout_s
        for index in range(len(self._children)):
            if self._message(index, max(0.0, deadline - time.monotonic())) is None:
                raise UserError(f"shard {index} did not start within {timeout_s:g} s; look at its lines above")

    def go(self, t0_ns: int) -> None:
        """Begin: trace time 0 is the instant t0_ns (monotonic, the one axis of all processes of the host)."""
        self._tell({"go": t0_ns})

    def drain(self) -> None:
        """Send nothing more; what is in flight may finish."""
        self._tell({"drain": True})

    def poll(self, timeout_s: float = 0.1) -> tuple[ReplayTotals, dict[str, Any]] | None:
        """The merged totals, and what became of the trace (`transforms`, `left_out`), once every shard is done.

        UserError when a shard failed or died; the journals keep what was recorded.
        """
        waiting = {c.lifeline: i for i, c in enumerate(self._children) if i not in self._done}
        for ready in wait(list(waiting), timeout_s):
            index = waiting[ready]  # type: ignore[index]
            said = self._message(index, 0.0)
            if said is not None:
                self._done[index] = said["done"]
        if len(self._done) < len(self._children):
            return None
        parts = [ReplayTotals(**done["totals"]) for done in self._done.values()]
        return merged(parts, self._bounds), trace_of(self._done[0])

    def stop(self) -> None:
        """End every child that still runs (they drain for at most their drain time)."""
        for child in self._children:
            child.stop(60.0)
        self._children = []

    def _tell(self, message: dict[str, Any]) -> None:
        for child in self._children:
            try:
                child.lifeline.send_bytes(orjson.dumps(message))
            except OSError:
                pass  # it has ended; poll says how

    def _message(self, index: int, timeout_s: float) -> dict[str, Any] | None:
        lifeline = self._children[index].lifeline
        if not lifeline.poll(timeout_s):
            return None
        try:
            said: dict[str, Any] = orjson.loads(lifeline.recv_bytes())
        except (EOFError, ConnectionResetError):
            raise UserError(f"shard {index} of the load ended without a word; what it recorded is kept") from None
        if "error" in said:
            raise UserError(said["error"])
        return said


def trace_of(done: dict[str, Any]) -> dict[str, Any]:
    """What was done to the trace and what was left out of it: the same in every shard, for each reads all of it."""
    return {name: done[name] for name in ("transforms", "left_out")}


def shard_process(lifeline: Connection, job: ShardJob) -> None:
    """A shard in a process of its own: says "ready", waits for "go", then says "done" or "error"."""
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    message: dict[str, Any]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            message = runner.run(_shard(lifeline, job))
    except UserError as error:
        message = {"error": str(error)}
    try:
        lifeline.send_bytes(orjson.dumps(message))
    except OSError:
        pass  # the parent is gone; the journal is closed


async def _shard(lifeline: Connection, job: ShardJob) -> dict[str, Any]:
    journal = JournalWriter(job.journal, "dispatch", mono_ns=time.monotonic_ns(), wall_ns=time.time_ns())
    try:
        page = None if job.status is None else StatusPage(slot_names(), job.status)
        if page is not None and job.workflows is not None:
            page.set("workflows_total", job.workflows)
        lifeline.send_bytes(orjson.dumps({"ready": True}))
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        told: asyncio.Future[int | None] = loop.create_future()
        threading.Thread(target=_listen, args=(lifeline, loop, told, stop), name="lifeline", daemon=True).start()
        t0_ns = await told
        if t0_ns is None:
            return {"error": f"shard {job.shard} was stopped before it began"}
        flusher = loop.create_task(_flush(journal))
        try:
            return {"done": await play_real(job, t0_ns, journal, page, stop)}
        finally:
            flusher.cancel()
    finally:
        journal.close()


async def _flush(journal: JournalWriter) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        journal.flush()


def _listen(
    lifeline: Connection, loop: asyncio.AbstractEventLoop, told: asyncio.Future[int | None], stop: asyncio.Event
) -> None:
    """Messages of the parent: go, drain. The lifeline's end means drain, and leave at once when nothing has begun."""
    try:
        while True:
            said = orjson.loads(lifeline.recv_bytes())
            if "go" in said:
                loop.call_soon_threadsafe(_tell, told, said["go"])
            if "drain" in said:
                loop.call_soon_threadsafe(stop.set)
    except (EOFError, OSError):
        pass
    try:
        loop.call_soon_threadsafe(stop.set)
        loop.call_soon_threadsafe(_tell, told, None)
    except RuntimeError:
        pass  # the loop has ended by itself


def _tell(told: asyncio.Future[int | None], t0_ns: int | None) -> None:
    if not told.done():
        told.set_result(t0_ns)
