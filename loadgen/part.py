"""One part of a replay on the running loop: the trace is read and planned whole, the workflows of the part are played.

Why: a single process, a shard among many, a shard on a node of a cluster and a run in virtual time do the same here.
Every part plans all arrivals, so that seeds, dithers and limits agree with a single process. A row or workflow that is
at fault is left out, counted and told. May not know: processes, engines' insides, energy, run directories beyond the
paths it is given.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from loadgen.arrivals import Arrivals, plan, settled
from loadgen.clocks import Skew
from loadgen.replay import ReplayOptions, replay
from loadgen.target import Target
from traces.errors import UserError
from traces.faults import Faults, unheard
from traces.journal import JournalWriter
from traces.manifest import manifest_row
from traces.seams import Connect, NowNs, SleepUntil
from traces.status import StatusPage
from traces.trace import TraceFile, read_trace, workflow_rows
from traces.workflow import Manifest, Workflow

if TYPE_CHECKING:
    from loadgen.pacing import Pacer


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


@dataclass(frozen=True, slots=True)
class Seams:
    """What the parts of a replay differ in: time, connections, and where records go."""

    now_ns: NowNs
    sleep_until: SleepUntil
    connect: Connect
    write: Callable[[Any], None]
    page: StatusPage | None
    stop: asyncio.Event


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


@dataclass(frozen=True, slots=True)
class Opened:
    """A trace as it will be replayed."""

    file: TraceFile
    workflows: Iterable[Workflow]
    manifest: Manifest
    faults: Faults
    """filled while the workflows are taken"""


def opened(trace: Path, arrivals: Arrivals) -> Opened:
    """Read and planned, faults left out. UserError where it is no trace at all, or a figure makes no sense."""
    faults = Faults()
    file = read_trace(trace, on_problem=unheard)  # told as the workflows are taken
    named = partial(_named, trace, faults)
    planned = plan(file.workflows(named), file.manifest, arrivals)
    return Opened(file, planned.workflows, settled(file.manifest, arrivals, planned), faults)


def _named(trace: Path, faults: Faults, sentence: str) -> None:
    """A fault by the file's name alone: a run directory may be published."""
    faults(sentence.replace(str(trace), trace.name, 1))


def recorded(trace: Opened, path: Path) -> Iterator[Workflow]:
    """Write each workflow of the whole trace as it is taken up, so that the run says what it replayed."""
    with path.open("wb") as file:
        file.write(orjson.dumps(manifest_row(trace.manifest), option=orjson.OPT_APPEND_NEWLINE))
        for workflow in trace.workflows:
            for row in workflow_rows(workflow, compact=False):
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            yield workflow


def only(workflows: Iterable[Workflow], shard: int, shards: int) -> Iterator[Workflow]:
    """The workflows of one shard."""
    return (w for w in workflows if shards == 1 or shard_of(w.workflow_id, shards) == shard)


async def play(job: ShardJob, t0_ns: int, seams: Seams) -> dict[str, Any]:
    """Play one part: {"totals": ReplayTotals as a dict, "transforms": [...], "left_out": {...} or None}. What was done
    to the trace and what was left out are those of the whole trace."""
    trace = opened(job.trace, job.arrivals)
    workflows = trace.workflows if job.replayed is None else recorded(trace, job.replayed)
    totals = await replay(
        only(workflows, job.shard, job.shards),
        job.target,
        t0_ns=t0_ns,
        now_ns=seams.now_ns,
        sleep_until=seams.sleep_until,
        connect=seams.connect,
        write=seams.write,
        status=seams.page,
        stop=seams.stop,
        options=replace(job.options, manifest=trace.manifest),
    )
    return {
        "totals": asdict(totals),
        "transforms": list(trace.manifest.transforms),
        "left_out": trace.faults.as_json(),
    }


async def play_real(
    job: ShardJob,
    t0_ns: int,
    journal: JournalWriter,
    page: StatusPage | None,
    stop: asyncio.Event,
    skew: Skew | None = None,
) -> dict[str, Any]:
    """`play` on the running (real) loop. skew: of the clock that t0_ns and all stamps are on; None: the true one."""
    from loadgen.pacing import Pacer

    loop = asyncio.get_running_loop()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    with Pacer(loop, time.monotonic_ns) as pacer:
        seams = Seams(
            now_ns=time.monotonic_ns if skew is None else skew.now_ns,
            sleep_until=pacer.sleep_until if skew is None else _skewed(pacer, skew),
            connect=loop.create_connection,  # type: ignore[arg-type]
            write=journal.write,
            page=page,
            stop=stop,
        )
        return await play(job, t0_ns, seams)


def _skewed(pacer: Pacer, skew: Skew) -> SleepUntil:
    async def sleep_until(due_ns: int) -> None:
        await pacer.sleep_until(skew.true_ns(due_ns))

    return sleep_until
