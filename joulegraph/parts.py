"""The parts of a real-time run as child processes: started one by one, watched, stopped in the right order.

Each child says one message when it is ready, leaves when its lifeline ends, and closes its journals itself.
May not know: what is replayed, what the figures mean.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegraph.load import LoadJob, shard_jobs, write_replayed
from loadgen.shards import Shards
from loadgen.totals import ReplayTotals
from traces.child import Child, spawn
from traces.errors import UserError
from traces.rundir import RunDir

if TYPE_CHECKING:
    from joulegraph.cluster import NodeSamplers
    from loadgen.ray import RayShards

READY_S = 30.0
START_AFTER_NS = 200_000_000


def ready(child: Child, what: str, *, timeout_s: float = READY_S) -> dict[str, Any]:
    """The child's first message. UserError with its own sentence when it could not start."""
    try:
        if not child.lifeline.poll(timeout_s):
            child.stop(1.0)
            raise UserError(f"the {what} did not start within {timeout_s:.0f} s; look at its lines above")
        said = child.lifeline.recv()
    except (EOFError, ConnectionResetError):
        child.stop(1.0)
        raise UserError(f"the {what} ended before it was ready; look at its lines above") from None
    match said:
        case {"error": why} | str(why):
            child.stop(1.0)
            raise UserError(str(why))
        case int(port):
            return {"port": port}
    return dict(said)


@dataclass
class Parts:
    """The running children of one run, by name, in order of start."""

    run: RunDir
    children: dict[str, Child] = field(default_factory=dict)
    sensors: list[Any] = field(default_factory=list)
    missing: list[Any] = field(default_factory=list)
    shards: Shards | RayShards | None = None
    """the load: processes here, or actors on a Ray cluster"""
    node_samplers: NodeSamplers | None = None
    clocks: list[dict[str, Any]] = field(default_factory=list)
    """how the clocks of other nodes stood, once they have ended"""

    def engine(self, config: Any) -> str:
        """Start the embedded engine; its URL."""
        from engines.embedded.process import engine_process

        child = spawn(engine_process, config, name="engine")
        port = ready(child, "embedded engine")["port"]
        self._started("engine", child)
        return f"http://127.0.0.1:{port}"

    def sampler(self, sources: tuple[str, ...]) -> None:
        """Start the sampler on these sources."""
        from energy.sampling import SamplerConfig, start_sampler

        child, found = start_sampler(
            SamplerConfig(
                journal=str(self.run.power_journal()), sources=sources, status=str(self.run.file("status.sampler"))
            )
        )
        self._started("sampler", child)
        self.sensors, self.missing = found.sensors, found.missing

    def proxy(self, upstream: str, *, max_concurrency: int | None = None, parrot: bool = False) -> str:
        """Start one proxy worker in front of an engine (or of a Parrot), letting through at most max_concurrency at
        once; its URL."""
        from proxy.config import ProxyConfig
        from proxy.process import ProcessConfig, proxy_process

        config = ProcessConfig(
            ProxyConfig(
                upstreams=(upstream,),
                run_key=os.urandom(32),
                max_body=1 << 28,
                max_concurrency=max_concurrency,
                engine="parrot" if parrot else "openai",
            ),
            host="127.0.0.1",
            port=0,
            out=self.run.path,
            status=self.run.file("status.proxy"),
        )
        child = spawn(proxy_process, config, name="proxy")
        port = ready(child, "proxy")["port"]
        self._started("proxy", child)
        return f"http://127.0.0.1:{port}"

    def cluster(self, job: LoadJob, sources: tuple[str, ...]) -> None:
        """Take a Ray cluster: shards on its nodes in turn, a sampler on each. UserError when it is not there."""
        from joulegraph.cluster import NodeSamplers
        from loadgen.ray import RayShards

        assert job.ray is not None
        write_replayed(self.run, job)
        self.shards = RayShards(job.ray, shard_jobs(self.run, job))
        if sources:
            self.node_samplers = NodeSamplers(self.shards, sources, self.run)
            self.sensors, self.missing = self.node_samplers.sensors, self.node_samplers.missing

    def bring_home(self) -> None:
        """After the load: rows of other nodes' samplers into the run, and how all their clocks stood."""
        if self.node_samplers is not None:
            self.clocks += self.node_samplers.stop()
        self.clocks += getattr(self.shards, "clocks", [])

    def _started(self, name: str, child: Child) -> None:
        self.children[name] = child
        tell_roles(self.run, {child.process.pid: name})

    def load(self, job: LoadJob) -> int:
        """Start the load; the instant of trace time 0. Returns once its status pages stand."""
        if self.shards is None:
            self.shards = Shards(shard_jobs(self.run, job))
        self.shards.ready()
        t0_ns = time.monotonic_ns() + START_AFTER_NS
        self.shards.go(t0_ns)
        return t0_ns

    def continuous(self) -> None:
        """Start attribution of what has been recorded so far, once a second."""
        from joulegraph.continuous import continuous_process

        child = spawn(continuous_process, self.run.path, name="continuous")
        ready(child, "continuous attribution")
        self.children["continuous"] = child

    def wait_load(self, each: Callable[[], None], *, every_s: float = 0.1) -> tuple[ReplayTotals, dict[str, Any]]:
        """Call `each` until the load is done; its totals and what became of the trace. UserError when a part dies."""
        assert self.shards is not None
        while (done := self.shards.poll(every_s)) is None:
            each()
            self.check()
        return done

    def drain(self) -> None:
        """Ask the load to send nothing more."""
        if self.shards is not None:
            self.shards.drain()

    def check(self) -> None:
        """UserError when a part has died; without continuous attribution only the joules so far stand still."""
        for name, child in self.children.items():
            if name != "continuous" and not child.process.is_alive():
                raise UserError(
                    f"the {name} died during the run (exit code {child.process.exitcode}); what was recorded is kept, "
                    f"joulegraph finish {self.run.path} completes it"
                )

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop every child: load and proxy first, then the sampler, the engine last."""
        try:
            if self.node_samplers is not None:
                self.node_samplers.stop()
        finally:
            if self.shards is not None:
                self.shards.stop()
        order = sorted(self.children, key=["continuous", "proxy", "sampler", "engine"].index)
        for name in order:
            self.children.pop(name).stop(timeout_s)


def tell_roles(run: RunDir, roles: dict[int | None, str]) -> None:
    """Add to run.json which processes do what; the sampler and attribution read it there."""
    told = {str(pid): role for pid, role in roles.items() if pid is not None}
    run.update_info(processes={**run.info.get("processes", {}), **told})


def pause(seconds: float, each: Callable[[], None], *, every_s: float = 0.1) -> None:
    """Wait in real time, calling `each` now and then."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(every_s, left))
        each()


def own_path(run: RunDir, name: str) -> Path:
    """Path of a status page of this run."""
    return run.file(f"status.{name}")
