"""Run a sweep: every combination of factors of a TOML file, repeated in a balanced order, each point a run directory.

Finished points are skipped, so the same command goes on after any kill. The first Ctrl-C finishes the point and saves.
Ends with results and means (Parquet, CSV) and plots (SVG, PNG) in the sweep's directory; see docs/sweep.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulegraph.sweep.config import Sweep


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags of joulegraph sweep."""
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="what to vary (docs/sweep.md)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="sweep directory (default sweeps/<name>)")
    parser.add_argument("--plan", action="store_true", help="show what would run, in order, and leave")
    parser.add_argument("--retry", action="store_true", help="try points again that could not run before")
    parser.add_argument("--jobs", type=int, metavar="N", help="virtual points side by side (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no line per point")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout")


def run(args: argparse.Namespace) -> int:
    """Sweep; 0 all points done, 1 some could not run, 130 stopped before the end."""
    import orjson

    from joulegraph.sweep.config import read
    from joulegraph.sweep.drive import Driver

    sweep = read(args.file)
    if args.plan:
        _show_plan(sweep)
        return 0
    out = args.out or Path("sweeps") / sweep.name
    jobs = args.jobs or len(os.sched_getaffinity(0))
    counts = Driver(sweep, out, retry=args.retry, quiet=args.quiet or args.json, jobs=jobs).run()
    if not args.quiet:
        sys.stderr.write("joulegraph: writing tables and plots\n")
    files = derive(sweep, out)
    if args.json:
        sys.stdout.write(orjson.dumps({"out": str(out), **counts, "files": files}).decode() + "\n")
    else:
        sys.stderr.write(
            f"{out}: {counts['done']} runs done, {counts['failed']} could not run, {counts['left']} left; "
            f"{', '.join(files)}\n"
        )
    if counts["left"]:
        return 130
    return 1 if counts["failed"] else 0


def derive(sweep: Sweep, out: Path) -> list[str]:
    """Tables and plots from whatever run directories there are; names of the files, relative to `out`."""
    from joulegraph.sweep.plots import draw
    from joulegraph.sweep.tables import factor_names, means, results, varying, write

    rows = results(sweep, out)
    averages = means(rows, factor_names(sweep.points))
    write(rows, out / "results")
    write(averages, out / "means")
    plots = draw(averages, varying(sweep.points), out / "plots")
    tables = [f"{n}.{s}" for n, some in (("results", rows), ("means", averages)) if some for s in ("parquet", "csv")]
    return tables + [str(p.relative_to(out)) for p in plots]


def _show_plan(sweep: Sweep) -> None:
    from joulegraph.sweep.plan import order, starts
    from joulegraph.sweep.setup import unable

    slots = order(sweep.points, sweep.repeats, sweep.seed)
    for slot in slots:
        sys.stdout.write(
            f"{slot.name}  {_factors(slot.point.factors())}{_note(unable(slot.point, sweep.turn_knobs))}\n"
        )
    sys.stdout.write(
        f"{len(sweep.points)} points, {len(slots)} runs, {starts(slots)} groups of equal launch settings\n"
    )


def _note(why: str | None) -> str:
    return f"  (cannot run: {why})" if why else ""


def _factors(factors: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in factors.items())
