"""How far attribution lies from the truth of a synthetic run: per request, per workflow, per phase, and coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from energy.attribute import Attribution, attribute
from energy.policies import equal
from energy.tables import Floats, Ints
from energy.uncertainty import TERMS, widths
from joulegraph.validation.runs import Synthetic, at_level

TERCILES = ("low", "middle", "high")


@dataclass(frozen=True, slots=True)
class Score:
    """Relative errors per request; half_uj and error_uj for the intervals; phase_error as a share."""

    errors: Floats
    workflow_errors: Floats
    phase_error: float
    closure_uj: int
    error_uj: Floats
    half_uj: Floats
    terms: Floats
    """of the interval (energy.uncertainty.TERMS), a row per request"""
    active_uj: Floats
    length: Floats
    """tercile 0, 1, 2 by tokens of the request"""
    load: Floats
    """tercile 0, 1, 2 by requests in flight when it was sent"""

    def summary(self) -> dict[str, float]:
        """Median and p95 of the absolute relative error per request."""
        return {"median": float(np.median(self.errors)), "p95": float(np.quantile(self.errors, 0.95))}


def score(run: Synthetic, level: str, policy: str = "fitted", data: Any = None) -> Score:
    """Attribute at a level with a policy and compare. data: other tables than the run's own (negative controls)."""
    tables = at_level(run.data if data is None else data, level)
    return compare(run, attribute(tables, policy=policy, level=level))


def compare(run: Synthetic, result: Attribution) -> Score:
    """Errors of an attribution of the run's own requests."""
    figures = result.figures[0]
    active, truth = figures.active.sum(1).astype(float), run.truth.sum(1)
    good = truth > 0
    workflow = result.requests.workflow.codes
    n = len(result.requests.workflow.names)
    mine, theirs = np.bincount(workflow, active, n), np.bincount(workflow, truth, n)
    there = theirs > 0
    tokens = (result.requests.prompt + result.requests.completion).astype(float)
    crowd = _in_flight(result.requests.sent_ns, result.requests.end_ns)
    share = figures.active[:, 0].sum() / max(active.sum(), 1)
    half = (figures.high - figures.low).sum(1) / 2.0
    terms = _terms(result)
    return Score(
        errors=np.abs(active - truth)[good] / truth[good],
        workflow_errors=np.abs(mine - theirs)[there] / theirs[there],
        phase_error=abs(float(share - run.truth[:, 0].sum() / truth.sum())),
        closure_uj=int(result.totals["closure_uj"]),
        error_uj=np.abs(active - truth)[good],
        half_uj=half[good],
        terms=terms[good],
        active_uj=active[good],
        length=_terciles(tokens)[good],
        load=_terciles(crowd)[good],
    )


def _terciles(values: Floats) -> Floats:
    return np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values).astype(float)


def _in_flight(sent_ns: Ints, end_ns: Ints) -> Floats:
    started, ended = np.sort(sent_ns), np.sort(end_ns)
    return (np.searchsorted(started, sent_ns, "right") - np.searchsorted(ended, sent_ns, "right")).astype(float)


def _terms(result: Attribution) -> Floats:
    d, n = result.devices[0], len(result.requests)
    other = equal(d.rows, d.blocks, d.fit)
    found = widths(
        d.rows, d.blocks, d.fit, d.split, other, d.lag, d.curve.period_ns / 1e9, d.ledger.ratio, len(d.windows),
        again=d.windows.computed_again, told=d.work.told is not None,
    )  # fmt: skip
    out = np.zeros((n, len(TERMS)))
    out[d.windows.row] = found.terms
    return out
