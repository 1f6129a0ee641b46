"""Joules and seconds per workflow: an engine by itself against the same engine under a Parrot's serve layer.

Everything runs already: the engine (vLLM, or ours), the serve layer, and `joulegraph bridge parrot` between them with
--record. The same traces go to each arm in turn, in ABBA order, through our proxy with the power sampler on; prefix
caches cannot leak from one run into the next, because every run has words of its own. Ends early rather than late:
no run begins that would not fit into --budget. Sets no limit and no clock.

    python scripts/parrot_vs_engine.py --engine http://127.0.0.1:8000 \
        --parrot default=http://127.0.0.1:9000,bridge.jsonl \
        --parrot uncapped=http://127.0.0.1:9000,bridge.jsonl,throughput --out results \
        [--repeats 2] [--budget 460] [--sources nvml] [--scale 1] [--only agentic]
    python scripts/parrot_vs_engine.py --table results/runs.jsonl        # the table again
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS: dict[str, list[str]] = {
    "sequential": ["sequential", "--count", "8", "--rate", "2", "--param", "document=6000"],
    "interactive": [
        "interactive", "--count", "16", "--rate", "4", "--param", "prefix=4096", "--param", "query=200-900", "--param",
        "output=100-300",
    ],
    "agentic": [
        "agentic", "--count", "2", "--rate", "0.5", "--param", "files=6", "--param", "rounds=1", "--param",
        "design=200", "--param", "code=100-300", "--param", "review=60-150", "--param", "revision=100-300",
    ],
    "composite": [
        "composite", "--count", "14", "--rate", "2", "--param", "mix=sequential:2,interactive:3,agentic:1", "--param",
        "label=members", "--param", "sequential.document=4000", "--param", "interactive.prefix=2048", "--param",
        "interactive.output=100-200", "--param", "agentic.files=4", "--param", "agentic.rounds=1", "--param",
        "agentic.design=150", "--param", "agentic.code=100-200", "--param", "agentic.review=60-120", "--param",
        "agentic.revision=100-200",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way to serve: the engine itself, or a Parrot above it with the journal of its bridge."""

    name: str
    url: str
    journal: str | None = None
    criteria: str = "pattern"

    def flags(self) -> list[str]:
        """What replay is told."""
        if self.journal is None:
            return ["--target", self.url, "--api", "completions"]
        parrot = ["--api", "parrot", "--prompts", "words", "--criteria", self.criteria]
        return ["--target", self.url, *parrot, "--bridge", self.journal]


