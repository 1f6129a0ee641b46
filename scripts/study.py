#!/usr/bin/env python3
"""The questions of arXiv 2604.09611 asked of an engine: four workloads x batch size x lengths x power cap, 16 users.

    scripts/study.py [--quick] [--out DIR] [--engine embedded:a100-llama7b]

A sweep like any other (resumable, tables, plots), and study.md beside it: each finding with what came out. On the
embedded engine a figure says what the engine's assumptions imply; only hardware confirms. Parrot is not part of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from joulegraph.commands.sweep import derive  # noqa: E402
from joulegraph.sweep.config import Point, Sweep, parse  # noqa: E402
from joulegraph.sweep.drive import Driver  # noqa: E402
from joulegraph.sweep.stats import line, plateau  # noqa: E402
from joulegraph.sweep.tables import factor_names, means, results  # noqa: E402

WORKLOADS = ("sequential", "interactive", "agentic", "composite")
SMALL: dict[str, dict[str, Any]] = {  # --quick: the same shapes, fewer and shorter
    "sequential": {"count": 16, "param": {"document": "4096"}},
    "interactive": {"count": 32},
    "agentic": {"count": 16, "param": {"rounds": "1"}},
    "composite": {"count": 16, "param": {"agentic.rounds": "1", "sequential.document": "4096"}},
}
Found = dict[str, dict[str, float]]


def sweep(engine: str, quick: bool, repeats: int) -> Sweep:
    """The study as a sweep; every point has 16 users unless it says otherwise."""
    batches = (1, 4, 16) if quick else (1, 2, 4, 8, 16)
    caps = (150, 200, 250, 400) if quick else (100, 150, 200, 250, 300, 350, 400)
    lengths = (50, 100, 200) if quick else (25, 50, 100, 200, 400)
    points: list[dict[str, Any]] = []
    for workload in WORKLOADS:
        base = {"workload": workload, **(SMALL[workload] if quick else {})}
        points += [{**base, "max_num_seqs": n} for n in batches]
        points += [{**base, "max_num_seqs": 16, "power_cap_w": cap} for cap in caps]
    for workload in ("sequential", "interactive", "agentic"):
        base = {"workload": workload, **(SMALL[workload] if quick else {}), "max_num_seqs": 16}
        points += [{**base, "output_length": n} for n in lengths]
    base = {"workload": "sequential", **(SMALL["sequential"] if quick else {}), "max_num_seqs": 16}
    points += [{**base, "input_length": n} for n in (512, 1024, 2048)]
    single = {**base, "users": 1, "count": 4}
    points += [{**single, "max_num_seqs": n} for n in (1, 16)]
    shared = {"workload": "interactive", **(SMALL["interactive"] if quick else {})}
    points += [{**shared, "max_num_seqs": n, "prefix_caching": False} for n in (1, 16)]
    common = {"engine": engine, "preset": "paper", "users": 16}
    return parse({"name": "study", "repeats": repeats, "base": common, "point": points})


class Table:
    """Means of class `all`: point -> figure -> value."""

    def __init__(self, asked: Sweep, out: Path) -> None:
        self.points = asked.points
        self.values: Found = {}
        for row in means(results(asked, out), factor_names(asked.points)):
            if row["class"] == "all":
                self.values.setdefault(row["point"], {})[row["figure"]] = row["mean"]

    def find(self, **factors: Any) -> list[tuple[Point, dict[str, float]]]:
        """Points with exactly these factors among those that the study varies, that have figures."""
        varied = ("max_num_seqs", "power_cap_w", "output_length", "input_length", "prefix_caching")
        wanted = {**dict.fromkeys(varied), "users": 16, **factors}
        found = []
        for point in self.points:
            fits = all(_fits(getattr(point, name), value) for name, value in wanted.items())
            if fits and point.key() in self.values:
                found.append((point, self.values[point.key()]))
        return found


def _fits(value: Any, wanted: Any) -> bool:
    """... stands for any value that is set."""
    return value is not None if wanted is ... else bool(value == wanted)


def batch_rows(table: Table, **factors: Any) -> str:
    """A table over batch size."""
    rows = [
        "| batch | makespan s | J/token | tokens/s in flight | generating | mean batch | KV max | preempted | cached |"
    ]
    rows.append("|---" * 9 + "|")
    for point, got in table.find(max_num_seqs=..., **factors):
        rows.append(
            f"| {point.max_num_seqs} | {got['makespan_s_mean']:.2f} | {got['j_per_output_token']:.3f} "
            f"| {got['tokens_per_s_in_flight']:.0f} | {got['tokens_per_s_generating']:.0f} "
            f"| {got['batch_mean']:.2f} | {100 * got['kv_usage_max']:.0f} % | {got['preemptions']:.0f} "
            f"| {100 * got['cached_share']:.0f} % |"
        )
    return "\n".join(rows)


def gain(table: Table, **factors: Any) -> str:
    """What the largest batch saves against the smallest."""
    found = table.find(max_num_seqs=..., **factors)
    if len(found) < 2:
        return "not measured"
    (_, first), (last_point, last) = found[0], found[-1]
    joules = 1 - last["j_per_output_token"] / first["j_per_output_token"]
    seconds = 1 - last["makespan_s_mean"] / first["makespan_s_mean"]
    return f"batch {last_point.max_num_seqs} against 1 saves {100 * joules:.0f} % J/token, {100 * seconds:.0f} % time"


def cap_rows(table: Table, workload: str) -> str:
    """Joules and seconds against the cap, relative to the highest."""
    found = sorted(table.find(workload=workload, max_num_seqs=16, power_cap_w=...), key=lambda f: f[0].power_cap_w or 0)
    if not found:
        return f"* {workload}: not measured"
    top = found[-1][1]
    words = [
        f"{p.power_cap_w} W: {100 * (v['j_per_workflow'] / top['j_per_workflow'] - 1):+.1f} % J, "
        f"{100 * (v['makespan_s_mean'] / top['makespan_s_mean'] - 1):+.1f} % s"
        for p, v in found
    ]
    flat = plateau([float(p.power_cap_w or 0) for p, _ in found], [v["makespan_s_mean"] for _, v in found])
    ending = f"flat from {flat:g} W" if flat is not None else "no plateau below the highest cap"
    return f"* {workload}: {'; '.join(words)}. {ending}."


def output_rows(table: Table, workload: str) -> str:
    """The line of joules per request over output tokens."""
    found = table.find(workload=workload, max_num_seqs=16, output_length=...)
    fit = line([v["output_tokens_mean"] for _, v in found], [v["j_per_request"] for _, v in found])
    if fit is None or fit.r2 is None:
        return f"* {workload}: not measured"
    per_token = ", ".join(f"{p.output_length}: {v['j_per_output_token']:.3f}" for p, v in found)
    return (
        f"* {workload}: {fit.intercept:.1f} J + {fit.slope:.3f} J per output token, R² {fit.r2:.4f} "
        f"(J per token at output length {per_token})"
    )


def document(table: Table, command: str, engine: str, repeats: int) -> str:
    """study.md."""
    implied = engine.startswith("embedded")
    note = (
        "The engine is the embedded one: every figure below is implied by its assumptions (profile constants from "
        "published figures; a step reads the weights once whatever the batch; clock follows the cap), none is measured."
        if implied
        else "Measured on the engine named."
    )
    parts = [f"`{command}` ({engine}, repeats: {repeats}, 16 users in a closed loop). {note}", "## F1: batch size"]
    for workload in WORKLOADS:
        parts += [f"**{workload}**: {gain(table, workload=workload)}.", batch_rows(table, workload=workload)]
    parts += [
        f"**sequential, one user**: {gain(table, workload='sequential', users=1)}.",
        batch_rows(table, workload="sequential", users=1),
        f"**interactive, prefix cache off**: {gain(table, workload='interactive', prefix_caching=False)}.",
        batch_rows(table, workload="interactive", prefix_caching=False),
        "## F2: power cap (batch 16, against the highest cap)",
        "\n".join(cap_rows(table, workload) for workload in WORKLOADS),
        "## F3: output length (batch 16)",
        "\n".join(output_rows(table, workload) for workload in ("sequential", "interactive", "agentic")),
        "## Input length (sequential, batch 16)",
        "\n".join(
            f"* chunk {p.input_length}: {v['j_per_workflow']:.0f} J per workflow, {v['makespan_s_mean']:.1f} s"
            for p, v in table.find(workload="sequential", max_num_seqs=16, input_length=...)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run the study and write study.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer values, shorter workflows, 2 repeats")
    parser.add_argument("--engine", default="embedded:a100-llama7b", help="as in a sweep file (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help="default 10, with --quick 2")
    parser.add_argument("--out", type=Path, default=Path("sweeps/study"))
    args = parser.parse_args()
    repeats = args.repeats or (2 if args.quick else 10)
    asked = sweep(args.engine, args.quick, repeats)
    counts = Driver(asked, args.out).run()
    derive(asked, args.out)
    command = "scripts/study.py" + (" --quick" if args.quick else "")
    command += f" --repeats {args.repeats}" if args.repeats else ""
    (args.out / "study.md").write_text(document(Table(asked, args.out), command, args.engine, repeats))
    print(f"{args.out / 'study.md'}: {counts}")
    return 130 if counts["left"] else 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
