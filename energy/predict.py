"""Would the model have known? Energy of each phase of a run, predicted from what precedes it, beside what was measured.

predicted: coefficients fitted on the run before the phase, work of the phase as it was timed. held_out: coefficients
fitted on everything but the phase (for the pure phases of a designed experiment, which come before anything else).
null: mean busy power so far x busy seconds. planned: from the request list alone, durations predicted too, by stepping
a batch through the time model. May not know: how phases were made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from energy.align import Lag
from energy.curve import Curve
from energy.fit import Fit, Profile, Spans, cells, fit_energy, spans_of
from energy.tables import Floats
from energy.timefit import fit_time
from energy.windows import Windows
from energy.work import WorkCurve
from traces.errors import UserError

SKIPPED = ("gap", "end", "idle", "warmup")
FEWEST = 8
"""spans with work before a phase that a fit must have; what they cannot tell the prior says"""
BUDGET = 8192
"""prompt tokens per step when planning; vLLM's default on cards of this class"""


@dataclass(frozen=True, slots=True)
class Basis:
    """What predictions rest on: the curve, its lag, the work, and the spans between counter nodes."""

    curve: Curve
    lag: Lag
    work: WorkCurve
    windows: Windows
    spans: Spans

    @classmethod
    def of(cls, curve: Curve, lag: Lag, work: WorkCurve, windows: Windows) -> Basis:
        """Spans at the lag found."""
        return cls(curve, lag, work, windows, spans_of(curve, work, windows.origin_ns, lag.lag_s))


def read_phases(document: Any, where: str) -> list[dict[str, Any]]:
    """Phases in order with their end (the next one's start where it is not given). UserError on another shape."""
    rows = document.get("phases") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "phase" in r and "t_ns" in r for r in rows):
        raise UserError(f"{where}: needs a list `phases` of objects with `phase` and `t_ns`; see docs/attribution.md")
    rows = sorted(rows, key=lambda r: int(r["t_ns"]))
    out = []
    for this, following in zip(rows, [*rows[1:], None], strict=True):
        end = this.get("end_ns", following["t_ns"] if following else None)
        out.append({**this, "end_ns": end})
    return out


def predict(basis: Basis, phases: list[dict[str, Any]], profile: Profile | None = None) -> list[dict[str, Any]]:
    """One row per phase with work in it; None with `why` where too little precedes it. A last phase whose end nobody
    gave ends with the last answer."""
    w = basis.windows
    over = w.origin_ns + round(1e9 * float(w.last.max())) if len(w) else None
    out = []
    for phase in phases:
        end = phase["end_ns"] if phase["end_ns"] is not None else over
        if phase["phase"] in SKIPPED or end is None or end <= int(phase["t_ns"]):
            continue
        out.append(_phase(basis, {**phase, "end_ns": end}, profile))
    return out


def _phase(basis: Basis, phase: dict[str, Any], profile: Profile | None) -> dict[str, Any]:
    origin = basis.windows.origin_ns
    begin, end = ((int(phase[k]) - origin) / 1e9 for k in ("t_ns", "end_ns"))
    lag_ns = round(basis.lag.lag_s * 1e9)
    measured = basis.curve.between(int(phase["t_ns"]) + lag_ns, int(phase["end_ns"]) + lag_ns)
    lost = _lost(basis.curve, *(int(phase[k]) + lag_ns for k in ("t_ns", "end_ns")))
    row: dict[str, Any] = {
        "phase": phase["phase"],
        "run": phase.get("run"),
        "kind": phase.get("kind", phase.get("n", phase.get("n_out"))),
        "measured_uj": round(measured.uj) if lost is None else None,
        **dict.fromkeys(("predicted_uj", "held_out_uj", "null_uj", "planned_uj")),
    }
    spans, seconds = basis.spans, basis.spans.seconds
    before = spans.begin + seconds <= begin + 1e-6
    apart = before | (spans.begin >= end)
    seconds_of = fit_time(basis.work)
    held = _fitted(spans.where(apart), seconds_of, profile)
    if held is not None:
        row["held_out_uj"] = round(1e6 * _energy(basis, held, begin, end))
    if lost is not None:
        row["why"] = lost
    earlier = _fitted(spans.where(before), _time_before(basis.work, begin), profile)
    if earlier is None:
        return row | {"why": "; ".join(filter(None, (lost, "too little precedes this phase to fit on")))}
    row["predicted_uj"] = round(1e6 * _energy(basis, earlier, begin, end))
    row["null_uj"] = round(1e6 * _null(spans.where(before), basis.work, begin, end))
    row["planned_uj"] = round(1e6 * _planned(basis, earlier, begin, end))
    return row


