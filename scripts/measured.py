"""Figures of measured runs, for docs/measured.md: joules and seconds per workflow and class, how measured and modelled
compare, and whether a profile fitted to all other runs would have known each run's energy.

    python scripts/measured.py RUNS_DIR [...] [-o PROFILE.json --name NAME --source TEXT] [--again]

Runs without tables (packed by gpu_study.sh) are finished first; --again finishes all anew. With -o one profile fitted
to all of them is saved, with where it comes from and how well it fits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from energy.attribute import attribute
from energy.fit import Fit, Spans, fit_energy, from_profile, joined, read_profile, spans_of
from energy.load import load_run
from energy.timefit import fit_time
from joulegraph.calibration import fit_runs, save
from joulegraph.finish import complete
from traces.errors import UserError
from traces.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Measured:
    """One run's energy between counter edges with the work done there, and seconds per unit of work."""

    path: Path
    spans: Spans
    seconds: Any


def runs(folders: list[Path], again: bool) -> Iterator[Path]:
    """Run directories below the folders, complete and with tables; others are named and left out."""
    for info in sorted(p for folder in folders for p in folder.rglob("run.json")):
        path = info.parent
        if "warmup" in path.parts or "overhead" in path.parts:
            continue
        run = RunDir.open(path)
        if run.info.get("state") != "complete":
            sys.stderr.write(f"{path}: left out, {run.info.get('state')}: {run.info.get('why')}\n")
            continue
        if again or not (path / "workflows.parquet").is_file():
            complete(run, report=False)
        yield path


def title(path: Path) -> str:
    """What was run: the directory's own name, or a sweep point's factors."""
    point = RunDir.open(path).info.get("config", {}).get("point")
    if not point:
        return path.name
    words = [Path(point["trace"]).stem] if point.get("trace") else [str(point.get("workload"))]
    words += [f"{k} {v}" for k, v in point.items() if k.startswith(("max_num", "proxy_limit", "power_cap"))]
    return " ".join(words)


def figures(path: Path) -> Iterator[list[str]]:
    """Rows of the main table: all workflows, then each class where there are several."""
    table = {n: c.to_numpy(zero_copy_only=False) for n, c in _columns(path / "workflows.parquet").items()}
    summary = orjson.loads((path / "summary.json").read_bytes())
    classes = table["class"]
    names = [None, *(sorted(set(classes.tolist())) if len(set(classes.tolist())) > 1 else ())]
    for name in names:
        some = np.ones(len(classes), bool) if name is None else classes == name
        joules = table["gpu_active_uj"][some] / 1e6
        tokens = table["output_tokens"][some].sum()
        spans = table["makespan_ns"][some].astype(float) / 1e9
        scale = summary["scale"] or {}
        ratio = " · ".join(f"{scale[k]:.3f}" for k in ("p5", "p50", "p95")) if name is None and scale else ""
        yield [
            title(path) if name is None else f"&nbsp; {name}",
            str(int(table["requests"][some].sum())),
            str(int(some.sum())),
            _three(float(joules.mean())),
            _three(float(joules.sum() / tokens)) if tokens else "-",
            _three(float(np.median(spans))),
            f"{summary['level']}" if name is None else "",
            ratio,
        ]


def _columns(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: table[name] for name in table.column_names}


def _three(value: float) -> str:
    """Three significant figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measured(path: Path) -> Measured | None:
    """A run's GPU energy as spans; None where the GPU's energy was not measured."""
    result = attribute(load_run(RunDir.open(path)))
    gpu = next((d for d in result.devices if d.curve.domain == "gpu"), None)
    if gpu is None:
        return None
    return Measured(path, spans_of(gpu.curve, gpu.work, gpu.windows.origin_ns, gpu.lag.lag_s), fit_time(gpu.work))


def predicted(parts: list[Measured], by: str | None) -> Iterator[list[str]]:
    """Each run's energy by a profile fitted to all the others, by one mean busy power of the others, and by `by`: a
    profile's file, or a run by its name, on which alone a profile is fitted."""
    alone = next((p for p in parts if p.path.name == by), None)
    single: Fit | str = "not asked for"
    if by is not None and by.endswith(".json"):
        single = from_profile(read_profile(orjson.loads(Path(by).read_bytes()), by))
    elif alone is not None:
        single = fit_energy(alone.spans, alone.seconds)
    for k, one in enumerate(parts):
        others = [p for i, p in enumerate(parts) if i != k]
        fit = fit_energy(joined([p.spans for p in others]), np.mean([p.seconds for p in others], axis=0))
        if isinstance(fit, str):
            yield [title(one.path), fit, "", ""]
            continue
        last = "" if isinstance(single, str) or one is alone else f"{_off(single, one.spans):+.1%}"
        yield [title(one.path), f"{_off(fit, one.spans):+.1%}", f"{_null(fit, others, one.spans):+.1%}", last]


def _off(fit: Fit, spans: Spans) -> float:
    return float(fit.energy(spans).sum() / spans.joules.sum() - 1)


def _null(fit: Fit, others: list[Measured], spans: Spans) -> float:
    """Error of mean busy watts times busy seconds, idle and tail as fitted."""
    rest, busy = 0.0, 0.0
    for part in others:
        total = part.spans.summed(np.ones(len(part.spans.cell_s))).sum(0)
        rest += float(part.spans.joules.sum() - total[:2] @ fit.joules[:2])
        busy += float(total[2])
    own = spans.summed(np.ones(len(spans.cell_s))).sum(0)
    return float((own[:2] @ fit.joules[:2] + rest / busy * own[2]) / spans.joules.sum() - 1)


def show(head: list[str], rows: Iterator[list[str]]) -> None:
    """A Markdown table on stdout."""
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def main() -> int:
    """Print the tables; save the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUNS_DIR")
    parser.add_argument("--again", action="store_true", help="derive every run's tables anew")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="save one profile fitted to all runs")
    parser.add_argument("--by", metavar="RUN|FILE", help="predict every run from this one, or this profile, too")
    parser.add_argument("--name", help="of the profile (default: the file's)")
    parser.add_argument("--source", default="", help="words on card, engine and date for the profile's provenance")
    args = parser.parse_args()
    try:
        paths = list(runs(args.folders, args.again))
        if not paths:
            raise UserError(f"{args.folders[0]}: holds no complete run directory")
        head = ["run", "requests", "workflows", "J per workflow", "J per output token", "makespan p50 s", "level",
                "measured/modelled p5 · p50 · p95"]  # fmt: skip
        show(head, (row for path in paths for row in figures(path)))
        closures = [orjson.loads((p / "summary.json").read_bytes())["closure_uj"] for p in paths]
        print(f"closure: largest {max(abs(c or 0) for c in closures)} uJ over {len(paths)} runs\n")
        parts = [part for path in paths if (part := measured(path)) is not None]
        if len(parts) > 1:
            head = [
                "energy of",
                "by the others' profile",
                "by the others' mean busy power",
                f"by {args.by or '-'} alone",
            ]
            show(head, predicted(parts, args.by))
        if args.out is not None:
            profile, quality = fit_runs([part.path for part in parts], allow_invalid=True)
            source = f"{args.source}; {profile.provenance}" if args.source else profile.provenance
            save(args.out, replace(profile, name=args.name or args.out.stem, provenance=source), quality)
            sys.stderr.write(f"{args.out}: {quality['spans']} spans, residual {quality['residual_w']:.1f} W\n")
    except UserError as error:
        sys.stderr.write(f"measured: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
