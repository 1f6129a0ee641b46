"""Render the report of a run: report.html (one file, works offline, prints) and report.json, from its journals and its
attribution. An attribution that is missing is made first, with joulegraph attribute's defaults."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--json", action="store_true", help="print report.json as one line on stdout")
    parser.add_argument("--no-attribute", action="store_true", help="report without joules where none were attributed")


def run(args: argparse.Namespace) -> int:
    """Render; the exit code of a report is 0 whatever the run's state."""
    import orjson
    from rich.console import Console

    from joulegraph.report import write_report
    from joulegraph.report.summary import class_rows, class_table
    from traces.rundir import RunDir

    directory = RunDir.open(args.run)
    if not directory.file("attribution.parquet").is_file() and not args.no_attribute:
        from energy.attribute import attribute_run

        attribute_run(directory)
    page = write_report(directory)
    if args.json:
        sys.stdout.write(orjson.dumps(orjson.loads(directory.file("report.json").read_bytes())).decode() + "\n")
    else:
        console = Console(stderr=True)
        console.print(class_table(class_rows(args.run)))
        console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
    return 0
