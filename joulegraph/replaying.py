"""From the flags of `joulegraph replay` to a run: trace, target, arrivals, engine; everything that can be wrong is
found before anything is created or started. May not know: how a run goes on, how figures are derived.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engines.embedded.tokenizer import template_tokens
from joulegraph.engines import embedded_options
from joulegraph.load import LoadJob
from joulegraph.replay_checks import check_options
from joulegraph.targets import ask, ask_parrot
from loadgen.arrivals import Arrivals, with_process
from loadgen.dryrun import dry_run
from loadgen.options import ReplayOptions
from loadgen.part import Opened, opened
from loadgen.prompts import VOCAB
from loadgen.target import Target, Tls, split_url
from loadgen.totals import Bounds
from traces.check import check
from traces.errors import UserError
from traces.faults import Faults
from traces.importers import as_trace

YEAR_S = 365 * 86_400
_S = 1_000_000_000


def arrivals_of(args: argparse.Namespace) -> Arrivals:
    """What to do with the trace's arrivals. UserError for figures that make no sense."""
    base = Arrivals(
        speed=args.speed,
        from_s=args.from_s,
        until_s=args.until_s,
        limit=args.limit,
        dither=not args.no_dither,
        idle_cap_s=args.idle_cap,
        absolute=args.fixed,
        seed=args.seed,
    )
    return with_process(args.arrivals, base)


def options_of(args: argparse.Namespace) -> ReplayOptions:
    """How requests are made. The embedded engine always answers in the end: its default allowance is a year."""
    check_options(args)
    return ReplayOptions(
        salt=str(args.seed) if args.embedded else f"{args.seed}-{os.urandom(4).hex()}",
        outputs=args.outputs,
        timeout_ns=round((args.timeout or (YEAR_S if args.embedded else 600)) * _S),
        drain_ns=round(args.drain * _S),
        prewarm=args.prewarm,
        bounds=Bounds(lateness_p99_ns=round(args.max_lateness * 1e6), merged_share=args.max_merged),
        closed_loop_users=args.users,
        closed_loop_think_ns=round(args.think * _S),
        cancel_share=args.cancel,
        cancel_after_ns=round(args.cancel_after * _S),
        retries=args.retries,
    )


def _check_trace(args: argparse.Namespace, trace: Path, arrivals: Arrivals) -> Opened:
    """The trace with what is at fault left out, or refused (--strict). UserError where nothing is left to play."""
    if args.strict:
        report = check(trace, bound=1)
        if report.found:
            raise UserError(
                f"{report.problems[0]} (--strict: {report.found} in all; joulegraph trace check shows them)"
            )
    found, faults = opened(trace, arrivals), Faults()
    if next(found.file.rows(faults), None) is None:
        raise UserError(faults.first[0] if faults.count else f"{trace}: holds no rows; give a trace with some")
    if not args.from_s and args.until_s is None:
        return found
    if next(iter(found.workflows), None) is None:
        until = "the end" if args.until_s is None else f"{args.until_s:g} s"
        raise UserError(
            f"--from {args.from_s:g}, --until: no workflow arrives from {args.from_s:g} s to {until}; widen the window"
        )
    return opened(trace, arrivals)


def target_of(args: argparse.Namespace) -> Target:
    """The engine to load. UserError when nothing answers at --target."""
    if args.api == "parrot":
        return _parrot(args)
    vocab = vocab_of(args.vocab)
    if not args.target:
        return Target("127.0.0.1", 0, model=args.model or "default", api=args.api, prompts=args.prompts, vocab=vocab)
    key = os.environ.get(args.api_key_env) if args.api_key_env else None
    if args.api_key_env and not key:
        raise UserError(f"--api-key-env {args.api_key_env}: this environment variable is empty; set it to the key")
    if args.engine_steps and not args.engine_steps.is_file():
        raise UserError(
            f"--engine-steps {args.engine_steps}: no such file; give the FILE of joulegraph engine vllm --steps FILE"
        )
    host, port, base, secure = split_url(args.target)
    tls = Tls(ca_file=args.ca_file, verify=not args.insecure) if secure else None
    server = ask(args.target, api_key=key, tls=None if tls is None else tls.context())
    return Target(
        host,
        port,
        model=args.model or server.models[0],
        api=args.api,
        base=base,
        exact=server.exact_lengths,
        prompts=args.prompts,
        vocab=vocab,
        api_key=key,
        ssl=tls,
    )


def vocab_of(text: str | None) -> tuple[int, int]:
    """`1000:31000` -> (1000, 31000). UserError with the remedy."""
    if text is None:
        return VOCAB
    low, _, high = text.partition(":")
    if not (low.isdigit() and high.isdigit() and int(low) < int(high)):
        raise UserError(f"--vocab {text}: give the lowest token id and one past the highest, like 1000:31000")
    return int(low), int(high)


