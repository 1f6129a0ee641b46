"""A replay spread over processes: each workflow stays on one shard, all count from one epoch, results merge to one.

Why: beyond one core. Every shard reads the whole trace and plans all arrivals (so seeds, dithers and limits agree with
a single process) and then plays only its own workflows; due instants, prompts and wire ids are those of one process.
Each shard writes its own dispatch journal and status page. The child leaves when its lifeline ends.
May not know: engines' insides, energy, run directories beyond the paths it is given.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from loadgen.arrivals import Arrivals, plan, settled
from loadgen.clocks import Skew
from loadgen.replay import ReplayOptions, replay
from loadgen.tally import slot_names
from loadgen.target import Target
from loadgen.totals import Bounds, ReplayTotals, merged
from traces.child import Child, spawn
from traces.errors import UserError
from traces.journal import JournalWriter
from traces.rows import manifest_row
from traces.seams import SleepUntil
from traces.status import StatusPage
from traces.trace import read_trace, workflow_rows
from traces.workflow import Workflow

if TYPE_CHECKING:
    from loadgen.pacing import Pacer

_FLUSH_S = 0.5


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What one shard plays. Values only: it travels to a spawned process."""

    trace: Path
    journal: Path
    """dispatch.<shard>.jsonl"""
    target: Target
    arrivals: Arrivals = field(default_factory=Arrivals)
    options: ReplayOptions = field(default_factory=ReplayOptions)
    shard: int = 0
    shards: int = 1
    status: Path | None = None
    replayed: Path | None = None
    """where to write the workflows of all shards as they are taken up (give it to one shard only)"""
    workflows: int | None = None
    """how many there are in all shards, where that is known beforehand: for the live view (first shard only)"""


def shard_of(workflow_id: str, shards: int) -> int:
    """The shard a workflow belongs to: by its id alone."""
    return int.from_bytes(blake2b(workflow_id.encode(), digest_size=8).digest(), "little") % shards


def split(job: ShardJob, shards: int, journals: Sequence[Path], pages: Sequence[Path | None]) -> list[ShardJob]:
    """One job per shard; users and pre-warmed connections are divided, the first shard writes what was replayed."""
    users, warm = job.options.closed_loop_users, job.options.prewarm
    if users is not None and users < shards:
        raise UserError(f"--shards {shards}: more than the {users} users; give at most {users} shards")
    return [
        replace(
            job,
            shard=i,
            shards=shards,
            journal=journals[i],
            status=pages[i],
            replayed=job.replayed if i == 0 else None,
            workflows=job.workflows if i == 0 else None,
            options=replace(
                job.options,
                closed_loop_users=None if users is None else _part(users, i, shards),
                prewarm=_part(warm, i, shards),
            ),
        )
        for i in range(shards)
    ]


def _part(total: int, index: int, of: int) -> int:
    return total // of + (index < total % of)


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

    def poll(self, timeout_s: float = 0.1) -> tuple[ReplayTotals, list[str]] | None:
        """The merged totals and the transforms' sentences once every shard is done, else None.

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
        return merged(parts, self._bounds), list(self._done[0]["sentences"])

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
            return {"done": await play(job, t0_ns, journal, page, stop)}
        finally:
            flusher.cancel()
    finally:
        journal.close()


async def play(
    job: ShardJob,
    t0_ns: int,
    journal: JournalWriter,
    page: StatusPage | None,
    stop: asyncio.Event,
    skew: Skew | None = None,
) -> dict[str, Any]:
    """Play one shard on the running (real) loop: {"totals": ReplayTotals as a dict, "sentences": [...]}. skew: of the
    clock that t0_ns and all stamps are on; None: the true one."""
    from loadgen.pacing import Pacer

    loop = asyncio.get_running_loop()
    trace = read_trace(job.trace)
    planned = plan(trace.workflows(), trace.manifest, job.arrivals)
    manifest = settled(trace.manifest, job.arrivals, planned)
    workflows: Iterable[Workflow] = planned.workflows
    if job.replayed is not None:
        workflows = _written(workflows, job.replayed, orjson.dumps(manifest_row(manifest)))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    with Pacer(loop, time.monotonic_ns) as pacer:
        totals = await replay(
            only(workflows, job.shard, job.shards),
            job.target,
            t0_ns=t0_ns,
            now_ns=time.monotonic_ns if skew is None else skew.now_ns,
            sleep_until=pacer.sleep_until if skew is None else _skewed(pacer, skew),
            connect=loop.create_connection,  # type: ignore[arg-type]
            write=journal.write,
            status=page,
            stop=stop,
            options=replace(job.options, manifest=manifest),
        )
    return {"totals": asdict(totals), "sentences": list(planned.sentences)}


def _skewed(pacer: Pacer, skew: Skew) -> SleepUntil:
    async def sleep_until(due_ns: int) -> None:
        await pacer.sleep_until(skew.true_ns(due_ns))

    return sleep_until


def only(workflows: Iterable[Workflow], shard: int, shards: int) -> Iterator[Workflow]:
    """The workflows of one shard."""
    return (w for w in workflows if shards == 1 or shard_of(w.workflow_id, shards) == shard)


def _written(workflows: Iterable[Workflow], path: Path, head: bytes) -> Iterator[Workflow]:
    with path.open("wb") as file:
        file.write(head + b"\n")
        for workflow in workflows:
            for row in workflow_rows(workflow, compact=False):
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            yield workflow


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
