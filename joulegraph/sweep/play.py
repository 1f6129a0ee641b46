"""One point of a sweep as a run: in virtual time in this process, in real time in a process and session of its own.

Its own session, because the first Ctrl-C must let the point finish, and a terminal sends it to a whole session.
May not know: other points, their order, figures over repeats.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from joulegraph.engines import embedded_options
from joulegraph.load import LoadJob
from joulegraph.sweep.config import TRUTH, VIRTUAL, Point
from loadgen.replay import ReplayOptions
from loadgen.target import Target
from traces.child import on_lifeline_end, spawn
from traces.errors import UserError
from traces.rundir import RunDir

YEAR_S = 365 * 86_400
RAMP_NS = 20_000_000
"""between the starts of users in real time"""
NO_WORD = "the process of this point ended without a word"


@dataclass(frozen=True, slots=True)
class Task:
    """Everything one run needs; picklable."""

    point: Point
    repeat: int
    run: Path
    trace: Path
    salt: str
    """new for every run, so that no run finds the cached prefixes of another"""
    seed: int
    url: str | None = None
    """of an engine that runs already"""
    engine: dict[str, Any] | None = None
    """what run.json says of an engine that runs already"""
    steps: Path | None = None
    """the iteration stream of a launched engine, of which the run takes its part"""
    sources: tuple[str, ...] = ()
    idle_s: float = 3.0
    timeout_s: float = 600.0
    policy: str = "fitted"
    prompts: str = "ids"
    limit: int | None = None
    """workflows, for a warm-up"""
    quiet: bool = True


def play(task: Task, asked: Callable[[], int] = lambda: 0) -> None:
    """Run to the end and derive the run's figures. UserError says why it could not. asked: Ctrl-C so far."""
    if task.point.kind in VIRTUAL:
        play_virtual(task)
    else:
        _in_own_session(task, asked)


def play_virtual(task: Task) -> None:
    """The embedded engine, alone or under an embedded Parrot, in virtual time, in this process."""
    from joulegraph.virtualtime import VirtualRun, run_in_virtual_time

    point = task.point
    if point.kind == "parrot":
        target = Target("127.0.0.1", 0, api="parrot", prompts="words")
    else:
        target = Target("127.0.0.1", 0, prompts=_prompts(task))
    run = _directory(task)
    plan = VirtualRun(
        _job(task, target, YEAR_S),
        _embedded(task, real_time=False),
        through_proxy=point.proxy_limit is not None,
        max_concurrency=point.proxy_limit,
        parrot=_serve_layer(point),
    )
    run_in_virtual_time(run, plan)
    _complete(run, task)


def play_real(task: Task) -> None:
    """The embedded engine in real time, or an engine that runs at task.url, with knobs turned while it lasts."""
    from energy.knobs import turned
    from joulegraph.join.steps import mark, take
    from joulegraph.join.watch import watching
    from joulegraph.proof import proofs
    from joulegraph.realtime import RealRun, run_real

    point = task.point
    engine = _embedded(task, real_time=True) if point.kind == "embedded-real" else None
    target = _target(task) if engine is None else Target("127.0.0.1", 0, prompts=_prompts(task))
    cap = point.power_cap_w if engine is None else None
    url = None if engine is not None else task.url or point.engine_argument
    run = _directory(task)
    with turned(power_cap_w=cap, sm_clock_mhz=point.sm_clock_mhz) as knobs:
        if knobs.skipped is not None:
            why = knobs.skipped.sentence()
            run.update_info(state="invalid", why=why)
            raise UserError(f"the knob was not turned: {why}")
        run.update_info(knobs=[{"knob": t.knob, "wanted": t.wanted, "enforced": t.enforced} for t in knobs.turns])
        plan = RealRun(
            _job(task, target, task.timeout_s),
            engine,
            task.sources,
            through_proxy=True,
            max_concurrency=point.proxy_limit,
            idle_s=task.idle_s,
            quiet=task.quiet,
            title=f"sweep {task.run.name}",
        )
        marked = mark(task.steps) if task.steps is not None else 0
        run.update_info(engine=task.engine)
        with watching(run, url) as watch:
            run_real(run, plan)
        run.update_info(joined=watch.facts(), knobs=proofs(run, knobs.turns))
        if task.steps is not None:
            take(run, task.steps, marked)
    if task.limit is None:
        _complete(run, task)


