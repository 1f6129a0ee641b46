"""One load job of a run: which trace, which target, how; in real time as shards (processes), in virtual time inline.

May not know: engines' insides, energy, how a run ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loadgen.arrivals import Arrivals
from loadgen.options import ReplayOptions
from loadgen.part import Seams, ShardJob, opened, play, recorded, split
from loadgen.target import Target
from loadgen.totals import ReplayTotals
from traces.rundir import RunDir


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


def write_replayed(run: RunDir, job: LoadJob) -> None:
    """The run's trace.jsonl beforehand: nodes of a cluster have no way to write it as it is taken up."""
    for _ in recorded(opened(job.trace, job.arrivals), run.file("trace.jsonl")):
        pass


def disclosed(job: LoadJob, done: dict[str, Any]) -> dict[str, Any]:
    """What became of the trace, for run.json, with the mode in which it was played where that is not the open loop."""
    users = job.options.closed_loop_users
    if users is None:
        return done
    think_s = job.options.closed_loop_think_ns / 1e9
    mode = (
        f"Closed loop: {users} users, each taking the next workflow {think_s:g} s after the last one ended; arrivals "
        "of the trace were not kept, and latencies say nothing of users who would have come anyway."
    )
    return {**done, "transforms": [*done["transforms"], mode]}


async def play_here(run: RunDir, job: LoadJob, t0_ns: int, seams: Seams) -> dict[str, Any]:
    """Play a job to its end in this process; the generator's totals and what became of the trace, for run.json."""
    (only,) = shard_jobs(run, replace(job, shards=1))
    done = await play(only, t0_ns, seams)
    return {"load": summary(ReplayTotals(**done.pop("totals"))), **disclosed(job, done), "t0_ns": t0_ns}


def summary(totals: ReplayTotals) -> dict[str, Any]:
    """The generator's totals as plain data, with its verdict."""
    return {**asdict(totals), "errors": totals.errors, "rejected": totals.rejected, "valid": totals.valid}