def _lost(curve: Curve, begin_ns: int, end_ns: int) -> str | None:
    """Why the energy of an interval was not measured, None where it was."""
    if curve.between(begin_ns, end_ns).covered <= 0.99:
        return "the sensor does not cover this phase"
    if not (curve.resolved(begin_ns) and curve.resolved(end_ns)):
        return "the sensor was not read around an end of this phase"
    return None


def _fitted(spans: Spans, seconds: Floats, profile: Profile | None) -> Fit | None:
    busy = np.bincount(spans.span, spans.terms[:, 2], len(spans)) if len(spans) else np.zeros(0)
    if np.count_nonzero(busy > 0.1) < FEWEST:
        return None
    fit = fit_energy(spans, seconds, profile)
    return None if isinstance(fit, str) else fit


def _time_before(work: WorkCurve, t: float) -> Floats:
    return fit_time(work.until(t))


def _energy(basis: Basis, fit: Fit, begin: float, end: float) -> float:
    grid = np.union1d(basis.work.t[(basis.work.t > begin) & (basis.work.t < end)], [begin, end])
    terms, cell_s = np.maximum(cells(basis.work, grid), 0), np.diff(grid)
    return float((fit.bend(terms, cell_s) * (terms @ fit.joules)).sum())


def _null(before: Spans, work: WorkCurve, begin: float, end: float) -> float:
    total = before.summed(np.ones(len(before.cell_s)))
    idle_s, busy_s = total[:, 0] + total[:, 1], total[:, 2]
    quiet = busy_s < 0.02 * before.seconds
    idle_w = float(before.joules[quiet].sum() / before.seconds[quiet].sum()) if np.any(quiet) else 0.0
    power = float((before.joules.sum() - idle_w * idle_s.sum()) / max(busy_s.sum(), 1e-9))
    busy = float(np.diff(np.interp([begin, end], work.t, work.busy))[0])
    return power * busy


def _planned(basis: Basis, fit: Fit, begin: float, end: float) -> float:
    """Step a batch through the phase's requests with the fitted times, prefill first come first served."""
    w = basis.windows
    mine = np.flatnonzero((w.sent >= begin) & (w.sent < end))
    order = mine[np.argsort(w.sent[mine], kind="stable")]
    arrivals = [(float(w.sent[i]), float(w.prefill[i]), float(w.cached[i]), float(w.decode[i])) for i in order]
    return _replay(arrivals, fit, begin, end, lambda terms, cell_s: float(_bent(fit, terms, cell_s)))


def _bent(fit: Fit, terms: Floats, cell_s: float) -> float:
    return float(fit.bend(terms[None, :], np.array([cell_s]))[0] * (terms @ fit.joules))


def _replay(
    arrivals: list[tuple[float, float, float, float]],
    fit: Fit,
    begin: float,
    end: float,
    energy: Callable[[Floats, float], float],
) -> float:
    now, total, idle = begin, 0.0, 0.0
    waiting: list[list[float]] = []  # [left to prefill, context, tokens to decode]
    decoding: list[list[float]] = []  # [left to decode, context]
    queue = arrivals[::-1]
    while queue or waiting or decoding:
        while queue and queue[-1][0] <= now:
            _, prefill, cached, decode = queue.pop()
            waiting.append([prefill, cached, decode])
        if not waiting and not decoding:
            idle += queue[-1][0] - now
            now = queue[-1][0]
            continue
        work = np.zeros(5)
        work[0], work[3] = 1.0, len(decoding)
        work[4] = sum(d[1] for d in decoding)
        for d in decoding:
            d[0] -= 1
            d[1] += 1
        budget = BUDGET - len(decoding)
        while waiting and budget >= 1:
            head = waiting[0]
            chunk = min(head[0], budget)
            work[1] += chunk
            work[2] += chunk * (head[1] + chunk / 2)
            head[0] -= chunk
            head[1] += chunk
            budget -= int(max(chunk, 1))
            if head[0] > 0:
                break
            waiting.pop(0)
            if head[2] > 0:
                decoding.append([head[2], head[1] + 1])
        decoding = [d for d in decoding if d[0] > 0]
        duration = max(float(work @ fit.seconds), 1e-5)
        total += energy(np.concatenate([[0.0, 0.0, duration], work]), duration)
        now += duration
    idle += max(0.0, end - now)
    return total + idle * float(fit.joules[0])
