"""One run on the embedded engine in virtual time: everything in one loop, inline journals, the same figures every time.

The pieces are those of real time (engine server, optional proxy, load generator, sampler); only clock and connections
differ. May not know: where the trace came from, how figures are derived (joulegraph.finish).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from energy.sampler import Sampler
from energy.simulated import simulated_sources
from energy.source import Source
from engines.embedded.server import EngineOptions, status_names
from engines.embedded.server import start as start_engine
from engines.parrot.state import ServeOptions
from joulegraph.engines import model_of
from joulegraph.host import describe, versions
from joulegraph.load import LoadJob, play_here
from joulegraph.realtime import LEFT, left, verdict
from joulegraph.virtual import VirtualLoop, run_virtual
from loadgen.part import Seams
from loadgen.tally import slot_names as load_slots
from traces.journal import JournalWriter
from traces.rundir import RunDir
from traces.status import StatusPage, StatusReader

SECOND_NS = 1_000_000_000
GC_THRESHOLD = 50_000
WALL_AT_START_NS = 1_700_000_000 * SECOND_NS
"""The virtual wall clock: fixed, so that the same run gives the same bytes."""
FLUSH_NS = 10 * SECOND_NS
POLL_NS = 50_000_000
"""Two reads per update of the simulated GPU counter: a virtual hour is sampled without a jitter to guard against."""
Each = Callable[[int, StatusPage], None]


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """What to run. each: called about every `each_ns` of virtual time with (now_ns, load page), for progress."""

    job: LoadJob
    engine: EngineOptions
    through_proxy: bool = False
    parrot: ServeOptions | None = None
    """of the embedded Parrot above the engine, where the job's target speaks to one (default: its own)"""
    max_concurrency: int | None = None
    """of the proxy, as in RealRun"""
    idle_s: float = 10.0
    tail_s: float = 5.0
    each: Each | None = None
    each_ns: int = SECOND_NS
    stopped: Callable[[], bool] = lambda: False
    """asked as often as `each`: once True, nothing more is sent, and the run ends with its last reply"""


def run_in_virtual_time(run: RunDir, plan: VirtualRun) -> None:
    """Run to the end and leave run.json complete, invalid or interrupted. A KeyboardInterrupt leaves it interrupted
    with what was recorded."""
    started = time.monotonic()
    run.update_info(host=describe(), versions=versions(), time="virtual")
    state: str = "interrupted"
    why: str | None = "stopped before its end"
    threshold = gc.get_threshold()
    gc.set_threshold(GC_THRESHOLD, 50, 100)
    try:
        outcome = run_virtual(lambda loop: _Session(loop, run, plan).play())
        run.update_info(**outcome)
        state, why = verdict(outcome["load"], plan.stopped())
    except KeyboardInterrupt:
        why = LEFT
        raise KeyboardInterrupt(left(run)) from None
    finally:
        gc.set_threshold(*threshold)
        run.update_info(state=state, why=why, wall_s=round(time.monotonic() - started, 3))


def _serve_layer(engine: Any) -> dict[str, Any]:
    """For run.json: how full a Parrot's engines were, and what kept them from being fuller."""
    from engines.parrot.protocol import LATENCY_TASKS
    from engines.parrot.server import RunningParrot

    if not isinstance(engine, RunningParrot):
        return {}
    core = engine.core
    capacity = core.options.tasks_capacity
    return {"parrot": {"latency_cap": LATENCY_TASKS, "tasks_capacity": capacity, "tasks_peak": max(core.runner.peak)}}


