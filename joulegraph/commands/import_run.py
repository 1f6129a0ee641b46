"""Make a run directory from a foreign recording: requests.jsonl[.gz] and, where present, power.csv[.gz],
ring20ms.csv[.gz] with sampler.json, steps.jsonl[.gz] and phases.json (layout: docs/attribution.md). Missing files are
said."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `joulegraph import-run`."""
    parser.add_argument("recording", type=Path, help="folder of the recording")
    parser.add_argument("-o", "--out", type=Path, required=True, help="run directory to make")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Import and say what came and what was missing."""
    import orjson

    from energy.foreign import import_run

    done = import_run(args.recording, args.out)
    for name in done["missing"]:
        sys.stderr.write(f"{args.recording}: no {name}; what rests on it is left out\n")
    if repeated := done.get("repeated"):
        sys.stderr.write(f"{args.recording}: {repeated} requests stand there twice (same id and times), taken once\n")
    if args.json:
        sys.stdout.write(orjson.dumps(done).decode() + "\n")
    else:
        sys.stdout.write(
            f"{args.out}: {done['requests']} requests, {done['samples']} power samples, {done['steps']} engine steps\n"
        )
    return 0
