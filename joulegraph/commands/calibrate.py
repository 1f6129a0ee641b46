"""Measure an energy profile of an engine and save it, with its fit quality. Either drive a short designed experiment
against a URL (solo types, batch ladder, prefill ladder, output ladder, random mixes) while the sensors are sampled, or
fit one profile to runs that exist (--runs). A profile is a data file with provenance; `attribute --profile` uses it as
the prior of the same GPU and model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from joulegraph.flags import real, whole


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `joulegraph calibrate`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--target", help="URL of the engine to drive, http://127.0.0.1:8000")
    source.add_argument("--embedded", metavar="PROFILE", help="try the experiment on an embedded engine, virtual time")
    source.add_argument("--runs", type=Path, nargs="+", metavar="RUN", help="fit one profile to runs that exist")
    parser.add_argument("-o", "--out", type=Path, required=True, help="profile file to write (.json)")
    parser.add_argument("--model", default=None, help="model name to ask the engine for")
    parser.add_argument("--sources", default="nvml,rapl", help="power sensors for --target (default nvml,rapl)")
    parser.add_argument(
        "--seconds", type=real(above=0), default=4.0, help="length of each part of the experiment (default 4)"
    )
    parser.add_argument("--seed", type=whole(), default=0, help="seed of the prompts and mixes")
    parser.add_argument(
        "--allow-invalid", action="store_true", help="save a profile even of an invalid run; the file says so"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Calibrate and print the profile's quality."""
    import orjson

    from joulegraph.calibration import experiment, fit_runs, save

    runs = args.runs if args.runs else [experiment(args)]
    profile, quality = fit_runs(runs, allow_invalid=args.allow_invalid)
    save(args.out, profile, quality)
    out = {"profile": str(args.out), **quality}
    if args.json:
        sys.stdout.write(orjson.dumps(out).decode() + "\n")
    else:
        sys.stdout.write("\n".join(lines(out)) + "\n")
    return 0


def lines(out: dict[str, Any]) -> list[str]:
    """The quality as text."""
    text = [
        f"{out['profile']}: {out['spans']} spans, residual {out['residual_w']:.1f} W, condition {out['condition']:.0f}"
    ]
    if out["power_limit_w"]:
        text.append(f"power bends towards {out['power_limit_w']:.0f} W")
    text += [f"    {term:16} {row['joules']:.4g} J +- {row['sd']:.2g}" for term, row in out["terms"].items()]
    text += [f"{name}: an invalid run ({why}); the profile says so" for name, why in out["invalid"].items()]
    text += [f"{name}: total energy off by {error:+.2%}" for name, error in out["runs"].items()]
    return text
