"""The worker processes of `joulegraph proxy`: one port shared, one limit split, told together.

May not know: the control port, the sampler, when to leave.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from joulegraph.parts import ready
from proxy.config import ProxyConfig
from proxy.process import ProcessConfig, proxy_process
from traces.child import Child, spawn
from traces.errors import UserError
from traces.rundir import RunDir
from traces.status import StatusReader

CUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ProxyPlan:
    """What the command line asked for."""

    proxy: ProxyConfig
    host: str
    port: int
    control_port: int
    workers: int
    record: Path
    drain_s: float
    sample: bool
    sources: tuple[str, ...]
    say: Callable[[dict[str, Any]], None]
    """told once, when everything listens"""


def split_limit(limit: int | None, workers: int) -> list[int | None]:
    """A limit over workers: whole shares that add up to it. UserError when some worker would get none."""
    if limit is None:
        return [None] * workers
    if limit < workers:
        raise UserError(
            f"a concurrency limit of {limit} cannot be split over {workers} workers; give at least {workers}"
        )
    return [limit // workers + (k < limit % workers) for k in range(workers)]


class Workers:
    """The worker processes, sharing one port."""

    def __init__(self, plan: ProxyPlan, run: RunDir) -> None:
        self._plan = plan
        self._run = run
        self.children: list[Child] = []
        self.port = plan.port

    def start(self) -> None:
        """Start all; the first one finds the port where none was given. UserError with the worker's own sentence."""
        plan = self._plan
        for k, share in enumerate(split_limit(plan.proxy.max_concurrency, plan.workers)):
            config = ProcessConfig(
                replace(plan.proxy, max_concurrency=share),
                plan.host,
                self.port,
                self._run.path,
                status=self.page(k),
                worker=k,
                reuse_port=plan.workers > 1,
                drain_s=plan.drain_s,
            )
            child = spawn(proxy_process, config, name=f"proxy-{k}")
            self.children.append(child)
            self.port = ready(child, f"proxy worker {k}")["port"]

    def page(self, k: int) -> Path:
        """The status page of one worker."""
        return self._run.file(f"status.proxy.{k}" if self._plan.workers > 1 else "status.proxy")

    def pages(self) -> list[StatusReader]:
        """All workers' status pages."""
        return [StatusReader(self.page(k)) for k in range(len(self.children))]

    def alive(self) -> bool:
        """Whether every worker runs."""
        return all(child.process.is_alive() for child in self.children)

    def set_limit(self, limit: int | None) -> None:
        """Split a new limit over the workers."""
        for child, share in zip(self.children, split_limit(limit, len(self.children)), strict=True):
            child.lifeline.send({"limit": share})

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        for child in self.children:
            if child.process.pid is not None and child.process.is_alive():
                os.kill(child.process.pid, number)

    def cut(self) -> None:
        """Have them end now: what still runs is recorded as cancelled, and the journals are closed."""
        self.signal(signal.SIGUSR1)
        for child in self.children:
            child.stop(CUT_S)

    def stop(self, timeout_s: float) -> None:
        """Drain all at once, then wait for each."""
        self.signal(signal.SIGTERM)
        for child in self.children:
            child.stop(timeout_s)
