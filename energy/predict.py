"""Would the model have known? Energy of each phase of a run, predicted from what precedes it, beside what was measured.

predicted: coefficients fitted on the run before the phase, work of the phase as it was timed. held_out: coefficients
fitted on everything but the phase (for the pure phases of a designed experiment, which come before anything else).
null: mean busy power so far x busy seconds. planned: from the request list alone, durations predicted too, by stepping
a batch through the time model. May not know: how phases were made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energy.align import Lag
from energy.curve import Curve
from energy.fit import Fit, Profile, Spans, cells, fit_again, fit_energy, from_profile, spans_of
from energy.likeness import trusted
from energy.planning import planned_j
from energy.tables import Floats
from energy.timefit import fit_time
from energy.warmth import PACES_S, Warmth, cooled, leak_of, warmed_j, warmth
from energy.windows import Windows
from energy.work import WorkCurve
from traces.errors import UserError

SKIPPED = ("gap", "end", "idle", "warmup")
FEWEST = 8
"""spans with work before a phase that a fit must have; what they cannot tell the prior says"""
STATE_S = 0.5
"""a phase's states are means over so long"""
SURE = 0.05
"""relative standard error of a prediction above which a plan, whose durations rest on as little, is not given"""
APART, CLOSE_NS = 0.1, 200_000_000
"""readings around an end of a phase may lie this share of it apart, or so many ns, for the phase to be measured"""
AVERAGED_NS = 3_000_000_000
"""shorter phases are not measured by a 1 s average, which carries half a second in and out of them at each end"""


@dataclass(frozen=True, slots=True)
class Basis:
    """What predictions rest on: the curve, its lag, the work, the spans between counter nodes, and the warmth."""

    curve: Curve
    lag: Lag
    work: WorkCurve
    windows: Windows
    spans: Spans
    warmth: Warmth

    @classmethod
    def of(cls, curve: Curve, lag: Lag, work: WorkCurve, windows: Windows) -> Basis:
        """Spans and warmth at the lag found."""
        spans = spans_of(curve, work, windows.origin_ns, lag.lag_s)
        return cls(curve, lag, work, windows, spans, warmth(curve, windows.origin_ns, lag.lag_s))


@dataclass(frozen=True, slots=True)
class Learned:
    """Coefficients of work, and the watts that each watt of smoothed power costs later (energy.warmth)."""

    fit: Fit
    leak: Floats


def predict(basis: Basis, phases: list[dict[str, Any]], profile: Profile | None = None) -> list[dict[str, Any]]:
    """One row per phase with work in it; None with `why` where too little precedes it (a measured profile, given, then
    stands in). A last phase whose end nobody gave ends with the last answer. UserError where no phase meets a
    request."""
    w = basis.windows
    if not len(w):
        return []
    over = w.origin_ns + round(1e9 * float(w.last.max()))
    ended = [p if p["end_ns"] is not None else {**p, "end_ns": max(over, p["t_ns"])} for p in phases]
    if phases and (max(p["end_ns"] for p in ended) <= w.origin_ns or min(p["t_ns"] for p in ended) >= over):
        raise UserError(
            f"phases run from {ended[0]['t_ns']} to {max(p['end_ns'] for p in ended)} ns, requests from {w.origin_ns}"
            f" to {over} ns: none meets any; give both in ns of one monotonic clock"
        )
    seconds = fit_time(basis.work)
    return [_phase(basis, p, seconds, profile) for p in ended if p["phase"] not in SKIPPED and _busy(basis, p) > 0]


def _busy(basis: Basis, phase: dict[str, Any]) -> float:
    """Seconds of a phase in which something ran."""
    ends = [(phase[k] - basis.windows.origin_ns) / 1e9 for k in ("t_ns", "end_ns")]
    return float(np.diff(np.interp(ends, basis.work.t, basis.work.busy))[0])


