"""Shards on the nodes of a Ray cluster: placed by Ray, started at one epoch, results brought home onto our clock.

Why: beyond one machine. The interface is that of loadgen.shards.Shards. Each shard is an actor bound to its node;
`NodeWorker.call` runs any other function there (the composition places one sampler per node with it). Offsets of the
nodes' clocks are measured before and after, recorded in `clocks`, and dispatch rows are mapped onto our axis.
joulegraph must be installed on every node. May not know: run directories, energy. Ray is imported on use only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen.clocks import SKEW_VARIABLE, Mapping, Reading, Skew, mapped, measure, skew_from
from loadgen.part import ShardJob, play_real
from loadgen.shards import trace_of
from loadgen.tally import slot_names
from loadgen.totals import ReplayTotals, merged
from traces.errors import UserError
from traces.journal import JournalReader, JournalWriter
from traces.status import StatusPage

_SHOW_EVERY_S = 0.5


class NodeWorker:
    """What runs on a node, as a threaded Ray actor."""

    def __init__(self, skew: Skew | None = None) -> None:
        self.skew = skew or skew_from(os.environ.get(SKEW_VARIABLE), time.monotonic_ns())
        self._folder = tempfile.TemporaryDirectory(prefix="joulegraph-")
        self._job: ShardJob | None = None
        self._held: dict[str, Any] = {"clock": self.clock}
        self.page = StatusPage(slot_names())
        self.stopper: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def clock(self) -> int:
        """This node's monotonic clock, ns."""
        return time.monotonic_ns() if self.skew is None else self.skew.now_ns()

    def prepare(self, job: ShardJob, trace: bytes) -> str:
        """Take a job and its trace; the node's name."""
        path = Path(self._folder.name) / job.trace.name
        path.write_bytes(trace)
        self._job = replace(job, trace=path, journal=path.with_suffix(".dispatch"), status=None, replayed=None)
        self.page = StatusPage(slot_names())
        return socket.gethostname()

    def counts(self) -> list[int]:
        """The status page's slots as they stand."""
        return list(self.page.slots)

    def play(self, t0_ns: int) -> dict[str, Any]:
        """Play to the end: what loadgen.part.play gives and "rows", or {"error": sentence}."""
        import uvloop

        assert self._job is not None
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                done = runner.run(_play(self, self._job, t0_ns))
        except UserError as error:
            return {"error": str(error)}
        return {**done, "rows": list(JournalReader(self._job.journal))}

    def drain(self) -> None:
        """Send nothing more."""
        if self.stopper is not None:
            self.stopper[0].call_soon_threadsafe(self.stopper[1].set)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run function(held, *args) on this node, for instance a sampler; `held` keeps things between calls and
        has this node's `clock`."""
        return function(self._held, *args)


async def _play(worker: NodeWorker, job: ShardJob, t0_ns: int) -> dict[str, Any]:
    """Outside the class: a coroutine method would make Ray run the whole actor on one event loop."""
    stop = asyncio.Event()
    worker.stopper = (asyncio.get_running_loop(), stop)
    journal = JournalWriter(job.journal, "dispatch", mono_ns=time.monotonic_ns(), wall_ns=time.time_ns())
    try:
        return await play_real(job, t0_ns, journal, worker.page, stop, worker.skew)
    finally:
        worker.stopper = None
        journal.close()