def point_process(lifeline: Connection, task: Task) -> None:
    """Target of traces.child.spawn: one real-time point. Sends None when done, or the sentence that says why not."""
    with suppress(OSError):
        os.setsid()
    on_lifeline_end(lifeline, _leave)
    said: str | None = None
    try:
        play_real(task)
    except UserError as error:
        said = str(error)
    except KeyboardInterrupt:
        said = "interrupted"
    with suppress(OSError):
        lifeline.send(said)


def _leave() -> None:
    """The parent is gone: drain, and a moment later leave."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _in_own_session(task: Task, asked: Callable[[], int]) -> None:
    child = spawn(point_process, task, name=f"point {task.run.name}")
    told = 1
    try:
        while not child.lifeline.poll(0.2):
            while told < asked():  # the first Ctrl-C lets the point finish, each further one is passed on
                told += 1
                with suppress(ProcessLookupError):
                    os.kill(child.process.pid or 0, signal.SIGINT)
        said = child.lifeline.recv()
    except EOFError:
        code = child.process.exitcode
        raise UserError(f"{NO_WORD} (exit code {code}); look at its lines above") from None
    finally:
        child.stop(30.0)
    if said is not None:
        raise UserError(str(said))


def _directory(task: Task) -> RunDir:
    run = RunDir.create(task.run)
    run.update_info(command="sweep", config={"point": task.point.factors(), "repeat": task.repeat, "salt": task.salt})
    return run


def _complete(run: RunDir, task: Task) -> None:
    if run.info["state"] in ("complete", "invalid") and run.info["load"]["requests"]:
        finish(run, task.policy)


def finish(run: RunDir, policy: str) -> None:
    """Figures of a run that ended whole."""
    if policy == TRUTH:
        from joulegraph.sweep.truth import complete_from_truth

        complete_from_truth(run)
        return
    from joulegraph.finish import complete

    complete(run, policy=policy, report=False)


def _job(task: Task, target: Target, timeout_s: float) -> LoadJob:
    from loadgen.arrivals import Arrivals

    options = ReplayOptions(
        salt=task.salt,
        timeout_ns=round(timeout_s * 1e9),
        closed_loop_users=task.point.users,
        closed_loop_ramp_ns=0 if task.point.kind in VIRTUAL else RAMP_NS,
    )
    point = task.point
    retimed: dict[str, Any] = {}
    if point.trace is not None and point.rate is not None:
        retimed = {"process": "poisson", "rate_per_s": point.rate}
    limit = task.limit if task.limit is not None else (point.count if point.trace is not None else None)
    arrivals = Arrivals(limit=limit, seed=task.seed, **retimed)
    return LoadJob(run=task.run, trace=task.trace, target=target, arrivals=arrivals, options=options)


def _embedded(task: Task, *, real_time: bool) -> Any:
    point = task.point
    return embedded_options(
        point.engine_argument,
        max_num_seqs=point.max_batch_size if point.kind == "parrot" else point.max_num_seqs,
        max_num_batched_tokens=point.max_num_batched_tokens,
        max_model_len=point.max_model_len,
        power_cap_w=point.power_cap_w,
        prefix_caching=point.prefix_caching is not False,
        seed=task.seed,
        real_time=real_time,
    )


def _serve_layer(point: Point) -> Any:
    """Options of the embedded Parrot; None: its own defaults."""
    from engines.parrot.state import ServeOptions

    return None if point.tasks_capacity is None else ServeOptions(tasks_capacity=point.tasks_capacity)


def _prompts(task: Task) -> Any:
    return "words" if task.prompts == "words" else "ids"


def _target(task: Task) -> Target:
    from joulegraph.targets import ask
    from loadgen.target import Tls, split_url

    url = task.url or task.point.engine_argument
    server = ask(url)
    host, port, base, secure = split_url(url)
    return Target(
        host,
        port,
        model=(task.point.model if task.point.kind == "attach" else None) or server.models[0],
        base=base,
        exact=server.exact_lengths,
        prompts=_prompts(task),
        ssl=Tls() if secure else None,
    )
