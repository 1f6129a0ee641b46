"""Replay a workflow trace, open loop: roots at their due instants whatever the engine does, children after their
dependencies plus their own delay. Against --target URL in real time, or --embedded PROFILE in virtual time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from joulegraph.flags import port, real, whole

APIS = ("completions", "chat", "responses", "messages", "parrot")


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags of joulegraph replay."""
    parser.add_argument("trace", type=Path, metavar="TRACE", help="trace, run directory, or file of a known format")
    _engine_flags(parser.add_argument_group("engine (one of --target, --embedded)").add_argument)
    _parrot_flags(parser.add_argument_group("Parrot (--api parrot)").add_argument)
    _arrival_flags(parser.add_argument_group("arrivals").add_argument)
    _client_flags(parser.add_argument_group("requests").add_argument)
    _figure_flags(parser.add_argument_group("figures").add_argument)
    add = parser.add_argument_group("run").add_argument
    add("--dry-run", action="store_true", help="only the schedule: check it and say what would be sent")
    add("--proxy", action="store_true", help="put our proxy between load and engine")
    add("--max-concurrency", type=whole(1), metavar="N", help="let our proxy pass at most N at once (batch size)")
    add("--shards", type=whole(1), default=1, metavar="N", help="load processes (real time; default 1)")
    add("--ray", metavar="ADDRESS", help="place the shards, and a sampler per node, on a Ray cluster (--target)")
    add("--sources", default="nvml,rapl", help="power sensors for --target (default nvml,rapl; or none)")
    add(
        "--engine-steps",
        type=Path,
        metavar="FILE",
        help="iteration stream of joulegraph engine vllm --steps (level L3)",
    )
    add("--otlp-port", type=port, metavar="PORT", help="take vLLM's OTLP/HTTP spans on this loopback port")
    add("--sm-clock", type=whole(1), metavar="MHZ", help="lock the SM clock of a real GPU for the run, then restore it")
    add("--policy", default="fitted", help="attribution policy (see joulegraph attribute)")
    add("--out", type=Path, metavar="DIR", help="run directory (default runs/<time>-<trace>)")
    add("--no-report", action="store_true", help="do not render report.html")
    add("--json", action="store_true", help="print one JSON line on stdout")


def _engine_flags(add: Any) -> None:
    add("--target", metavar="URL", help="an OpenAI-style engine or proxy that already runs")
    add("--embedded", metavar="PROFILE", help="embedded engine: h100-llama8b, a100-llama7b or a file")
    add("--real-time", action="store_true", help="run the embedded engine in real time, over sockets")
    add("--model", help="model name to ask for (default: the first the target lists)")
    add("--api", choices=APIS, help="dialect for every request (default: each node's own)")
    add("--api-key-env", metavar="NAME", help="environment variable that holds the target's key")
    add("--ca-file", metavar="PEM", help="certificates to trust for an https target")
    add("--insecure", action="store_true", help="https target: do not verify its certificate (noted in the run)")
    add("--max-num-seqs", type=int, metavar="N", help="embedded engine: most sequences in a batch")
    add("--max-num-batched-tokens", type=int, metavar="N", help="embedded engine: most tokens in a step")
    add("--max-model-len", type=int, metavar="N", help="embedded engine: context length")
    add("--no-prefix-caching", action="store_true", help="embedded engine: no prefix reuse")
    add("--power-cap", type=int, metavar="W", help="GPU power cap: of the embedded engine, or of this machine's GPUs")


def _parrot_flags(add: Any) -> None:
    add("--bridge", type=Path, metavar="FILE", help="journal of joulegraph bridge parrot --record")
    add("--criteria", choices=("pattern", "latency", "throughput"), default="pattern", help="activation of calls")
    add("--scheduling", default="", metavar="FLAG,...", help="embedded: app_fifo, graph_group, ctx_group, ctx_aware")
    add(
        "--tasks-capacity",
        type=whole(1),
        default=256,
        metavar="N",
        help="embedded: tasks an engine takes (default 256)",
    )
    add("--chunk-ms", type=real(0), default=0.0, metavar="MS", help="embedded: serve-layer time per prompt piece")
    add("--engines", type=whole(1), default=1, metavar="N", help="embedded: engines under the serve layer (default 1)")


def _arrival_flags(add: Any) -> None:
    add("--speed", type=real(), default=1.0, help="divide recorded arrival times by this (default 1)")
    add("--limit", type=int, metavar="N", help="only the first N workflows")
    add("--from", dest="from_s", type=real(0), default=0.0, metavar="S", help="window start")
    add("--until", dest="until_s", type=real(), metavar="S", help="window end, trace seconds")
    add("--idle-cap", type=real(), metavar="S", help="cut gaps without arrivals to S seconds")
    add(
        "--arrivals",
        default="recorded",
        metavar="P",
        help="recorded, constant:RATE, poisson:RATE or gamma:RATE:CV; RATE is workflows per second, or "
        "ramp:FROM:TO:S, burst:LOW:HIGH:LOW_S:HIGH_S, mmpp:RATExS,RATExS or series:FILE",
    )
    add("--no-dither", action="store_true", help="keep quantised arrival stamps as they are")
    add("--seed", type=whole(), default=0, help="seed of everything random (default 0)")
    add("--users", type=int, metavar="N", help="CLOSED loop instead: N users, each taking the next workflow in turn")
    add("--think", type=real(), default=0.0, metavar="S", help="closed loop: pause of a user between workflows")
    add(
        "--strict", action="store_true", help="refuse a trace with a fault, instead of leaving that row or workflow out"
    )
    add("--fixed", action="store_true", help="every node at its recorded instant; dependencies hold nothing back")


