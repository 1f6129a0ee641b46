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
    parser.add_argument("--profile", metavar="NAME|FILE", help="measured profile of this GPU and model, as prior")
    parser.add_argument("--grid", type=real(), metavar="G", help="grid intensity in gCO2e per kWh, for gCO2e figures")
    parser.add_argument("--grid-source", default=None, help="where that intensity comes from (printed beside)")
    parser.add_argument("--pue", type=real(), default=1.0, help="power usage effectiveness of the site (default 1)")
    parser.add_argument("--predict", type=Path, metavar="PHASES.json", help="predict each phase from what precedes it")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Attribute and print the books."""
    import orjson

    from energy.attribute import attribute_run, score_truth
    from traces.rundir import RunDir

    where = RunDir.open(args.run)
    profile = _profile(args.profile) if args.profile is not None else None
    result = attribute_run(where, policy=args.policy, level=args.level, profile=profile)
    out = {"run": str(args.run), **result.totals, "truth_error": score_truth(where, result)}
    if args.grid is not None:
        out["carbon"] = carbon(out, args.grid, args.pue, args.grid_source)
    if args.predict is not None:
        out |= predictions(result, args.predict)
    if args.json:
        sys.stdout.write(orjson.dumps(out, option=orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
        return 0
    sys.stdout.write("\n".join(lines(result, out)) + "\n")
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


def carbon(out: dict[str, Any], grid: float, pue: float, source: str | None) -> dict[str, Any]:
    """gCO2e of the attributed joules of everything measured (hbm lies inside gpu), per run and class."""
    from traces.errors import UserError

    if grid < 0 or pue < 1:
        raise UserError(f"--grid {grid} --pue {pue}: an intensity is at least 0 and a PUE at least 1")
    per_uj = grid * pue / 3.6e12
    classes = {name: uj * per_uj for name, uj in out.get("class_uj", {}).items()}
    return {
        "gco2e": sum(classes.values()),
        "class_gco2e": classes,
        "grid_gco2e_per_kwh": grid,
        "pue": pue,
        "grid_source": source or "given on the command line, no source named",
    }


def predictions(result: Any, path: Path) -> dict[str, Any]:
    """Rows of energy.predict for the phases in a file, and energy.causal's check of the shares. UserError where there
    is no such file or nothing measured."""
    import orjson

    from energy.causal import shares_check
    from energy.predict import Basis, predict, read_phases
    from traces.errors import UserError

    try:
        document = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); give the phases.json of the recording") from error
    gpu = next((d for d in result.devices if d.curve.domain == "gpu"), None)
    if gpu is None:
        raise UserError("--predict: the run has no GPU energy to compare with")
    basis, phases = Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows), read_phases(document, str(path))
    active = next(f for f in result.figures if f.component == "gpu").active.sum(1)
    shares = shares_check(basis, result.requests.classes, active, phases, gpu.fit.power_idle_w())
    return {"phases": predict(basis, phases), "shares": shares}


def lines(result: Any, out: dict[str, Any]) -> list[str]:
    """The books and the fit as plain text."""
    from energy.output import fit_json

    text = [f"level {out['level']}, policy {out['policy']}"]
    books = [("measured", *item) for item in out["components"].items()]
    for how, name, book in [*books, *(("estimated", *item) for item in out["estimates"].items())]:
        book = book | {
            "total_uj": sum(book[f"{k}_uj"] for k in ("attributed", "idle", "tail", "foreign", "unmeasured"))
        }
        text.append(
            f"{name}: {how} {book['total_uj'] / 1e6:.1f} J"
            f" = attributed {book['attributed_uj'] / 1e6:.1f}"
            f" + idle {book['idle_uj'] / 1e6:.1f} + tail {book['tail_uj'] / 1e6:.1f}"
            f" + foreign {book['foreign_uj'] / 1e6:.1f}"
            f" + unmeasured {book['unmeasured_uj'] / 1e6:.1f} (off by {book['closure_uj']} uJ)"
        )
    for device in result.devices:
        fit = fit_json(device.fit)
        lag = (
            f"{device.lag.lag_s * 1e3:.0f} +- {device.lag.spread_s * 1e3:.0f} ms"
            if device.lag.known
            else "not resolved"
        )
        text.append(
            f"{device.curve.source}: lag {lag}; {fit['blocks']} blocks, residual {fit['residual_w']:.1f} W, condition"
            f" {fit['condition']:.0f}; prior: {fit['prior']}"
        )
        text += [
            f"    {term:16} {value:.4g} J  [{fit['interval90'][term][0]:.3g}, {fit['interval90'][term][1]:.3g}]"
            for term, value in fit["joules"].items()
        ]
    for name, row in out.get("workflow_classes", {}).items():
        if row.get("j_per_workflow") is not None:
            text.append(
                f"{name}: {row['workflows']} workflows, {row['requests']} requests,"
                f" {row['j_per_workflow']:.2f} J per workflow"
            )
    if out["truth_error"]:
        text.append(f"truth: median error {out['truth_error']['median']:.2%}, p95 {out['truth_error']['p95']:.2%}")
    for row in out.get("phases", []):
        text.append(
            " ".join([f"{row['phase']} {row['run'] if row['run'] is not None else row['kind']}:", *beside(row)])
        )
    if "carbon" in out:
        c = out["carbon"]
        text.append(f"{c['gco2e']:.3f} gCO2e at {c['grid_gco2e_per_kwh']} g/kWh ({c['grid_source']}), PUE {c['pue']}")
    for band in out.get("shares", []):
        for name, row in band["types"].items():
            text.append(f"share of {name} at rate {band['rate']}: {tested(row)}")
    return text + [f"note: {n}" for n in out["notes"]]


def beside(row: dict[str, Any]) -> list[str]:
    """Each prediction of a phase and how far it lies from the measurement."""
    measured = row["measured_uj"]
    text = [f"measured {measured / 1e6:.0f} J" if measured else "not measured"]
    for name in ("predicted", "held_out", "null", "planned"):
        value = row[f"{name}_uj"]
        off = f" ({value / measured - 1:+.1%})" if value is not None and measured else ""
        text.append(f"{name} {'-' if value is None else round(value / 1e6)}{off}")
    return text


def tested(row: dict[str, Any]) -> str:
    """A type's share against the regression."""
    if row["agrees"] is None:
        return f"{row['attributed_j']:.1f} J attributed; not testable (the regression is less certain than 3 %)"
    verdict = "agrees" if row["agrees"] else "DISAGREES"
    return (
        f"{row['attributed_j']:.1f} J attributed, {row['regressed_j']:.1f} +- {row['se_j']:.1f} J regressed: {verdict}"
    )
