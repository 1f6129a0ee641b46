"""Are the shares causal? Busy energy of many stretches of one load band, regressed on how many requests of each type
ran in them (no intercept), against the sum of `active` that attribution gave those types.

Where the regression itself is less certain than 3 % of a type's figure it cannot decide: "not testable". Solo runs are
no yardstick: a request alone pays for the whole step. May not know: how energy was split.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energy.predict import Basis
from energy.tables import Floats, Ints, Labels

TOLERANCE = 0.03
APART_S = 0.2
"""stretches are cut where nothing was in flight for so long"""
AROUND_S = 0.5
"""a stretch reaches so far into the quiet around it, half the gap at most: a sensor shows its ends early or late"""


def shares_check(
    basis: Basis, classes: Labels, active_uj: Ints, phases: list[dict[str, Any]], idle_w: float, tail_w: float
) -> list[dict[str, Any]]:
    """Per load band (the phases' `rate`) and type: regressed and attributed joules per request, standard error, verdict
    True | False | None (not testable)."""
    bands: dict[Any, list[tuple[float, float]]] = {}
    for phase in phases:
        if phase.get("rate") is not None and phase["end_ns"] is not None:
            span = tuple((int(phase[k]) - basis.windows.origin_ns) / 1e9 for k in ("t_ns", "end_ns"))
            bands.setdefault(phase["rate"], []).append((span[0], span[1]))
    out = []
    for rate, spans in sorted(bands.items(), key=lambda band: (isinstance(band[0], str), band[0])):
        stretches = [s for span in spans for s in _busy_stretches(basis, span)]
        out.append(
            {
                "rate": rate,
                "stretches": len(stretches),
                "types": _band(basis, classes, active_uj, stretches, idle_w, tail_w),
            }
        )
    return out


def _busy_stretches(basis: Basis, span: tuple[float, float]) -> list[tuple[float, float]]:
    """The phase cut where nothing was in flight: each stretch holds its requests whole."""
    w = basis.windows
    mine = np.flatnonzero((w.sent >= span[0]) & (w.sent < span[1]))
    if not len(mine):
        return []
    order = mine[np.argsort(w.sent[mine])]
    reach = np.maximum.accumulate(w.last[order])
    begin, end = w.sent[order][1:], reach[:-1]
    cut = np.flatnonzero(begin > end + APART_S) + 1
    middle = [span[0], *((begin + end)[cut - 1] / 2).tolist(), span[1]]
    return [
        (max(low, float(w.sent[p].min()) - AROUND_S), min(high, float(w.last[p].max()) + AROUND_S))
        for p, low, high in zip(np.split(order, cut), middle, middle[1:], strict=False)
    ]


def _band(
    basis: Basis, classes: Labels, active_uj: Ints, stretches: list[tuple[float, float]], idle_w: float, tail_w: float
) -> dict[str, dict[str, Any]]:
    w = basis.windows
    lag = basis.lag.lag_s
    x, y, given, lit = [], [], [], 0.0
    for begin, end in stretches:
        mine = w.row[(w.sent >= begin) & (w.sent < end)]
        codes = classes.codes[mine]
        known = codes >= 0
        x.append(np.bincount(codes[known], minlength=len(classes.names)))
        given.append(np.bincount(codes[known], active_uj[mine][known], len(classes.names)))
        edges = basis.curve.at(np.array([begin + lag, end + lag]) * 1e9 + w.origin_ns)
        _, busy, tail = (np.diff(v, axis=0) for v in basis.work.at(np.array([begin, end])))
        quiet = idle_w * (end - begin - busy[0] - tail[0]) + tail_w * tail[0]
        y.append((edges[1] - edges[0]) / 1e6 - quiet)
        lit += float(busy[0])
    if not x:
        return {}
    counts, joules = np.array(x, float), np.array(y)
    types = np.flatnonzero(counts.sum(0) > 0)
    blur_s = basis.lag.spread_s + float(np.median(basis.curve.bracket_ns)) / 1e9
    blur_j = blur_s * max(float(joules.sum()), 0.0) / max(lit, 1e-9)
    return _verdicts(
        counts[:, types], joules, np.array(given)[:, types] / 1e6, [classes.names[k] for k in types], blur_j
    )


FEW, CROOKED, LOOSE = (
    "too few stretches for so many types",
    "energy is not proportional to the counts here: a constant explains it better",
    "the regression is less certain than 3 %",
)


def _verdicts(
    counts: Floats, joules: Floats, given: Floats, names: list[str], blur_j: float
) -> dict[str, dict[str, Any]]:
    """blur_j: what a sensor may lose or gain at the ends of every stretch alike, which no scatter shows."""
    per_request = given.sum(0) / counts.sum(0)
    freedom = len(joules) - counts.shape[1]
    if freedom < 2 or np.linalg.matrix_rank(counts) < counts.shape[1]:
        return {
            n: {"attributed_j": float(a), "regressed_j": None, "se_j": None, "agrees": None, "why": FEW}
            for n, a in zip(names, per_request, strict=True)
        }
    beta, scatter = _regressed(counts, joules)
    alike = np.linalg.lstsq(counts, np.full(len(joules), blur_j), rcond=None)[0]
    se = np.hypot(scatter, alike)
    crooked = _crooked(counts, joules)
    out: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        sure = beta[k] > 0 and se[k] <= TOLERANCE * beta[k]
        near = abs(per_request[k] - beta[k]) <= max(TOLERANCE * beta[k], 2 * se[k])
        testable = sure and not crooked
        out[name] = {
            "attributed_j": float(per_request[k]),
            "regressed_j": float(beta[k]),
            "se_j": float(se[k]),
            "agrees": bool(near) if testable else None,
            **({} if testable else {"why": CROOKED if crooked else LOOSE}),
        }
    return out


def _regressed(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(coefficients, standard errors) of plain least squares."""
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ y
    residual = y - x @ beta
    return beta, np.sqrt(np.diag(inverse) * float(residual @ residual) / (len(y) - x.shape[1]))


def _crooked(counts: Floats, joules: Floats) -> bool:
    """Whether a constant belongs beside the counts, as where requests share most of what a stretch draws: then the
    counts' coefficients are no cost of a request. Stretches of equally many requests cannot tell."""
    x = np.column_stack([counts, np.ones(len(joules))])
    if len(joules) < x.shape[1] + 2 or np.linalg.matrix_rank(x) < x.shape[1]:
        return False
    beta, se = _regressed(x, joules)
    return bool(abs(beta[-1]) > max(2 * se[-1], TOLERANCE * float(joules.mean())))
