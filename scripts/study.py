#!/usr/bin/env python3
"""The questions of arXiv 2604.09611 asked of an engine: four workloads x batch size x lengths x power cap, 16 users.

    scripts/study.py [--quick] [--out DIR] [--engine embedded:a100-llama7b]

A sweep like any other (resumable, tables, plots), and study.md beside it: each finding with what came out. On the
embedded engine Parrot's serve layer is a second arm, and a figure says what the engine's assumptions imply; only
hardware confirms. On a real engine (vllm with --model, attach:URL) caps are turned only with --caps; without it those
points are recorded as not run.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from study_text import Arm, Table, document  # noqa: E402

from joulegraph.commands.sweep import derive  # noqa: E402
from joulegraph.sweep.config import TRUTH, Sweep, parse  # noqa: E402
from joulegraph.sweep.drive import Driver  # noqa: E402
from joulegraph.sweep.setup import NOT_TURNED, unable  # noqa: E402

FIGURES = "## Figures\n\n"
WORKLOADS = ("sequential", "interactive", "agentic", "composite")
LENGTHS = WORKLOADS[:3]
FULL: dict[str, dict[str, Any]] = {name: {} for name in WORKLOADS}
SMALL: dict[str, dict[str, Any]] = {  # --quick: the same shapes, fewer and shorter
    "sequential": {"count": 16, "param": {"document": "4096"}},
    "interactive": {"count": 32},
    "agentic": {"count": 16, "param": {"rounds": "1"}},
    "composite": {"count": 16, "param": {"agentic.rounds": "1", "sequential.document": "4096"}},
}
SMALLEST: dict[str, dict[str, Any]] = {  # --quick in real time: a workflow a user, about a minute at batch 1
    "sequential": {"count": 16, "param": {"document": "2048"}},
    "interactive": {"count": 16},
    "agentic": {"count": 16, "scale": 0.2, "param": {"rounds": "1", "files": "2"}},
    "composite": {"count": 16, "param": {"agentic.rounds": "1", "agentic.files": "2", "sequential.document": "2048"}},
}
KNOBS = {"embedded": "max_num_seqs", "vllm": "max_num_seqs", "xllamacpp": "max_num_seqs", "attach": "proxy_limit",
         "embedded-real": "max_num_seqs", "parrot": "max_batch_size"}  # fmt: skip
"""what batch size is: a launch setting, or our proxy's limit where the engine runs already"""


def arms(engine: str) -> list[Arm]:
    """The engine, and beside an embedded one Parrot's serve layer over the same."""
    kind, _, profile = engine.partition(":")
    if kind not in KNOBS:
        sys.exit(f"study.py: --engine {engine!r}: must be one of {', '.join(KNOBS)}")
    name = {"parrot": "Parrot", "embedded": "vLLM's scheduler", "embedded-real": "vLLM's scheduler"}.get(kind, engine)
    out = [Arm(name, engine, KNOBS[kind])]
    return [*out, Arm("Parrot", f"parrot:{profile}", KNOBS["parrot"])] if kind == "embedded" else out


