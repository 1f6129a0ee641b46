"""One load job: a trace played against a target, its dispatch journal and status page written into the run directory.

`play` is the same in real and in virtual time (seams come in as arguments); `load_process` is its real-time shell in a
process of its own, so that nothing else shares its event loop. May not know: engines' insides, energy.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import orjson

from loadgen.arrivals import Arrivals, Plan, plan
from loadgen.replay import ReplayOptions, replay
from loadgen.tally import ReplayTotals, slot_names
from loadgen.target import Target
from traces.errors import UserError
from traces.journal import QueuedWriter
from traces.rows import manifest_row
from traces.rundir import RunDir
from traces.seams import Connect, NowNs, SleepUntil
from traces.status import StatusPage
from traces.trace import TraceFile, read_trace, workflow_rows
from traces.workflow import Workflow

START_AFTER_NS = 300_000_000
GC_THRESHOLD = 50_000


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What one load process plays. Values only: it travels to a spawned process."""

    run: Path
    trace: Path
    target: Target
    arrivals: Arrivals = field(default_factory=Arrivals)
    options: ReplayOptions = field(default_factory=ReplayOptions)
    status: Path | None = None
    shard: str = "0"
    workflows: int | None = None
    """how many there are, where that is known beforehand (for the live view)"""


def planned(trace: TraceFile, arrivals: Arrivals) -> Plan:
    """The trace's workflows as they will arrive, with what was done to them."""
    return plan(trace.workflows(), trace.manifest, arrivals)


def recorded(workflows: Iterable[Workflow], file: IO[bytes]) -> Iterator[Workflow]:
    """Write each workflow to the run's trace.jsonl as it is taken up, so that the run says what it replayed."""
    for workflow in workflows:
        for row in workflow_rows(workflow, compact=False):
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        yield workflow


async def play(
    job: LoadJob,
    *,
    t0_ns: int,
    now_ns: NowNs,
    sleep_until: SleepUntil,
    connect: Connect,
    write: Callable[[Any], None],
    page: StatusPage | None,
    stop: asyncio.Event,
) -> dict[str, Any]:
    """Play a job to its end; the generator's totals and the transforms, ready for run.json."""
    trace = read_trace(job.trace)
    todo = planned(trace, job.arrivals)
    manifest = replace(trace.manifest, transforms=(*trace.manifest.transforms, *todo.sentences))
    options = replace(job.options, manifest=manifest)
    with (job.run / "trace.jsonl").open("wb") as file:
        file.write(orjson.dumps(manifest_row(manifest), option=orjson.OPT_APPEND_NEWLINE))
        totals = await replay(
            recorded(todo.workflows, file),
            job.target,
            t0_ns=t0_ns,
            now_ns=now_ns,
            sleep_until=sleep_until,
            connect=connect,
            write=write,
            status=page,
            stop=stop,
            options=options,
        )
    return {"load": summary(totals), "transforms": list(manifest.transforms), "t0_ns": t0_ns}


def summary(totals: ReplayTotals) -> dict[str, Any]:
    """The generator's totals as plain data, with its verdict."""
    return {**asdict(totals), "errors": totals.errors, "rejected": totals.rejected, "valid": totals.valid}


def load_process(lifeline: Connection, job: LoadJob) -> None:
    """Play one job on uvloop. b"drain" or the lifeline's end drains.

    Sends {"started": true} once its status page stands, then {"done": totals}, or {"error": sentence}.
    """
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    message: dict[str, Any]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            message = {"done": runner.run(_play_real(lifeline, job))}
    except UserError as error:
        message = {"error": str(error)}
    try:
        lifeline.send_bytes(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS))
    except OSError:
        pass  # the parent is gone; the journal is closed


async def _play_real(lifeline: Connection, job: LoadJob) -> dict[str, Any]:
    from loadgen.pacing import Pacer

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    threading.Thread(target=_listen, args=(lifeline, loop, stop), name="lifeline", daemon=True).start()
    run = RunDir(job.run)
    journal = QueuedWriter(run.writer("dispatch", job.shard, mono_ns=time.monotonic_ns(), wall_ns=time.time_ns()))
    page = StatusPage(slot_names(), job.status)
    page.set("workflows_total", job.workflows or 0)
    lifeline.send_bytes(orjson.dumps({"started": True}))
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)
    try:
        with Pacer(loop, time.monotonic_ns) as pacer:
            return await play(
                job,
                t0_ns=time.monotonic_ns() + START_AFTER_NS,
                now_ns=time.monotonic_ns,
                sleep_until=pacer.sleep_until,
                connect=loop.create_connection,  # type: ignore[arg-type]
                write=journal.put,
                page=page,
                stop=stop,
            )
    finally:
        journal.close()


def _listen(lifeline: Connection, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Any message, and the end of the lifeline, mean: send nothing more, let what is in flight finish."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        pass
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:
        pass  # the loop has ended by itself
