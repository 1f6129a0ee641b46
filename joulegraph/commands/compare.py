"""Compare runs of two arms on one board: joules per workflow, per output token and per request, makespan, with
intervals resampled by run. The board's gain cancels. Below five repeats per arm, or
where the arms did not take turns, no verdict is given."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `joulegraph compare`."""
    parser.add_argument(
        "--a", type=Path, nargs="+", required=True, metavar="RUN", help="runs of the first arm, attributed"
    )
    parser.add_argument(
        "--b", type=Path, nargs="+", required=True, metavar="RUN", help="runs of the second arm, attributed"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Compare and print ratios b / a with 90 % intervals."""
    import orjson

    from joulegraph.comparison import compare, read_run

    report = compare([read_run(p) for p in args.a], [read_run(p) for p in args.b])
    if args.json:
        sys.stdout.write(orjson.dumps(report).decode() + "\n")
    else:
        sys.stdout.write("\n".join(lines(report)) + "\n")
    return 0


def lines(report: dict[str, Any]) -> list[str]:
    """One line per figure."""
    text = []
    for name, row in report["figures"].items():
        ratio = row["ratio"]
        if ratio is None:
            text.append(f"{name}: not measured in both arms")
            continue
        low, high = row["interval90"] or (None, None)
        span = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
        text.append(f"{name}: b/a = {ratio:.3f}{span}; {row['verdict'] or 'no verdict'}")
    return text + [f"note: {n}" for n in report["notes"]]
