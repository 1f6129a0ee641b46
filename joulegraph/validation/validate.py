"""The truth loop, whole: mixes, engines of truth, levels, policies, sensors, intervals, controls -> one report.

Seeds: TUNING seeds shaped the estimator and calibrate its intervals; figures come from EVALUATION seeds alone. The same
seeds give the same report. May not know: terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from energy.align import Lag
from energy.attribute import Attribution, attribute, with_policy
from joulegraph.validation.controls import CONTROLS, LAG_ERROR_S
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.runs import Synthetic, at_level, synthesise
from joulegraph.validation.score import TERCILES, Score, compare, conformal, covered
from joulegraph.validation.truths import TRUTHS, linear_profile

TUNING = (1, 2)
EVALUATION = (101, 202, 303)
NAIVE = ("equal", "time", "tokens", "output_tokens")
SENSORS = ("counter", "duty-cycled", "average-1s")
Say = Callable[[str], None]


def validate(say: Say, seeds: int = 1) -> dict[str, Any]:
    """Run everything; `failed` lists controls that did no damage and figures that do not close."""
    report: dict[str, Any] = {"seeds": {"tuning": list(TUNING), "evaluation": list(EVALUATION[:seeds])}}
    tuned = {(truth, mix): [_tuning(truth, mix, seed, say) for seed in TUNING] for truth in TRUTHS for mix in MIXES}
    scores: dict[tuple[str, str], list[Score]] = {}
    for truth, name in (("linear", "mixes"), ("independent", "independent")):
        report[name] = {}
        for mix in MIXES:
            runs = [_row(truth, mix, seed, say) for seed in EVALUATION[:seeds]]
            report[name][mix] = {k: _pooled([r[k] for r in runs]) for k in runs[0]}
            scores[truth, mix] = [r["L1"] for r in runs]
    report["sensors"] = {mode: {mix: _sensor(mode, mix, say) for mix in MIXES} for mode in SENSORS}
    report |= _overall(scores) | _coverage(tuned, scores)
    report["controls"] = {name: _control(name, say) for name in CONTROLS}
    failed = [name for name, damaged in report["controls"].items() if not damaged]
    report["failed"] = failed + (["closure"] if report["closure_uj"] else [])
    return report


def _made(truth: str, mix: str, seed: int) -> Synthetic:
    return TRUTHS[truth](MIXES[mix](seed), seed)


def _tuning(truth: str, mix: str, seed: int, say: Say) -> Score:
    run = _made(truth, mix, seed)
    say(f"calibrating intervals: {truth} {mix} seed {seed}")
    return compare(run, attribute(at_level(run.data, "L1"), level="L1"))


def _row(truth: str, mix: str, seed: int, say: Say) -> dict[str, Score]:
    run = _made(truth, mix, seed)
    out: dict[str, Score] = {}
    for level in ("L1", "L2", "L3"):
        result = attribute(at_level(run.data, level), level=level)
        out[level] = compare(run, result)
        if level == "L1":
            out |= {policy: compare(run, with_policy(result, policy)) for policy in (*NAIVE, "shapley")}
    errors = ", ".join(f"{k} {np.median(s.errors):.2%}" for k, s in out.items())
    say(f"{truth} {mix} seed {seed}: {errors}")
    return out


def _pooled(scores: list[Score]) -> dict[str, float]:
    errors = np.concatenate([s.errors for s in scores])
    return {"median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95))}


def _sensor(mode: str, mix: str, say: Say) -> dict[str, float]:
    seed = EVALUATION[0]
    run = synthesise(MIXES[mix](seed), linear_profile(seed), seed, mode=mode)  # type: ignore[arg-type]
    s = compare(run, attribute(at_level(run.data, "L1"), level="L1"))
    say(f"sensor {mode} {mix}: {np.median(s.errors):.2%}")
    return s.summary() | {"phase_error": s.phase_error}


def _overall(scores: dict[tuple[str, str], list[Score]]) -> dict[str, Any]:
    every = [s for many in scores.values() for s in many]
    linear = [s for (truth, _), many in scores.items() if truth == "linear" for s in many]
    return {
        "workflow_median": float(np.median(np.concatenate([s.workflow_errors for s in linear]))),
        "workflow_medians": {
            f"{truth}/{mix}": float(np.median(np.concatenate([s.workflow_errors for s in many])))
            for (truth, mix), many in scores.items()
        },
        "phase_error": max(s.phase_error for s in linear),
        "phase_errors": {f"{truth}/{mix}": max(s.phase_error for s in many) for (truth, mix), many in scores.items()},
        "closure_uj": sum(abs(s.closure_uj) for s in every),
    }


def _coverage(tuned: dict[tuple[str, str], list[Score]], scores: dict[tuple[str, str], list[Score]]) -> dict[str, Any]:
    """Each mix with the factor of the other mixes' tuning seeds; widths as the estimator ships them."""
    out: dict[str, float] = {}
    hits: list[tuple[Score, Any]] = []
    for mix in MIXES:
        factor = conformal([s for (_, other), many in tuned.items() if other != mix for s in many])
        mine = [s for (_, name), many in scores.items() if name == mix for s in many]
        hits += [(s, covered(s, factor)) for s in mine]
        out[mix] = float(np.mean(np.concatenate([covered(s, factor) for s in mine])))
    every = [s for many in scores.values() for s in many]
    return {
        "coverage90": out,
        "coverage_by": {
            kind: {
                name: float(np.mean(np.concatenate([h[getattr(s, kind) == k] for s, h in hits])))
                for k, name in enumerate(TERCILES)
                if any(np.any(getattr(s, kind) == k) for s, _ in hits)
            }
            for kind in ("length", "load")
        },
        "interval_width_median": float(np.median(np.concatenate([s.half_uj / s.active_uj for s in every]))),
    }


def _control(name: str, say: Say) -> bool:
    """True when the damage at least doubled the median error."""
    mix, damage = CONTROLS[name]
    seed = EVALUATION[0]
    run = _made("linear", mix, seed)
    whole = attribute(at_level(run.data, "L1"), level="L1")
    if damage is None:
        lag = whole.devices[0].lag
        hurt: Attribution = attribute(
            at_level(run.data, "L1"), level="L1", lag=Lag(lag.lag_s + LAG_ERROR_S, lag.spread_s, True)
        )
    else:
        hurt = attribute(at_level(damage(run, seed), "L1"), level="L1")
    before, after = compare(run, whole), compare(replace(run, data=run.data), hurt)
    ratio = float(np.median(after.errors) / max(np.median(before.errors), 1e-12))
    say(f"control {name}: median error x {ratio:.1f}")
    return ratio >= 2.0