def joulegraph(*args: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """One command of the project, bounded."""
    command = [sys.executable, "-m", "joulegraph", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def traces(out: Path, names: list[str], scale: float) -> Iterator[tuple[str, Path]]:
    """Write the workloads' traces; those that are there already are taken."""
    for name in names:
        path = out / f"{name}.jsonl"
        if not path.is_file():
            made = joulegraph("workload", *WORKLOADS[name], "--scale", str(scale), "-o", str(path), timeout_s=60)
            if made.returncode:
                sys.exit(made.stderr)
        yield name, path


def play(arm: Arm, trace: Path, run: Path, sources: str, seed: int, timeout_s: float) -> dict[str, Any]:
    """One run: its summary, or why there is none."""
    flags = [*arm.flags(), "--proxy", "--sources", sources, "--seed", str(seed), "--no-report", "--json"]
    try:
        done = joulegraph("replay", str(trace), *flags, "--out", str(run), timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return {"why": f"not over within {timeout_s:.0f} s"}
    if not done.stdout.strip():
        return {"why": f"exit {done.returncode}: {done.stderr.strip()[-400:]}"}
    return {**json.loads(done.stdout.splitlines()[-1]), **measured(run)}


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    """A journal's rows, whoever wrote them."""
    found = [json.loads(line) for path in sorted(run.glob(f"{name}.*.jsonl")) for line in path.open()]
    return [row for row in found if "journal" not in row]


def measured(run: Path) -> dict[str, Any]:
    """Seconds of workflows, tokens as the engine counted them, and how long it worked."""
    ends: dict[str, list[tuple[int, int]]] = defaultdict(list)
    classes: dict[str, str] = {}
    for row in rows(run, "dispatch"):
        ends[row["workflow_id"]].append((row["due_ns"], row["t_end_ns"]))
        classes[row["workflow_id"]] = row["class_name"]
    spans: dict[str, list[float]] = defaultdict(list)
    for name, calls in ends.items():
        spans[classes[name]].append((max(e for _, e in calls) - min(d for d, _ in calls)) / 1e9)
    served = rows(run, "bridge") or [r for r in rows(run, "requests") if r.get("api") == "completions"]
    tokens = {
        name: sum(r.get(name) or 0 for r in served) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    }
    every = [t for calls in ends.values() for t in calls]
    firsts = [r["t_first_token_ns"] - r["t_upstream_ns"] for r in served if r.get("t_first_token_ns")]
    return {
        "makespan_s": {name: [round(s, 3) for s in sorted(values)] for name, values in spans.items()},
        "busy_s": (max(e for _, e in every) - min(d for d, _ in every)) / 1e9 if every else None,
        "served": len(served),
        "engine_ttft_ms": round(statistics.median(firsts) / 1e6, 2) if firsts else None,
        **tokens,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Medians over the repeats of each pattern and arm."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["pattern"], result["arm"]].append(result)
    head = (
        "pattern",
        "arm",
        "runs",
        "level",
        "J/workflow",
        "with idle",
        "J/1k tok",
        "makespan p50",
        "busy s",
        "served",
    )
    lines = [head]
    for (pattern, arm), runs in sorted(groups.items()):
        good = [r for r in runs if r.get("state") in ("complete", "invalid") and r.get("served")]
        if not good:
            lines.append((pattern, arm, f"0 of {len(runs)}: {runs[0].get('why')}", *[""] * 7))
            continue
        first = good[0]
        served = f"{first['served']} calls, {first['prompt_tokens']} ({first['cached_tokens']} cached) + "
        columns = [
            spread(good, lambda r: joules(r, "attributed_uj") / r["workflows"]),
            spread(good, lambda r: (joules(r, "measured_uj") - joules(r, "foreign_uj")) / r["workflows"]),
            spread(good, lambda r: joules(r, "attributed_uj") * 1e3 / max(1, r["completion_tokens"])),
            spread(good, lambda r: statistics.median(s for v in r["makespan_s"].values() for s in v)),
            spread(good, lambda r: r["busy_s"]),
            f"{served}{first['completion_tokens']} tokens",
        ]
        lines.append((pattern, arm, f"{len(good)} of {len(runs)}", str(first["level"]), *columns))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def joules(result: dict[str, Any], name: str) -> float:
    """One book of a run; nan where nothing was measured."""
    value = result.get(name)
    return float("nan") if value is None else value / 1e6


def spread(runs: list[dict[str, Any]], of: Any) -> str:
    """Median and range."""
    values = sorted(of(r) for r in runs)
    return f"{statistics.median(values):.2f} [{values[0]:.2f}, {values[-1]:.2f}]"


def arms(args: argparse.Namespace) -> list[Arm]:
    """The engine first, then every Parrot."""
    found = [Arm("engine", args.engine)]
    for given in args.parrot:
        name, _, rest = given.partition("=")
        url, *more = rest.split(",")
        if len(more) not in (1, 2):
            sys.exit(f"--parrot {given}: give NAME=URL,JOURNAL or NAME=URL,JOURNAL,CRITERIA")
        found.append(Arm(f"parrot-{name}", url, str(Path(more[0]).resolve()), *more[1:]))
    return found


def main() -> None:
    """Run every arm on every pattern, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", metavar="URL")
    parser.add_argument("--parrot", action="append", default=[], metavar="NAME=URL,JOURNAL[,CRITERIA]")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--budget", type=float, default=460.0, metavar="S")
    parser.add_argument("--timeout", type=float, default=75.0, metavar="S", help="of one run")
    parser.add_argument("--sources", default="nvml,rapl")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", action="append", choices=tuple(WORKLOADS), default=[])
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the table of an earlier result")
    args = parser.parse_args()
    if args.table is not None:
        print(table([json.loads(line) for line in args.table.open()]))
        return
    if not args.engine or not args.out:
        parser.error("--engine and --out are needed")
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    began, results, longest = time.monotonic(), [], 10.0
    planned = list(traces(args.out, args.only or list(WORKLOADS), args.scale))
    with (args.out / "runs.jsonl").open("a") as file:
        for repeat in range(args.repeats):
            order = arms(args) if repeat % 2 == 0 else arms(args)[::-1]
            for pattern, trace in planned:
                for arm in order:
                    if time.monotonic() - began + longest > args.budget:
                        print(f"{pattern} {arm.name} {repeat}: left out, the budget is spent", file=sys.stderr)
                        continue
                    start = time.monotonic()
                    run = args.out / f"{pattern}-{arm.name}-{repeat}"
                    result = play(arm, trace, run, args.sources, repeat, args.timeout)
                    longest = max(longest, time.monotonic() - start)
                    result |= {"pattern": pattern, "arm": arm.name, "repeat": repeat}
                    results.append(result)
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    told = result.get("why") or f"{joules(result, 'attributed_uj'):.0f} J, {result['served']} calls"
                    print(f"{pattern} {arm.name} {repeat}: {time.monotonic() - start:.1f} s, {told}", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
