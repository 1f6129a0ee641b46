"""A replay that is set up is run: in virtual or in real time, with the knobs turned and what a real engine says of
itself taken along. May not know: how flags become a job (joulegraph.replaying), how figures are derived.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from joulegraph.load import LoadJob
from joulegraph.replaying import serving_of
from traces.errors import UserError
from traces.rundir import RunDir


def play(args: argparse.Namespace, run: RunDir, job: LoadJob, engine: Any) -> None:
    """Run it, in virtual or in real time, with the power knobs turned where that was asked of a real engine."""
    through_proxy = args.proxy or args.max_concurrency is not None
    if engine is not None and not args.real_time:
        from joulegraph.interrupts import Interrupts, told_to
        from joulegraph.progress import Progress
        from joulegraph.realtime import DRAINING
        from joulegraph.virtualtime import VirtualRun, run_in_virtual_time

        with told_to(Interrupts()) as asked, Progress(run.path.name, quiet=args.json) as progress:

            def stopped() -> bool:
                if asked.count and not asked.drained:
                    asked.drained = True
                    progress.say(DRAINING)
                return asked.drained

            plan = VirtualRun(
                job,
                engine,
                through_proxy=through_proxy,
                max_concurrency=args.max_concurrency,
                parrot=serving_of(args),
                each=progress.show,
                stopped=stopped,
            )
            run_in_virtual_time(run, plan)
        return
    from joulegraph.realtime import RealRun, run_real

    plan_real = RealRun(
        job,
        engine,
        () if engine is not None else tuple(s for s in args.sources.split(",") if s and s != "none"),
        through_proxy=through_proxy,
        max_concurrency=args.max_concurrency,
        title=f"replay {args.trace.name}",
    )
    with _knobs(args, run), _joined(args, run):
        run_real(run, plan_real)


@contextmanager
def _joined(args: argparse.Namespace, run: RunDir) -> Iterator[None]:
    """What a real engine says of itself, into the run: /metrics at 4 Hz, OTLP spans, its iteration stream."""
    if not args.target:
        yield
        return
    from joulegraph.join.engine import told_by
    from joulegraph.join.steps import mark, take
    from joulegraph.join.watch import watching

    start = mark(args.engine_steps) if args.engine_steps else 0
    calls = mark(args.bridge) if args.bridge else 0
    plain = args.target if not args.target.startswith("https:") else None
    run.update_info(engine=told_by(plain))
    with watching(run, plain, otlp_port=args.otlp_port) as watch:
        try:
            yield
        finally:
            if args.engine_steps:
                take(run, args.engine_steps, start)
            if args.bridge and not take(run, args.bridge, calls, ("bridge", "parrot")):
                run.update_info(bridge=f"{args.bridge.name}: no call was recorded while the run lasted")
    run.update_info(joined=watch.facts())


@contextmanager
def _knobs(args: argparse.Namespace, run: RunDir) -> Iterator[None]:
    from energy.knobs import restore_left_behind, turned
    from joulegraph.proof import proofs, sentence

    if args.embedded or (args.power_cap is None and args.sm_clock is None):
        yield
        return
    restored = restore_left_behind()
    with turned(power_cap_w=args.power_cap, sm_clock_mhz=args.sm_clock) as got:
        if got.skipped is not None:
            raise UserError(f"--power-cap/--sm-clock: not permitted here: {got.skipped.sentence()}")
        knobs = {"turned": got.turns, "restored_before": restored}
        run.update_info(knobs=knobs)
        yield
        proof = proofs(run, got.turns)
        run.update_info(knobs={**knobs, "proof": proof})
        sys.stderr.write("".join(f"{sentence(one)}\n" for one in proof))