def _phase(basis: Basis, phase: dict[str, Any], seconds: Floats, profile: Profile | None) -> dict[str, Any]:
    begin, end = ((phase[k] - basis.windows.origin_ns) / 1e9 for k in ("t_ns", "end_ns"))
    ends = [phase[k] + round(basis.lag.lag_s * 1e9) for k in ("t_ns", "end_ns")]
    lost = _lost(basis.curve, ends[0], ends[1])
    row: dict[str, Any] = {
        "phase": phase["phase"],
        "run": phase.get("run"),
        "kind": phase.get("kind", phase.get("n", phase.get("n_out"))),
        "measured_uj": round(basis.curve.between(ends[0], ends[1]).uj) if lost is None else None,
        **dict.fromkeys(("predicted_uj", "held_out_uj", "null_uj", "planned_uj", "sd_uj")),
    }
    spans = basis.spans
    before = spans.begin + spans.seconds <= begin + 1e-6
    held = _fitted(basis, spans.where(before | (spans.begin >= end)), seconds, begin, end, profile)
    if held is not None:
        row["held_out_uj"] = round(1e6 * sum(_energy(basis, held, begin, end)))
    past = basis.work.until(begin)
    times = fit_time(past) if len(past.t) > 1 else 0 * seconds
    earlier = _fitted(basis, spans.where(before), times, begin, end, profile)
    if earlier is None:
        return row | {"why": "; ".join(filter(None, (lost, "too little precedes this phase to fit on")))}
    of_work, of_warmth = _energy(basis, earlier, begin, end)
    row["predicted_uj"] = round(1e6 * (of_work + of_warmth))
    row["null_uj"] = round(1e6 * _null(spans.where(before), basis, phase)) if np.any(before) else None
    row["sd_uj"] = round(1e6 * _sd(basis, earlier.fit, begin, end))
    unsure = row["sd_uj"] / max(row["predicted_uj"], 1)
    if unsure <= SURE:
        row["planned_uj"] = round(
            1e6 * (planned_j(basis.windows, earlier.fit, begin, end, basis.work.tail_s) + of_warmth)
        )
        new = None
    else:
        new = f"what precedes this phase hardly had work like its: predicted within {unsure:.0%} (sd), not planned"
    why = "; ".join(filter(None, (lost, new)))
    return row | {"why": why} if why else row


def _lost(curve: Curve, begin_ns: int, end_ns: int) -> str | None:
    """Why the energy of an interval was not measured, None where it was."""
    if curve.between(begin_ns, end_ns).covered <= 0.99:
        return "the sensor does not cover this phase"
    if curve.source.endswith(".average") and end_ns - begin_ns < AVERAGED_NS:
        return "the sensor averages over a second, this phase is too short for it"
    close = max(CLOSE_NS, APART * (end_ns - begin_ns))
    if not all(curve.resolved(t) and _spacing(curve, t) <= close for t in (begin_ns, end_ns)):
        return "the sensor was not read around an end of this phase"
    return None


def _spacing(curve: Curve, t_ns: int) -> int:
    """ns between the readings around an instant."""
    k = int(np.clip(np.searchsorted(curve.t_ns, t_ns, "right") - 1, 0, len(curve.t_ns) - 2))
    return int(curve.t_ns[k + 1] - curve.t_ns[k])


def _fitted(
    basis: Basis, spans: Spans, seconds: Floats, begin: float, end: float, profile: Profile | None
) -> Learned | None:
    """What these spans say for a phase, None where too few of them had work; a profile then stands in."""
    busy = np.bincount(spans.span, spans.terms[:, 2], len(spans)) if len(spans) else np.zeros(0)
    if np.count_nonzero(busy > 0.1) < FEWEST:
        return None if profile is None else Learned(from_profile(profile), np.zeros(len(PACES_S)))
    leak = leak_of(basis.warmth, spans, sure=False)
    spans = cooled(spans, basis.warmth, leak)
    fit = fit_energy(spans, seconds, profile)
    if isinstance(fit, str):
        return None
    t = np.linspace(begin, end, max(2, round((end - begin) / STATE_S) + 1))
    terms = np.maximum(cells(basis.work, t), 0)
    return Learned(fit_again(replace(spans, trust=trusted(spans, fit, terms, np.diff(t))), fit, profile), leak)


def _energy(basis: Basis, known: Learned, begin: float, end: float) -> tuple[float, float]:
    """Joules of an interval: of its work on a board as warm as at first, and what warmth adds."""
    fit = known.fit
    grid = np.union1d(basis.work.coarse(begin, end), [begin, end])
    terms, cell_s = np.maximum(cells(basis.work, grid), 0), np.diff(grid)
    joules = fit.bend(terms, cell_s) * (terms @ fit.joules)
    return float(joules.sum()), warmed_j(basis.warmth, known.leak, grid, joules)


def _sd(basis: Basis, fit: Fit, begin: float, end: float) -> float:
    """Standard error of a prediction from its coefficients': what the work before could not tell apart."""
    terms = np.maximum(cells(basis.work, np.array([begin, end])), 0)[0]
    return float(np.sqrt(terms @ fit.covariance @ terms))


def _null(before: Spans, basis: Basis, phase: dict[str, Any]) -> float:
    total = before.summed(np.ones(len(before.cell_s)))
    idle_s, busy_s = total[:, 0] + total[:, 1], total[:, 2]
    quiet = busy_s < 0.02 * before.seconds
    idle_w = float(before.joules[quiet].sum() / before.seconds[quiet].sum()) if np.any(quiet) else 0.0
    power = float((before.joules.sum() - idle_w * idle_s.sum()) / max(busy_s.sum(), 1e-9))
    return power * _busy(basis, phase)
