"""The whole path in a minute, without GPU or network: the embedded engine, the proxy, the sampler and an open-loop mix
of the four workload patterns, with real sockets in real time; ends with joules per class and an HTML report."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulegraph.flags import whole


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags of joulegraph demo."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default runs/<time>-demo)")
    parser.add_argument("--seed", type=whole(), default=0, help="seed of the workload (default 0)")
    parser.add_argument("--profile", default="h100-llama8b", help="profile of the embedded engine")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 complete, 1 invalid, 130 interrupted."""
    import time

    from joulegraph.commands.replay import default_out
    from joulegraph.engines import embedded_options
    from joulegraph.finish import complete
    from joulegraph.load import LoadJob
    from joulegraph.realtime import RealRun, run_real
    from joulegraph.show import show_summary
    from loadgen.replay import ReplayOptions
    from loadgen.target import Target
    from traces.rundir import RunDir
    from traces.trace import write_trace
    from traces.workloads import demo_trace

    started = time.monotonic()
    directory = RunDir.create(args.out or default_out("demo"))
    directory.update_info(command="demo", config={"seed": args.seed, "profile": args.profile})
    trace = directory.file("plan.jsonl")
    manifest, workflows = demo_trace(args.seed)
    write_trace(trace, manifest, workflows)
    job = LoadJob(
        run=directory.path,
        trace=trace,
        target=Target("127.0.0.1", 0),
        options=ReplayOptions(salt=str(args.seed)),
        workflows=len(workflows),
    )
    engine = embedded_options(args.profile, seed=args.seed)
    run_real(directory, RealRun(job, engine, (), through_proxy=True, quiet=False, title="joulegraph demo"))
    summary = complete(directory)
    directory.update_info(wall_s=round(time.monotonic() - started, 3))
    summary["wall_s"] = directory.info["wall_s"]
    show_summary(summary, as_json=args.json)
    return {"complete": 0, "invalid": 1}.get(directory.info["state"], 130)