class RayShards:
    """The driver's side. Use as a context manager; after the end `clocks` says how the nodes' clocks stood."""

    def __init__(self, address: str, jobs: Sequence[ShardJob], *, skew: Skew | None = None) -> None:
        self._ray = _connected(address)
        self._jobs = list(jobs)
        self._before: list[Reading] = []
        self._refs: list[Any] = []
        self._done: dict[int, dict[str, Any]] = {}
        self.clocks: list[dict[str, Any]] = []
        nodes = self.nodes()
        self.workers = [self.place(nodes[i % len(nodes)], skew) for i in range(len(self._jobs))]
        self._names: list[str] = []
        self._pages: dict[int, StatusPage] = {}
        """status pages here, by shard, showing those of the nodes"""
        self._shown_s = 0.0

    def __enter__(self) -> RayShards:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def nodes(self) -> list[str]:
        """Ids of the nodes that are alive, in a stable order."""
        return sorted(n["NodeID"] for n in self._ray.nodes() if n["Alive"])

    def place(self, node: str, skew: Skew | None = None) -> Any:
        """An actor bound to one node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        actor = self._ray.remote(NodeWorker)
        return actor.options(scheduling_strategy=strategy, max_concurrency=4, num_cpus=0).remote(skew)

    def ask(self, worker: Any, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> Any:
        """The answer of `NodeWorker.call` on a placed actor. UserError when its node is lost or does not answer."""
        try:
            return self._ray.get(worker.call.remote(function, *args), timeout=timeout_s)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"--ray: a node was lost or does not answer ({_first_line(error)})") from error

    def ready(self, timeout_s: float = 120.0) -> None:
        """Every node has its trace, and its clock has been read."""
        trace = self._ray.put(self._jobs[0].trace.read_bytes())
        asked = [w.prepare.remote(j, trace) for w, j in zip(self.workers, self._jobs, strict=True)]
        try:
            self._names = self._ray.get(asked, timeout=timeout_s)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"--ray: a node could not take its shard ({_first_line(error)})") from error
        self._before = [self.reading(w) for w in self.workers]
        for index, job in enumerate(self._jobs):
            if job.status is not None:
                self._pages[index] = StatusPage(slot_names(), job.status)

    def go(self, t0_ns: int) -> None:
        """Begin: trace time 0 is t0_ns on our clock, on every node by its own."""
        self._refs = [
            w.play.remote(Mapping(r, r).theirs(t0_ns)) for w, r in zip(self.workers, self._before, strict=True)
        ]

    def drain(self) -> None:
        """Send nothing more; what is in flight may finish."""
        for worker in self.workers:
            worker.drain.remote()

    def poll(self, timeout_s: float = 0.1) -> tuple[ReplayTotals, dict[str, Any]] | None:
        """The merged totals and the transforms once every shard is done, else None. UserError when one failed."""
        left = [ref for i, ref in enumerate(self._refs) if i not in self._done]
        finished, _ = self._ray.wait(left, num_returns=len(left), timeout=timeout_s) if left else ([], [])
        for ref in finished:
            self._take(self._refs.index(ref), ref)
        if len(self._done) < len(self._jobs):
            self._show()
            return None
        self._show(last=True)
        totals = [ReplayTotals(**self._done[i]["totals"]) for i in range(len(self._jobs))]
        return merged(totals, self._jobs[0].options.bounds), trace_of(self._done[0])

    def _show(self, *, last: bool = False) -> None:
        """Twice a second: what the nodes' status pages say, on those here."""
        now_s = time.monotonic()
        if not last and now_s - self._shown_s < _SHOW_EVERY_S:
            return
        self._shown_s = now_s
        for index, page in self._pages.items():
            try:
                counts = self._ray.get(self.workers[index].counts.remote(), timeout=_SHOW_EVERY_S)
            except self._ray.exceptions.RayError:
                continue  # a node that is lost is told of by poll
            start = page.index["t_start_ns"]
            if counts[start]:
                counts[start] = Mapping(self._before[index], self._before[index]).ours(counts[start])
            for slot, value in enumerate(counts):
                page.slots[slot] = value

    def _take(self, index: int, ref: Any) -> None:
        """One shard's result: its rows onto our axis and into its journal here."""
        try:
            done = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise UserError(
                f"--ray: shard {index} was lost ({_first_line(error)}); its records stay on its node"
            ) from error
        if "error" in done:
            raise UserError(done["error"])
        mapping = Mapping(self._before[index], self.reading(self.workers[index]))
        self.clocks.append({"shard": index, "node": self._names[index], **mapping.as_json()})
        for name in ("t_start_ns", "t_end_ns"):
            done["totals"][name] = mapping.ours(done["totals"][name])
        journal = JournalWriter(
            self._jobs[index].journal, "dispatch", mono_ns=time.monotonic_ns(), wall_ns=time.time_ns()
        )
        for row in done.pop("rows"):
            journal.write(mapped(row, mapping))
        journal.close()
        self._done[index] = done

    def reading(self, worker: Any) -> Reading:
        """How the clock of an actor's node stands beside ours."""
        return measure(lambda: int(self._ray.get(worker.clock.remote())), time.monotonic_ns)

    def stop(self) -> None:
        """End the actors and leave the cluster as it was."""
        for worker in self.workers:
            self._ray.kill(worker)
        self.workers = []
        self._ray.shutdown()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray; install it with pip install 'joulegraph[ray]'") from error
    _check_listens(address)
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray {address}: no cluster answers there ({_first_line(error)})") from error
    return ray


def _check_listens(address: str) -> None:
    """Ray itself tries a dead address for minutes; a plain connection tells at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto", "local": Ray knows where to look
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(f"--ray {address}: no cluster answers there ({error}); start it with ray start") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
