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
from energy.tables import Floats
from joulegraph.validation.controls import CONTROLS, LAG_ERROR_S
from joulegraph.validation.intervals import covered, learn
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.runs import Synthetic, at_level, synthesise
from joulegraph.validation.score import TERCILES, Score, compare, score
from joulegraph.validation.truths import TRUTHS, linear_profile

TUNING = (1, 2)
EVALUATION = (101, 202, 303)
NAIVE = ("equal", "time", "tokens", "output_tokens")
SENSORS = ("counter", "duty-cycled", "average-1s")
Say = Callable[[str], None]


def validate(say: Say, seeds: int = 1) -> dict[str, Any]:
    """Run everything; `failed` lists controls that did no damage and figures that do not close."""
    report: dict[str, Any] = {"seeds": {"tuning": list(TUNING), "evaluation": list(EVALUATION[:seeds])}}
    tuned = tuning_scores(say)
    scores: dict[tuple[str, str], list[Score]] = {}
    judged: dict[str, list[Score]] = {}
    for truth, name in (("linear", "mixes"), ("independent", "independent")):
        report[name] = {}
        for mix in MIXES:
            runs = [_row(truth, mix, seed, say) for seed in EVALUATION[:seeds]]
            report[name][mix] = {k: _pooled([r[k] for r in runs]) for k in runs[0]}
            scores[truth, mix] = [r["L1"] for r in runs]
            judged.setdefault(mix, []).extend(r[level] for r in runs for level in ("L1", "L3"))
    report["sensors"] = {mode: {mix: _sensor(mode, mix, say) for mix in MIXES} for mode in SENSORS}
    report |= _overall(scores) | _coverage(tuned, judged)
    report["controls"] = {name: _control(name, say) for name in CONTROLS}
    failed = [name for name, damaged in report["controls"].items() if not damaged]
    report["failed"] = failed + (["closure"] if report["closure_uj"] else [])
    return report


def _made(truth: str, mix: str, seed: int) -> Synthetic:
    return TRUTHS[truth](MIXES[mix](seed), seed)


def tuning_scores(say: Say) -> dict[str, list[Score]]:
    """Per mix: runs of both truths on the seeds that shaped the estimator, at L1 and at L3."""
    out: dict[str, list[Score]] = {}
    for mix in MIXES:
        for truth in TRUTHS:
            for seed in TUNING:
                run = _made(truth, mix, seed)
                say(f"calibrating intervals: {truth} {mix} seed {seed}")
                for level in ("L1", "L3"):
                    out.setdefault(mix, []).append(score(run, level))
    return out


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


def _coverage(tuned: dict[str, list[Score]], judged: dict[str, list[Score]]) -> dict[str, Any]:
    """Each mix with widths learned on the other mixes' tuning seeds."""
    hits: dict[str, list[tuple[Score, Floats]]] = {}
    widths: dict[str, list[Floats]] = {}
    for mix in MIXES:
        scale = learn([s for other, many in tuned.items() if other != mix for s in many])
        hits[mix] = [(s, covered(s, scale)) for s in judged[mix]]
        widths[mix] = [scale.half(s.terms) for s in judged[mix]]
    every = [pair for many in hits.values() for pair in many]
    return {
        "coverage90": {mix: _mean([h for _, h in many]) for mix, many in hits.items()},
        "coverage90_by_level": {
            level: {mix: _mean([h for s, h in many if _told(s) == (level == "L3")]) for mix, many in hits.items()}
            for level in ("L1", "L3")
        },
        "coverage_by": {
            kind: {
                name: _mean([h[getattr(s, kind) == k] for s, h in every])
                for k, name in enumerate(TERCILES)
                if any(np.any(getattr(s, kind) == k) for s, _ in every)
            }
            for kind in ("length", "load")
        },
        "interval_width_median": float(np.median(np.concatenate([w for many in widths.values() for w in many]))),
        "interval_widths": {mix: float(np.median(np.concatenate(many))) for mix, many in widths.items()},
    }


def _mean(parts: list[Floats]) -> float:
    return float(np.mean(np.concatenate(parts)))


def _told(s: Score) -> bool:
    return bool(s.terms[0, -1] > 0)


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