class _Session:
    """The parts of one virtual run and their journals."""

    def __init__(self, loop: VirtualLoop, run: RunDir, plan: VirtualRun) -> None:
        self.loop, self.run, self.plan = loop, run, plan
        self.start_ns = loop.now_ns()
        self.stop = asyncio.Event()
        self.writers: list[JournalWriter] = []

    def writer(self, name: str, who: str | None = None) -> JournalWriter:
        """One inline journal."""
        writer = self.run.writer(name, who, mono_ns=self.start_ns, wall_ns=WALL_AT_START_NS)
        self.writers.append(writer)
        return writer

    async def play(self) -> dict[str, Any]:
        try:
            return await self._play()
        finally:
            for writer in self.writers:
                writer.close()

    async def _play(self) -> dict[str, Any]:
        loop, plan = self.loop, self.plan
        page = StatusPage(status_names(plan.engine))
        engine = await self._start(
            plan.engine,
            host="127.0.0.1",
            port=0,
            now_ns=loop.now_ns,
            sleep_until=loop.sleep_until,
            serve=loop.serve,
            truth=self.writer("truth"),
            steps=self.writer("engine"),
            status=page,
        )
        sources = simulated_sources(StatusReader(page), POLL_NS)
        self.run.update_info(sensors=[info for source in sources for info in source.infos])
        sampler = self._sampler(sources)
        load_page = StatusPage(load_slots())
        helpers = [loop.create_task(self._sample(sampler)), loop.create_task(self._tick(load_page))]
        port, close_proxy = engine.port, None
        if plan.through_proxy:
            port, close_proxy = await self._proxy(engine.port)
        try:
            job = replace(
                plan.job, target=replace(plan.job.target, host="127.0.0.1", port=port, model=model_of(plan.engine))
            )
            t0_ns = self.start_ns + round(plan.idle_s * SECOND_NS)
            dispatch = self.writer("dispatch", "0")
            await loop.sleep_until(t0_ns - SECOND_NS)
            seams = Seams(loop.now_ns, loop.sleep_until, loop.connect, dispatch.write, load_page, self.stop)
            outcome = await play_here(self.run, job, t0_ns, seams)
            await loop.sleep_until(loop.now_ns() + round(plan.tail_s * SECOND_NS))
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            sampler.stop(loop.now_ns())
            if close_proxy is not None:
                await close_proxy()
            await engine.close()
        return {**outcome, **_serve_layer(engine)}

    async def _start(self, options: EngineOptions, **seams: Any) -> Any:
        """The engine alone, or under the embedded Parrot's serve layer where the job speaks to one."""
        if self.plan.job.target.api != "parrot":
            return await start_engine(options, **seams)
        from engines.parrot.server import ParrotOptions
        from engines.parrot.server import start as start_parrot

        above = ParrotOptions(options, self.plan.parrot or ParrotOptions().serve)
        return await start_parrot(above, calls=self.writer("bridge", "embedded"), **seams)

    def _sampler(self, sources: list[Source]) -> Sampler:
        return Sampler(
            sources,
            self.writer("power", "virtual").write,
            clock=self.loop.now_ns,
            cpu_clock=lambda: 0,
            wall_clock=lambda: WALL_AT_START_NS + self.loop.now_ns() - self.start_ns,
        )

    async def _sample(self, sampler: Sampler) -> None:
        while True:
            await self.loop.sleep_until(sampler.tick(self.loop.now_ns()))

    async def _tick(self, load_page: StatusPage) -> None:
        """Progress and flushes, so that a killed run keeps what it had."""
        flushed_ns = self.loop.now_ns()
        while True:
            now_ns = self.loop.now_ns()
            if self.plan.each is not None:
                self.plan.each(now_ns, load_page)
            if self.plan.stopped():
                self.stop.set()
            if now_ns - flushed_ns >= FLUSH_NS:
                flushed_ns = now_ns
                for writer in self.writers:
                    writer.flush()
            await self.loop.sleep_until(now_ns + self.plan.each_ns)

    async def _proxy(self, port: int) -> tuple[int, Callable[[], Any]]:
        from proxy.config import ProxyConfig
        from proxy.server import start as start_proxy

        running = await start_proxy(
            ProxyConfig(
                upstreams=(f"http://127.0.0.1:{port}",),
                run_key=b"virtual",
                engine="parrot" if self.plan.job.target.api == "parrot" else "openai",
                max_body=1 << 28,
                max_concurrency=self.plan.max_concurrency,
            ),
            host="127.0.0.1",
            port=0,
            now_ns=self.loop.now_ns,
            connect=self.loop.connect,
            serve=self.loop.serve,
            write=self.writer("requests", "0").write,
            status=None,
        )
        return running.port, running.close
