"""Put joules on requests, phases, agents and workflows of a run; writes attribution.parquet, workflows.parquet and
ledger.json into it. The level (L1 proxy only, L2 engine metrics, L3 iteration stream) is the best the run holds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from joulegraph.flags import real


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `joulegraph attribute`."""
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument(
        "--policy", default="fitted", help="fitted (default), shapley, equal, time, tokens, output_tokens"
    )
    parser.add_argument("--level", default=None, help="L1, L2 or L3; default: the best the run holds")
    parser.add_argument(
        "--prefixes",
        default="creator",
        choices=("creator", "amortised"),
        help="who pays for a cached prefix: the request that computed it (default), or it and its later hits",
    )
    parser.add_argument("--profile", metavar="NAME|FILE", help="measured profile of this GPU and model, as prior")
    parser.add_argument("--grid", type=real(), metavar="G", help="grid intensity in gCO2e per kWh, for gCO2e figures")
    parser.add_argument("--grid-source", default=None, help="where that intensity comes from (printed beside)")
    parser.add_argument("--pue", type=real(), default=1.0, help="power usage effectiveness of the site (default 1)")
    parser.add_argument("--predict", type=Path, metavar="PHASES.json", help="predict each phase from what precedes it")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Attribute and print joules per class, the books and the fit."""
    import orjson

    from energy.attribute import attribute_run
    from energy.carbon import NO_SOURCE, Grid
    from energy.truth import score_truth
    from joulegraph.attribution_text import text
    from traces.rundir import RunDir

    where = RunDir.open(args.run)
    profile = _profile(args.profile) if args.profile is not None else None
    grid = None if args.grid is None else Grid(args.grid, args.pue, args.grid_source or NO_SOURCE)
    result = attribute_run(
        where, policy=args.policy, level=args.level, profile=profile, prefixes=args.prefixes, grid=grid
    )
    out = {"run": str(args.run), **result.totals, "truth_error": score_truth(where, result)}
    if args.predict is not None:
        out |= predictions(result, args.predict, profile)
    if args.json:
        sys.stdout.write(orjson.dumps(out, option=orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
        return 0
    sys.stdout.write(text(result, out))
    return 0


def _profile(name: str) -> Any:
    """A shipped profile by name, or any profile file."""
    import orjson

    import energy
    from energy.fit import read_profile
    from traces.errors import UserError

    shipped = Path(energy.__file__).parent / "profile_data" / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        return read_profile(orjson.loads(path.read_bytes()), str(path))
    except (OSError, orjson.JSONDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.json")))
        raise UserError(
            f"--profile {name}: not readable as a profile ({error}); give a file of joulegraph calibrate, or: {known}"
        ) from error


def predictions(result: Any, path: Path, profile: Any = None) -> dict[str, Any]:
    """Rows of energy.predict for the phases in a file, and energy.causal's check of the shares. UserError where there
    is no such file or nothing measured."""
    from energy.causal import shares_check
    from energy.phases import load_phases
    from energy.predict import Basis, predict
    from traces.errors import UserError

    phases = load_phases(path)
    gpu = next((d for d in result.devices if d.curve.domain == "gpu"), None)
    if gpu is None:
        said = "; ".join(result.notes[:2])
        raise UserError(
            f"--predict: the run has no GPU energy to compare with ({said}); it needs power readings while requests ran"
        )
    basis = Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows)
    active = next(f for f in result.figures if f.component == "gpu").active.sum(1)
    quiet_w = (gpu.fit.power_idle_w(), float(gpu.fit.joules[1]))
    shares = shares_check(basis, result.requests.classes, active, phases, *quiet_w)
    return {"phases": predict(basis, phases, profile), "shares": shares}