def sweep(args: argparse.Namespace, repeats: int) -> Sweep:
    """The study as a sweep; every point has 16 users unless it says otherwise."""
    kind = args.engine.partition(":")[0]
    virtual = kind in ("embedded", "parrot")
    sizes = FULL if not args.quick else SMALL if virtual else SMALLEST
    batches = (1, 4, 16) if args.quick else (1, 2, 4, 8, 16)
    lengths = (50, 100, 200) if args.quick else (25, 50, 100, 200, 400)
    points: list[dict[str, Any]] = []
    for arm in arms(args.engine):
        base = {"engine": arm.engine, "model": args.model} if args.model else {"engine": arm.engine}
        for name in WORKLOADS:
            points += [{**base, "workload": name, **sizes[name], arm.knob: n} for n in batches]
            points += [
                {**base, "workload": name, **sizes[name], arm.knob: 16, "power_cap_w": cap} for cap in caps(args)
            ]
        full = {**base, arm.knob: 16}
        for name in LENGTHS:
            points += [{**full, "workload": name, **sizes[name], "output_length": n} for n in lengths]
        points += [
            {**full, "workload": "sequential", **sizes["sequential"], "input_length": n} for n in (512, 1024, 2048)
        ]
        if arm.knob == "max_batch_size":
            points += [{**full, "workload": "agentic", **sizes["agentic"], "tasks_capacity": n} for n in (1, 4, 16)]
            continue
        single = {**base, "workload": "sequential", **sizes["sequential"], "users": 1, "count": 4}
        points += [{**single, arm.knob: n} for n in (1, 16)]
        if virtual or kind == "vllm":
            uncached = {**base, "prefix_caching": False}
            points += [{**uncached, "workload": name, **sizes[name], arm.knob: 16} for name in WORKLOADS]
            if not args.quick:
                points.append({**uncached, "workload": "interactive", **sizes["interactive"], arm.knob: 1})
    head: dict[str, Any] = {"name": "study", "repeats": repeats, "base": {"preset": "paper", "users": 16}}
    head |= {"policy": TRUTH} if virtual else {"warmup": 1, "cooldown_s": 2, "idle_s": 2}
    head["turn_knobs"] = virtual or args.caps is not None
    if kind == "vllm":
        head["vllm"] = {"flags": args.vllm_flag, **({"python": args.python} if args.python else {})}
    return parse({**head, "point": points})


def caps(args: argparse.Namespace) -> list[int]:
    """Watts per GPU: as named, or the paper's range."""
    if args.caps is not None:
        return [int(word) for word in args.caps.split(",") if word]
    return [150, 200, 250, 400] if args.quick else [100, 150, 200, 250, 300, 350, 400]


def main() -> int:
    """Run the study and write study.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer values, shorter workflows, fewer repeats")
    parser.add_argument("--engine", default="embedded:a100-llama7b", help="as in a sweep file (default: %(default)s)")
    parser.add_argument("--model", help="of --engine vllm or xllamacpp")
    parser.add_argument("--python", help="interpreter that has vLLM")
    parser.add_argument("--vllm-flag", action="append", default=[], metavar="FLAG", help="one more; may be repeated")
    parser.add_argument("--caps", metavar="W,W", help="power caps to turn; on a real GPU they are turned only if given")
    parser.add_argument("--repeats", type=int, help="default 10; with --quick 2, in real time 1")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="virtual points side by side")
    parser.add_argument("--out", type=Path, default=Path("sweeps/study"))
    parser.add_argument(
        "--doc", type=Path, metavar="FILE", help=f"put the figures there too, after its line {FIGURES.strip()!r}"
    )
    args = parser.parse_args()
    virtual = args.engine.partition(":")[0] in ("embedded", "parrot")
    repeats = args.repeats or ((2 if virtual else 1) if args.quick else 10)
    asked = sweep(args, repeats)
    counts = Driver(asked, args.out, jobs=args.jobs).run()
    derive(asked, args.out)
    command = "scripts/study.py" + (" --quick" if args.quick else "")
    command += f" --engine {args.engine}" if args.engine != parser.get_default("engine") else ""
    command += f" --repeats {args.repeats}" if args.repeats else ""
    text = document(Table(asked, args.out), command, arms(args.engine), repeats, virtual)
    (args.out / "study.md").write_text(text)
    if args.doc is not None:
        before, mark, _ = args.doc.read_text().partition(FIGURES)
        args.doc.write_text(before + mark + text.replace("\n### ", "\n#### ").replace("\n## ", "\n### "))
    print(f"{args.out / 'study.md'}: {counts}")
    withheld = repeats * sum(unable(point, asked.turn_knobs) == NOT_TURNED for point in asked.points)
    return 130 if counts["left"] else 1 if counts["failed"] > withheld else 0


if __name__ == "__main__":
    sys.exit(main())
