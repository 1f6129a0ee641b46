"""Score the attribution against synthetic truth: eight mixes on two engines whose joules are known, at every level,
beside the naive policies, with three kinds of sensor, interval coverage and negative controls. Takes minutes; the same
every time. Exit code 1 when a control did no damage or the books do not close."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `joulegraph validate`."""
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="evaluation seeds per mix (default 3)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Validate and print the tables."""
    import orjson

    from joulegraph.validation.validate import validate

    start = time.monotonic()
    report = validate(say, args.seeds)
    sys.stderr.write(f"validated in {time.monotonic() - start:.0f} s\n")
    if args.json:
        sys.stdout.write(orjson.dumps(report).decode() + "\n")
    else:
        sys.stdout.write("\n".join(lines(report)) + "\n")
    return 1 if report["failed"] else 0


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(text + "\n")


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text: absolute error per request, median / 95th percentile."""
    text = []
    for name in ("mixes", "independent"):
        rows = report[name]
        columns = list(next(iter(rows.values())))
        text.append(f"{'linear' if name == 'mixes' else name} truth".ljust(18) + "".join(c.rjust(17) for c in columns))
        for mix, row in rows.items():
            text.append(
                mix.ljust(18) + "".join(f"{row[c]['median']:.1%} / {row[c]['p95']:.1%}".rjust(17) for c in columns)
            )
    for mode, rows in report["sensors"].items():
        text.append(f"{mode}: " + ", ".join(f"{mix} {r['median']:.1%} / {r['p95']:.1%}" for mix, r in rows.items()))
    text.append(f"per workflow {report['workflow_median']:.2%}, phase share off by {report['phase_error']:.2%} at most")
    text.append("coverage of 90 % intervals: " + ", ".join(f"{m} {c:.0%}" for m, c in report["coverage90"].items()))
    for level, rows in report["coverage90_by_level"].items():
        text.append(f"coverage at {level}: " + ", ".join(f"{m} {c:.0%}" for m, c in rows.items()))
    for card, rows in report["cards"].items():
        said = (f"{k} {r['coverage90']:.0%} (half width {r['interval_width_median']:.1%})" for k, r in rows.items())
        text.append(f"coverage on {card}: " + ", ".join(said))
    for kind, rows in report["coverage_by"].items():
        text.append(f"coverage by {kind}: " + ", ".join(f"{tercile} {c:.0%}" for tercile, c in rows.items()))
    text.append(f"median half width {report['interval_width_median']:.1%}; books off by {report['closure_uj']} uJ")
    text += [f"control {name}: {'did its damage' if ok else 'DID NOTHING'}" for name, ok in report["controls"].items()]
    return text