def calibrated(args: argparse.Namespace, target: Target, api: str) -> tuple[Target, str | None]:
    """The target with what it adds to word prompts, and the sentence for run.json; as it was without --calibrate."""
    if not args.calibrate:
        return target, None
    if not args.target or api == "parrot":
        raise UserError("--calibrate: asks a running OpenAI-style server; give --target URL")
    if api == "completions" and args.prompts == "ids":
        raise UserError("--calibrate: id prompts are exact as they are; add --prompts words, or leave it out")
    import asyncio
    import time

    from loadgen.calibrate import calibrate

    async def go() -> tuple[Target, str]:
        connect: Any = asyncio.get_running_loop().create_connection
        found = await calibrate(target, api, now_ns=time.monotonic_ns, connect=connect)
        return found.applied(target), found.sentence

    return asyncio.run(go())


def templated(target: Target, api: str) -> Target:
    """The embedded engine as target: what its chat template adds is known."""
    if api in ("completions", "parrot"):
        return target
    one, further = template_tokens()
    return replace(target, overhead_tokens=one, turn_tokens=further)


def _parrot(args: argparse.Namespace) -> Target:
    """A Parrot: it lists no models. Words count as tokens where that is sure: embedded, or said so: --prompts words."""
    if not args.target:
        if args.real_time or args.shards > 1:
            raise UserError("--api parrot: with --embedded it runs in virtual time; leave out --real-time and --shards")
        model = args.model or "default"
        return Target("127.0.0.1", 0, model=model, api="parrot", prompts="words", criteria=args.criteria)
    host, port, base, secure = split_url(args.target)
    tls = Tls(ca_file=args.ca_file, verify=not args.insecure) if secure else None
    ask_parrot(args.target, tls=None if tls is None else tls.context())
    words = args.prompts == "words"
    model = args.model or "parrot"
    return Target(
        host, port, model=model, api="parrot", base=base, exact=words, ssl=tls, criteria=args.criteria
    )  # fmt: skip


def serving_of(args: argparse.Namespace) -> Any:
    """How the embedded Parrot serves, or None where there is none. UserError for flags it does not have."""
    if not args.embedded or args.api != "parrot":
        return None
    from engines.parrot.scheduler import Scheduling
    from engines.parrot.state import ServeOptions

    known = ("app_fifo", "graph_group", "ctx_group", "ctx_aware")
    flags = [flag for flag in args.scheduling.split(",") if flag]
    for flag in flags:
        if flag not in known:
            raise UserError(f"--scheduling {flag}: unknown; choose of {', '.join(known)}")
    if args.tasks_capacity < 1 or args.chunk_ms < 0 or args.engines < 1:
        raise UserError("--tasks-capacity, --engines: at least 1; --chunk-ms: at least 0")
    rules = Scheduling(**dict.fromkeys(flags, True))
    chunk_ns = round(args.chunk_ms * 1e6)
    return ServeOptions(rules, tasks_capacity=args.tasks_capacity, chunk_ns=chunk_ns)


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """The trace itself, or what it was imported to: run directories and other known formats are taken as they are."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="joulegraph-"))
        yield as_trace(path, Path(folder))[0]


def job_of(args: argparse.Namespace, trace: Path, run: Path) -> LoadJob:
    """The load job of a run. Opens the trace's head, so that a file that is none is refused here."""
    arrivals, options = arrivals_of(args), options_of(args)
    found = _check_trace(args, trace, arrivals)
    serving_of(args)
    if args.bridge is not None and not (args.api == "parrot" and args.target and args.bridge.is_file()):
        raise UserError(
            f"--bridge {args.bridge}: needs --api parrot --target URL and the journal that `joulegraph bridge parrot "
            "--record` writes from its start on; start the bridge first"
        )
    if args.ray and not args.target:
        raise UserError("--ray: places load and samplers around a running engine; give --target URL")
    target = target_of(args)
    calibration = None
    if args.calibrate or args.embedded:
        first = next(iter(found.workflows), None)
        api = target.api or (first.nodes[0].api if first is not None else "completions")
        target, calibration = calibrated(args, target, api) if args.calibrate else (templated(target, api), None)
    return LoadJob(
        run=run,
        trace=trace,
        target=target,
        arrivals=arrivals,
        options=options,
        shards=args.shards,
        ray=args.ray,
        calibration=calibration,
    )


def engine_of(args: argparse.Namespace) -> Any:
    """Options of the embedded engine, or None for --target."""
    if not args.embedded:
        return None
    return embedded_options(
        args.embedded,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        power_cap_w=args.power_cap,
        prefix_caching=not args.no_prefix_caching,
        seed=args.seed,
        replicas=args.engines if args.api == "parrot" else 1,
        real_time=args.real_time,
    )


def schedule_of(args: argparse.Namespace, trace: Path) -> dict[str, Any]:
    """--dry-run: the schedule, nothing is sent. Durations are the recorded ones, else 0 (`assumed` counts those)."""
    if args.users is not None:
        raise UserError("--dry-run: users in a closed loop have no schedule beforehand; leave out --users")
    todo = _check_trace(args, trace, arrivals_of(args))
    schedule = dry_run(todo.workflows).as_json()
    out = todo.faults.as_json()
    return {"trace": args.trace.name, "transforms": list(todo.manifest.transforms), "left_out": out, **schedule}
