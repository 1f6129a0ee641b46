"""One run in real time: engine (or a target that already runs), sampler, proxy, load, live view.

First Ctrl-C drains and saves, the second leaves; whatever happens, journals are closed and run.json says how it ended.
May not know: where the trace came from, how figures are derived (joulegraph.finish).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from energy.knobs import restore_left_behind
from energy.procs import listener
from engines.embedded.server import EngineOptions
from joulegraph.engines import config_in, model_of
from joulegraph.host import anchor, describe, versions
from joulegraph.interrupts import Interrupts, told_to
from joulegraph.load import LoadJob, disclosed, summary
from joulegraph.parts import Parts, own_path, pause, tell_roles
from loadgen.target import Target, split_url
from loadgen.totals import ReplayTotals
from traces.errors import UserError
from traces.rundir import RunDir
from traces.status import StatusReader

GONE_S = 3.0
DRAINING = "draining: requests in flight may finish; Ctrl-C again leaves at once"
LEFT = "left by a second Ctrl-C; what was recorded until then is kept"


@dataclass(frozen=True, slots=True)
class RealRun:
    """What to run. engine: options of the embedded engine, or None where `job.target` already runs."""

    job: LoadJob
    engine: EngineOptions | None
    sources: tuple[str, ...]
    through_proxy: bool = True
    max_concurrency: int | None = None
    """of the proxy: the run-time batch-size knob; its queueing is recorded per request"""
    idle_s: float = 2.0
    """measured before the load with the engine loaded and nothing to do: the idle baseline"""
    tail_s: float = 1.5
    quiet: bool = False
    title: str = "joulegraph"


def run_real(run: RunDir, plan: RealRun) -> None:
    """Run to the end; run.json says complete, invalid or interrupted. UserError when a part cannot start or dies."""
    started = time.monotonic()
    if restored := restore_left_behind():
        run.update_info(knobs_restored=restored)
        sys.stderr.write("".join(f"left by a run that was killed: {one}\n" for one in restored))
    parts = Parts(run)
    run.update_info(host=describe(), versions=versions(), clock={"start": anchor()})
    state: str = "interrupted"
    why: str | None = "stopped before its end"
    try:
        with told_to(Interrupts()) as asked:
            outcome = _play(run, plan, parts, asked)
            run.update_info(**outcome)
            state, why = verdict(outcome["load"], asked.count > 0)
    except UserError as error:
        why = str(error)
        if parts.shards is None or "joulegraph finish" in why:
            raise
        raise UserError(f"{why}; joulegraph finish {run.path} completes the run") from error
    except KeyboardInterrupt:
        why = LEFT
        raise KeyboardInterrupt(left(run)) from None
    finally:
        parts.stop()
        run.update_info(
            state=state,
            why=why,
            clock={**run.info["clock"], "end": anchor()},
            wall_s=round(time.monotonic() - started, 3),
        )


def left(run: RunDir) -> str:
    """What a user who left at once is told."""
    return f"{LEFT}, joulegraph finish {run.path} completes it"


def verdict(load: dict[str, Any], interrupted: bool) -> tuple[str, str | None]:
    """Exit state of a run from the generator's totals."""
    if interrupted or load["stopped"]:
        return "interrupted", "stopped by Ctrl-C; requests in flight were finished, the rest was not sent"
    if load["requests"] == 0:
        return "invalid", "no request was sent: an empty run is an error"
    if load["errors"] == load["requests"]:
        return "invalid", "every request failed"
    if load["rejected"] == load["requests"]:
        return "invalid", "the engine rejected every request (too long, unknown model ...): nothing was served"
    if load["why"]:
        return "invalid", " ".join(load["why"])
    return "complete", None


def _play(run: RunDir, plan: RealRun, parts: Parts, asked: Interrupts) -> dict[str, Any]:
    target = plan.job.target
    if plan.engine is not None:
        target = replace(_at(target, parts.engine(config_in(run, plan.engine))), model=model_of(plan.engine))
    if plan.job.ray is not None:
        parts.cluster(plan.job, plan.sources)
    else:
        if plan.engine is None:
            tell_roles(run, {listener(target.host, target.port): "engine"})
        tell_roles(run, {os.getpid(): "client"})
        parts.sampler(_sources(run, plan))
    run.update_info(sensors=parts.sensors, missing_sensors=parts.missing)
    engine = target
    if plan.through_proxy:
        parrot = target.api == "parrot"
        target = _at(target, parts.proxy(_url(target), max_concurrency=plan.max_concurrency, parrot=parrot))
    parts.continuous()
    pause(plan.idle_s, lambda: None)
    t0_ns = parts.load(replace(plan.job, target=target))
    totals, trace = _watched(run, plan, parts, asked, engine)
    pause(plan.tail_s, lambda: None)
    parts.bring_home()
    clocks = {"clocks": parts.clocks} if parts.clocks else {}
    return {"load": summary(totals), **disclosed(plan.job, trace), "t0_ns": t0_ns, **clocks}


def _sources(run: RunDir, plan: RealRun) -> tuple[str, ...]:
    """The embedded engine's simulated sensors; else what was asked for and CPU times, by which CPU joules are split
    (simulated joules follow no real process)."""
    if plan.engine is not None:
        return (f"simulated:{own_path(run, 'engine')}",)
    beside = (f"proc:{run.file('run.json')}",) if plan.sources else ()
    return (*plan.sources, *beside)


class Heartbeat:
    """Notices a target that is gone: requests fail and nothing accepts connections there for GONE_S seconds."""

    def __init__(self, target: Target, run: RunDir) -> None:
        self._target, self._run = target, run
        self._pages = [StatusReader(path) for path in sorted(run.path.glob("status.loadgen.*"))]
        self._look_s = 0.0
        self._gone_s: float | None = None

    def check(self, now_s: float) -> None:
        """Look once a second, only once requests have failed. UserError when the target is gone."""
        if now_s < self._look_s or not any(page.get("requests_failed") for page in self._pages):
            return
        self._look_s = now_s + 1.0
        try:
            socket.create_connection((self._target.host, self._target.port), timeout=0.5).close()
        except OSError as error:
            self._gone_s = self._gone_s or now_s
            if now_s - self._gone_s >= GONE_S:
                raise UserError(
                    f"{_url(self._target)} stopped answering during the run ({error}); what was recorded is kept, "
                    f"joulegraph finish {self._run.path} completes it"
                ) from error
        else:
            self._gone_s = None


def _watched(
    run: RunDir, plan: RealRun, parts: Parts, asked: Interrupts, engine: Target
) -> tuple[ReplayTotals, dict[str, Any]]:
    from joulegraph.continuous import class_joules
    from joulegraph.live.view import LiveView
    from joulegraph.live.watch import Watch

    with LiveView(Watch.of_run(run.path, title=plan.title), quiet=plan.quiet) as view:
        heartbeat = Heartbeat(engine, run)

        def each() -> None:
            heartbeat.check(time.monotonic())
            view.update(time.monotonic_ns(), class_joules(run))
            if asked.count and not asked.drained:
                asked.drained = True
                view.note = DRAINING
                parts.drain()

        outcome = parts.wait_load(each)
        view.update(time.monotonic_ns(), class_joules(run), last=True)
    return outcome


def _at(target: Target, url: str) -> Target:
    host, port, base, _ = split_url(url)
    return replace(target, host=host, port=port, base=base, ssl=None)


def _url(target: Target) -> str:
    return f"{'https' if target.ssl else 'http'}://{target.authority}{target.base}"
