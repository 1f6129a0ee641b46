"""Complete an interrupted run (after a crash or kill -9) from its journals: tables, attribution, report."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags of joulegraph finish."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--policy", default="fitted", help="attribution policy (see joulegraph attribute)")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout")


def run(args: argparse.Namespace) -> int:
    """Complete the run; 1 when it is invalid, else 0."""
    from joulegraph.finish import finish
    from joulegraph.show import show_summary

    summary = finish(args.run, policy=args.policy)
    show_summary(summary, as_json=args.json)
    return 1 if summary["state"] == "invalid" else 0