def _client_flags(add: Any) -> None:
    add("--prompts", choices=("ids", "words"), default="ids", help="form of synthetic prompts")
    add("--vocab", metavar="LOW:HIGH", help="token ids of id prompts (default 1000:31000; HIGH is one past the last)")
    add("--calibrate", action="store_true", help="ask the target what it adds to word prompts, and take it off")
    outputs = ("recorded", "continued", "live")
    add("--live-outputs", dest="outputs", action="store_const", const="live", help="the same as --outputs live")
    add(
        "--outputs",
        choices=outputs,
        default="continued",
        help="whose answers stand in prompts: the live ones of all parents (live), only of an earlier turn that a "
        "conversation goes on from (continued, the default), of nobody: planned content in their place (recorded)",
    )
    add("--prewarm", type=whole(), default=0, metavar="N", help="connections opened before the start")
    add("--timeout", type=real(), metavar="S", help="per request, from due (600; --embedded: none)")
    add(
        "--drain",
        type=real(0),
        default=30.0,
        metavar="S",
        help="after Ctrl-C, time for what is in flight (default 30)",
    )
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="repeat what got no answer, 429 or 503 (default 0)",
    )
    add("--cancel", type=real(), default=0.0, metavar="SHARE", help="drop this share (0 to 1) of the requests ...")
    add("--cancel-after", type=real(0), default=1.0, metavar="S", help="... this long after sending (default 1)")


def _figure_flags(add: Any) -> None:
    add("--slo", metavar="NAME=TIME,...", help="goodput: ttft, tpot, e2e, makespan, like ttft=500ms,makespan=30s")
    add("--warmup", type=real(0), default=0.0, metavar="S", help="steady state begins S after the first due instant")
    add("--cooldown", type=real(0), default=0.0, metavar="S", help="... and ends S before the last")
    add("--repeat", type=int, default=1, metavar="N", help="N runs with seeds following --seed; 95 %% intervals")
    add(
        "--max-lateness",
        type=real(above=0),
        default=20.0,
        metavar="MS",
        help="p99 of sent - due past which a run is invalid",
    )
    add(
        "--max-merged",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of tokens that may share a read with others (1: the server batches its writes)",
    )


def run(args: argparse.Namespace) -> int:
    """Replay; 0 complete, 1 invalid, 2 not possible, 130 interrupted."""
    from joulegraph.replaying import readable
    from joulegraph.show import show_summary
    from traces.errors import UserError

    if args.dry_run:
        return _dry_run(args)
    if bool(args.target) == bool(args.embedded):
        raise UserError("replay: give exactly one of --target URL and --embedded PROFILE")
    with readable(args.trace) as trace:
        out = args.out or default_out(args.trace.stem)
        if args.repeat != 1:
            return _repeated(args, trace, out)
        summary, state = _once(args, trace, out)
    show_summary(summary, as_json=args.json)
    return EXIT.get(state, 130)


EXIT = {"complete": 0, "invalid": 1}


def _once(args: argparse.Namespace, trace: Path, out: Path) -> tuple[dict[str, Any], str]:
    """One run, from its directory to its figures: summary and exit state."""
    from joulegraph.figures import wanted
    from joulegraph.finish import complete
    from joulegraph.playing import play
    from joulegraph.replaying import engine_of, job_of
    from traces.errors import UserError
    from traces.rundir import RunDir

    figures = wanted(args.slo, args.warmup, args.cooldown)
    job, engine = job_of(args, trace, out), engine_of(args)
    directory = RunDir.create(out)
    directory.update_info(command="replay", config=_config(args), figures=figures, calibration=job.calibration)
    play(args, directory, job, engine)
    info = directory.info
    if info["state"] == "interrupted" and not info["load"]["requests"]:
        raise UserError(f"{directory.path}: interrupted before the first request; there is nothing to attribute")
    return complete(directory, policy=args.policy, report=not args.no_report), info["state"]


def _repeated(args: argparse.Namespace, trace: Path, out: Path) -> int:
    """OUT/1 ... OUT/N with seeds following one another, and OUT/repeat.json: means with 95 % intervals."""
    from joulegraph.repeats import show_repeats, write_repeats
    from traces.errors import UserError

    if args.repeat < 1:
        raise UserError(f"--repeat {args.repeat}: must be at least 1")
    if out.exists():
        raise UserError(f"--out {out}: exists already; give a new folder, the runs go into it")
    states: list[str] = []
    for number in range(args.repeat):
        one = argparse.Namespace(**{**vars(args), "seed": args.seed + number, "repeat": 1})
        states.append(_once(one, trace, out / str(number + 1))[1])
        if states[-1] == "interrupted":
            break
    show_repeats(write_repeats(out), as_json=args.json)
    return max(EXIT.get(state, 130) for state in states)


def default_out(name: str) -> Path:
    """runs/<local time>-<name>, with a number where that exists already."""
    import time

    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def _dry_run(args: argparse.Namespace) -> int:
    import sys

    import orjson

    from joulegraph.replaying import readable, schedule_of

    with readable(args.trace) as trace:
        schedule = schedule_of(args, trace)
    if args.json:
        sys.stdout.write(orjson.dumps(schedule).decode() + "\n")
    else:
        for fault in (schedule.pop("left_out") or {"first": ()})["first"]:
            sys.stderr.write(f"left out: {fault}\n")
        for name, value in schedule.items():
            sys.stdout.write(f"{name:16} {value}\n")
    return 0


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as given; of paths the name alone, because a run directory may be published."""
    return {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items()}
