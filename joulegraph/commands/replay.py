"""Replay a workflow trace, open loop: roots at their due instants whatever the engine does, children after their
dependencies plus their own delay. Against --target URL in real time, or --embedded PROFILE in virtual time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

APIS = ("completions", "chat", "responses", "messages")


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags of joulegraph replay."""
    parser.add_argument(
        "trace", type=Path, metavar="TRACE", help="trace file (.jsonl, .jsonl.gz, .parquet) or run directory"
    )
    where = parser.add_argument_group("engine (one of)")
    where.add_argument("--target", metavar="URL", help="an OpenAI-style engine or proxy that already runs")
    where.add_argument(
        "--embedded", metavar="PROFILE", help="the embedded engine: h100-llama8b, a100-llama7b or a file"
    )
    where.add_argument("--real-time", action="store_true", help="run the embedded engine in real time, over sockets")
    where.add_argument("--model", help="model name to ask for (default: the first the target lists)")
    where.add_argument(
        "--api", choices=("completions", "chat", "responses", "messages"), help="dialect for every request"
    )
    where.add_argument(
        "--prompts", choices=("ids", "words"), default="ids", help="form of synthetic prompts (completions)"
    )
    where.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the target's key")
    where.add_argument("--max-num-seqs", type=int, metavar="N", help="embedded engine: most sequences in a batch")
    where.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="embedded engine: most tokens in a step")
    where.add_argument("--max-model-len", type=int, metavar="N", help="embedded engine: context length")
    where.add_argument("--power-cap", type=int, metavar="W", help="embedded engine: GPU power cap")
    where.add_argument("--no-prefix-caching", action="store_true", help="embedded engine: no prefix reuse")
    arrivals = parser.add_argument_group("arrivals")
    arrivals.add_argument("--speed", type=float, default=1.0, help="divide recorded arrival times by this (default 1)")
    arrivals.add_argument("--limit", type=int, metavar="N", help="only the first N workflows")
    arrivals.add_argument(
        "--from", dest="from_s", type=float, default=0.0, metavar="S", help="window start, trace seconds"
    )
    arrivals.add_argument("--until", dest="until_s", type=float, metavar="S", help="window end, trace seconds")
    arrivals.add_argument("--idle-cap", type=float, metavar="S", help="cut gaps without arrivals to S seconds")
    arrivals.add_argument(
        "--arrivals",
        default="recorded",
        metavar="PROCESS",
        help="recorded, constant:RATE, poisson:RATE or gamma:RATE:CV",
    )
    arrivals.add_argument("--no-dither", action="store_true", help="keep quantised arrival stamps as they are")
    arrivals.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    arrivals.add_argument("--live-outputs", action="store_true", help="children get their parents' real answers")
    arrivals.add_argument("--timeout", type=float, metavar="S", help="per request, from due (600; --embedded: none)")
    run = parser.add_argument_group("run")
    run.add_argument("--proxy", action="store_true", help="put our proxy between load and engine")
    run.add_argument(
        "--max-concurrency", type=int, metavar="N", help="let our proxy pass at most N at once (batch size)"
    )
    run.add_argument("--sources", default="nvml,rapl", help="power sensors for --target (default nvml,rapl; or none)")
    run.add_argument("--policy", default="fitted", help="attribution policy (see joulegraph attribute)")
    run.add_argument("--out", type=Path, metavar="DIR", help="run directory (default runs/<time>-<trace>)")
    run.add_argument("--no-report", action="store_true", help="do not render report.html")
    run.add_argument("--json", action="store_true", help="print one JSON line on stdout")


def run(args: argparse.Namespace) -> int:
    """Replay; 0 complete, 1 invalid, 2 not possible, 130 interrupted."""
    from joulegraph.finish import complete
    from joulegraph.show import show_summary
    from traces.errors import UserError
    from traces.rundir import RunDir

    if bool(args.target) == bool(args.embedded):
        raise UserError("replay: give exactly one of --target URL and --embedded PROFILE")
    job_of = _job(args)
    directory = RunDir.create(args.out or default_out(args.trace.stem))
    directory.update_info(command="replay", config=_config(args))
    _play(args, directory, job_of)
    info = directory.info
    if info["state"] == "interrupted" and not info["load"]["requests"]:
        raise UserError(f"{directory.path}: interrupted before the first request; there is nothing to attribute")
    summary = complete(directory, policy=args.policy, report=not args.no_report)
    show_summary(summary, as_json=args.json)
    return {"complete": 0, "invalid": 1}.get(info["state"], 130)


