"""The truth loop, whole: mixes, engines of truth, levels, policies, sensors, intervals, controls -> one report.

Seeds: TUNING seeds shaped the estimator and its intervals; figures come from EVALUATION seeds alone. Coverage of a mix,
or of a card, is that of widths learned without it (left_out). The same seeds give the same report, on any number of
cores. May not know: terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from energy.align import Lag
from energy.attribute import Attribution, attribute, with_policy
from joulegraph.validation.controls import CONTROLS, LAG_ERROR_S
from joulegraph.validation.cores import cores, results
from joulegraph.validation.intervals import covered
from joulegraph.validation.left_out import LEFT_OUT
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.roofline.boards import CARDS
from joulegraph.validation.runs import Synthetic, at_level, synthesise
from joulegraph.validation.score import TERCILES, Score, compare, score
from joulegraph.validation.truths import TRUTHS, linear_profile
from joulegraph.validation.tuning import LEVELS, TUNING
from joulegraph.validation.worlds import world, world_seed

EVALUATION = (101, 202, 303)
DEFAULT_SEEDS = 3
"""A seed is one board and one client: what share of a mix lies within its intervals differs from one to the next"""
NAMES = {"linear": "mixes", "independent": "independent"}
"""truths, and what their table is called"""
NAIVE = ("equal", "time", "tokens", "output_tokens")
SENSORS = ("counter", "duty-cycled", "average-1s")
Say = Callable[[str], None]
Held = dict[str, dict[str, list[Score]]]
"""scores of a mix or card, by level"""


def validate(say: Say, seeds: int = DEFAULT_SEEDS) -> dict[str, Any]:
    """Run everything; `failed` lists controls that did no damage and figures that do not close."""
    used = EVALUATION[:seeds]
    report: dict[str, Any] = {"seeds": {"tuning": list(TUNING), "evaluation": list(used)}}
    with cores() as pool:
        rows = {run: pool.submit(_row, *run) for run in product(TRUTHS, MIXES, used)}
        sensors = {both: pool.submit(_sensor, *both) for both in product(SENSORS, MIXES)}
        worlds = {one: pool.submit(_world, *one) for card in CARDS for one in _worlds(card, used)}
        controls = {name: pool.submit(_control, name) for name in CONTROLS}
        scored, sensed, seen, damaged = (results(asked, say) for asked in (rows, sensors, worlds, controls))
    scores = {(t, m): [scored[t, m, seed]["L1"] for seed in used] for t, m in product(TRUTHS, MIXES)}
    judged = {m: _by_level([scored[t, m, seed] for t, seed in product(TRUTHS, used)]) for m in MIXES}
    cards = {card: _by_level([seen[one] for one in _worlds(card, used)]) for card in CARDS}
    for truth, name in NAMES.items():
        of = {mix: [scored[truth, mix, seed] for seed in used] for mix in MIXES}
        report[name] = {mix: {k: _pooled([r[k] for r in runs]) for k in runs[0]} for mix, runs in of.items()}
    report["sensors"] = {mode: {mix: sensed[mode, mix] for mix in MIXES} for mode in SENSORS}
    report |= _overall(scores) | _coverage(judged) | _cards(cards) | {"controls": damaged}
    failed = [name for name, did in damaged.items() if not did]
    report["failed"] = failed + (["closure"] if report["closure_uj"] else [])
    return report


def _by_level(runs: list[dict[str, Score]]) -> dict[str, list[Score]]:
    return {level: [run[level] for run in runs] for level in LEVELS}


def _made(truth: str, mix: str, seed: int) -> Synthetic:
    return TRUTHS[truth](MIXES[mix](seed), seed)


def _row(truth: str, mix: str, seed: int) -> tuple[dict[str, Score], str]:
    """Scores of one run by level and policy."""
    run = _made(truth, mix, seed)
    out: dict[str, Score] = {}
    for level in LEVELS:
        result = attribute(at_level(run.data, level), level=level)
        out[level] = compare(run, result)
        if level == "L1":
            out |= {policy: compare(run, with_policy(result, policy)) for policy in (*NAIVE, "shapley")}
    errors = ", ".join(f"{k} {np.median(s.errors):.2%}" for k, s in out.items())
    return out, f"{truth} {mix} seed {seed}: {errors}"


def _pooled(scores: list[Score]) -> dict[str, float]:
    errors = np.concatenate([s.errors for s in scores])
    return {"median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95))}


def _sensor(mode: str, mix: str) -> tuple[dict[str, float], str]:
    seed = EVALUATION[0]
    run = synthesise(MIXES[mix](seed), linear_profile(seed), seed, mode=mode)  # type: ignore[arg-type]
    s = compare(run, attribute(at_level(run.data, "L1"), level="L1"))
    return s.summary() | {"phase_error": s.phase_error}, f"sensor {mode} {mix}: {np.median(s.errors):.2%}"


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


def _coverage(judged: Held) -> dict[str, Any]:
    """Each mix with widths learned without it."""
    every = [(s, covered(s, LEFT_OUT[mix])) for mix in MIXES for s in _all(judged[mix])]
    widths = {mix: np.concatenate([LEFT_OUT[mix].half(s.terms) for s in _all(judged[mix])]) for mix in MIXES}
    return {
        "coverage90": {mix: _share(_all(judged[mix]), mix) for mix in MIXES},
        "coverage90_by_level": {lv: {mix: _share(judged[mix][lv], mix) for mix in MIXES} for lv in LEVELS},
        "coverage_by": {
            kind: {
                name: float(np.mean(np.concatenate([h[getattr(s, kind) == k] for s, h in every])))
                for k, name in enumerate(TERCILES)
                if any(np.any(getattr(s, kind) == k) for s, _ in every)
            }
            for kind in ("length", "load")
        },
        "interval_width_median": float(np.median(np.concatenate(list(widths.values())))),
        "interval_widths": {mix: float(np.median(w)) for mix, w in widths.items()},
    }


def _worlds(card: str, seeds: tuple[int, ...]) -> list[tuple[str, str, int]]:
    """Card, mix and seed of its worlds: two mixes a seed; together the cards see each mix."""
    names, first = list(MIXES), list(CARDS).index(card)
    return [(card, names[(first + k + more) % len(names)], seed) for k, seed in enumerate(seeds) for more in (0, 4)]


def _world(card: str, mix: str, seed: int) -> tuple[dict[str, Score], str]:
    """Scores of one world by level."""
    one = world_seed(card, mix, seed)
    run = world(MIXES[mix](one), card, one)
    out = {level: score(run, level) for level in LEVELS}
    errors = ", ".join(f"{k} {np.median(s.errors):.2%}" for k, s in out.items())
    return out, f"{card} {mix} seed {seed}: {errors}"


def _cards(found: Held) -> dict[str, Any]:
    """Each card with widths learned without it."""
    return {
        "coverage90_by_card": {card: _share(_all(of), card) for card, of in found.items()},
        "cards": {
            card: {
                level: _pooled(runs)
                | {
                    "coverage90": _share(runs, card),
                    "interval_width_median": float(
                        np.median(np.concatenate([LEFT_OUT[card].half(s.terms) for s in runs]))
                    ),
                }
                for level, runs in of.items()
            }
            for card, of in found.items()
        },
    }


def _all(of: dict[str, list[Score]]) -> list[Score]:
    return [s for runs in of.values() for s in runs]


def _share(runs: list[Score], left_out: str) -> float:
    """Of the requests of these runs, how many lie within widths learned without a mix or card."""
    return float(np.mean(np.concatenate([covered(s, LEFT_OUT[left_out]) for s in runs])))


def _control(name: str) -> tuple[bool, str]:
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
    return ratio >= 2.0, f"control {name}: median error x {ratio:.1f}"
