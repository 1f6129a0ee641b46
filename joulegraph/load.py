"""One load job of a run: which trace, which target, how; in real time as shards (processes), in virtual time inline.

May not know: engines' insides, energy, how a run ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import orjson

from loadgen.arrivals import Arrivals, Plan, plan, settled
from loadgen.options import ReplayOptions
from loadgen.replay import replay
from loadgen.shards import ShardJob, split
from loadgen.target import Target
from loadgen.totals import ReplayTotals
from traces.rows import manifest_row
from traces.rundir import RunDir
from traces.seams import Connect, NowNs, SleepUntil
from traces.status import StatusPage
from traces.trace import TraceFile, read_trace, workflow_rows
from traces.workflow import Workflow


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What a run plays. Values only."""

    run: Path
    trace: Path
    target: Target
    arrivals: Arrivals = field(default_factory=Arrivals)
    options: ReplayOptions = field(default_factory=ReplayOptions)
    workflows: int | None = None
    """how many there are, where that is known beforehand (for the live view)"""
    shards: int = 1
    """load processes; real time only"""
    ray: str | None = None
    """address of a Ray cluster that the shards are placed on, in place of processes here"""
    calibration: str | None = None
    """what the target adds to word prompts, as a sentence; already in `target`"""


def shard_jobs(run: RunDir, job: LoadJob) -> list[ShardJob]:
    """The job as load processes of a run: a journal and a status page each."""
    names = [str(i) for i in range(job.shards)]
    whole = ShardJob(
        trace=job.trace,
        journal=run.journal("dispatch", "0"),
        target=job.target,
        arrivals=job.arrivals,
        options=job.options,
        replayed=run.file("trace.jsonl"),
        workflows=job.workflows,
    )
    pages = [run.file(f"status.loadgen.{n}") for n in names]
    return split(whole, job.shards, [run.journal("dispatch", n) for n in names], pages)


def planned(trace: TraceFile, arrivals: Arrivals) -> Plan:
    """The trace's workflows as they will arrive, with what was done to them."""
    return plan(trace.workflows(), trace.manifest, arrivals)


def recorded(workflows: Iterable[Workflow], file: IO[bytes]) -> Iterator[Workflow]:
    """Write each workflow to the run's trace.jsonl as it is taken up, so that the run says what it replayed."""
    for workflow in workflows:
        for row in workflow_rows(workflow, compact=False):
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        yield workflow


def write_replayed(run: RunDir, job: LoadJob) -> None:
    """The run's trace.jsonl beforehand: nodes of a cluster have no way to write it as it is taken up."""
    trace = read_trace(job.trace)
    todo = planned(trace, job.arrivals)
    manifest = settled(trace.manifest, job.arrivals, todo)
    with run.file("trace.jsonl").open("wb") as file:
        file.write(orjson.dumps(manifest_row(manifest), option=orjson.OPT_APPEND_NEWLINE))
        for _ in recorded(todo.workflows, file):
            pass


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
    manifest = settled(trace.manifest, job.arrivals, todo)
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