def default_out(name: str) -> Path:
    """runs/<local time>-<name>, with a number where that exists already."""
    import time

    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def parse_arrivals(args: argparse.Namespace) -> Any:
    """Arrivals from the flags. UserError for a process that is none."""
    from loadgen.arrivals import Arrivals, check
    from traces.errors import UserError

    process, *figures = args.arrivals.split(":")
    try:
        rate = float(figures[0]) if figures else None
        cv = float(figures[1]) if len(figures) > 1 else 1.0
    except ValueError:
        raise UserError(f"--arrivals {args.arrivals!r}: rates are numbers, like poisson:2.5 or gamma:2.5:3") from None
    if process not in ("recorded", "constant", "poisson", "gamma"):
        raise UserError(f"--arrivals {args.arrivals!r}: unknown process; use recorded, constant, poisson or gamma")
    arrivals = Arrivals(
        process=process,
        rate_per_s=rate,
        cv=cv,
        speed=args.speed,
        from_s=args.from_s,
        until_s=args.until_s,
        limit=args.limit,
        dither=not args.no_dither,
        idle_cap_s=args.idle_cap,
        seed=args.seed,
    )
    check(arrivals)
    return arrivals


def timeout_ns(args: argparse.Namespace) -> int:
    """Allowance per request. The embedded engine always answers in the end, so there the default is a year."""
    seconds = args.timeout or (365 * 86_400 if args.embedded else 600)
    return round(seconds * 1_000_000_000)


def _target(args: argparse.Namespace) -> Any:
    import os

    from joulegraph.targets import ask
    from loadgen.target import Target, Tls, split_url

    if not args.target:
        return Target("127.0.0.1", 0, model=args.model or "default", api=args.api, prompts=args.prompts)
    key = os.environ.get(args.api_key_env) if args.api_key_env else None
    server = ask(args.target, api_key=key)
    host, port, base, secure = split_url(args.target)
    return Target(
        host,
        port,
        model=args.model or server.models[0],
        api=args.api,
        base=base,
        exact=server.exact_lengths,
        prompts=args.prompts,
        api_key=key,
        ssl=Tls() if secure else None,
    )


def _job(args: argparse.Namespace) -> Any:
    """Everything that can be wrong in the flags is found here, before anything is created or started."""
    import functools

    from joulegraph.load import LoadJob, planned
    from loadgen.replay import ReplayOptions
    from traces.trace import read_trace

    arrivals = parse_arrivals(args)
    planned(read_trace(args.trace), arrivals)
    options = ReplayOptions(
        salt=str(args.seed), outputs="live" if args.live_outputs else "recorded", timeout_ns=timeout_ns(args)
    )
    target = _target(args)
    return functools.partial(LoadJob, trace=args.trace, target=target, arrivals=arrivals, options=options)


def _engine(args: argparse.Namespace) -> Any:
    from joulegraph.engines import embedded_options

    return embedded_options(
        args.embedded,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        power_cap_w=args.power_cap,
        prefix_caching=not args.no_prefix_caching,
        seed=args.seed,
        real_time=args.real_time,
    )


def _play(args: argparse.Namespace, run: Any, job_of: Any) -> None:
    job = job_of(run=run.path)
    if args.embedded and not args.real_time:
        from joulegraph.progress import Progress
        from joulegraph.virtualtime import VirtualRun, run_in_virtual_time

        with Progress(run.path.name, quiet=args.json) as progress:
            plan = VirtualRun(job, _engine(args), through_proxy=args.proxy, each=progress.show)
            run_in_virtual_time(run, plan)
        return
    from joulegraph.realtime import RealRun, run_real

    sources = () if args.embedded else tuple(s for s in args.sources.split(",") if s and s != "none")
    plan_real = RealRun(
        job,
        _engine(args) if args.embedded else None,
        sources,
        through_proxy=args.proxy or args.max_concurrency is not None,
        max_concurrency=args.max_concurrency,
        title=f"replay {args.trace.name}",
    )
    run_real(run, plan_real)


def _config(args: argparse.Namespace) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
