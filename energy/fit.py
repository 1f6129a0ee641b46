"""Coefficients of a run: joules per unit of work, by non-negative least squares on the run's own energy.

Joules between counter nodes (half a second) are regressed on idle, tail and busy seconds and the work. A board at its
power limit draws less than the sum of its parts: for predictions cells of 20 ms whose modelled power nears the limit
are bent towards it, and the limit is kept only if it explains the run better. Where the data cannot tell two terms
apart a weak prior decides: a saved profile of the same GPU and model when one is given, else "work draws the mean busy
power for the time it takes", the run's own power and time, nothing from any simulator. May not know: requests, files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
from scipy.optimize import nnls

from energy.curve import Curve, borders
from energy.powerlimit import CAPS, bent, sustained_w
from energy.tables import Floats, Ints, Mask
from energy.timefit import PREFILL, TIES
from energy.work import FEATURES, WorkCurve
from traces.errors import UserError

TERMS = ("idle_s", "tail_s", "busy_s", *FEATURES)
"""Regressors of energy; joules per unit each."""
LOOSE = 0.5
"""prior sd of each term's contribution, as a share of the mean energy of a span"""
FEWEST_FOR_LIMIT = 100
"""spans below which a run is too short to tell a power limit from chance"""
SPAN_NS = 500_000_000
STEPS_PER_SPAN = 10
"""engine steps that a span must hold, so that it is not made of lumps"""
MOST_SPANS = 2000


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured coefficients of a GPU and model, with their standard errors; cap_w inf where no limit was seen."""

    name: str
    joules: dict[str, float]
    sd: dict[str, float]
    seconds: dict[str, float]
    cap_w: float = inf
    provenance: str = ""


def profile_json(profile: Profile) -> dict[str, Any]:
    """A profile as its file has it."""
    row = asdict(profile)
    return {"kind": "energy-profile", "version": 1, **row, "cap_w": row["cap_w"] if isfinite(profile.cap_w) else None}


def read_profile(document: Any, where: str) -> Profile:
    """A profile from its file's object. UserError on another shape, or one made from a simulator."""
    if not isinstance(document, dict) or document.get("kind") != "energy-profile":
        raise UserError(f"{where}: not an energy profile; make one with joulegraph calibrate")
    if "simulated" in str(document.get("provenance", "")):
        raise UserError(f"{where}: comes from a simulated sensor; a simulator's profile is never a prior, measure one")
    cap = document.get("cap_w")
    return Profile(
        str(document["name"]), document["joules"], document["sd"], document["seconds"],
        inf if cap is None else float(cap), str(document.get("provenance", "")),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spans:
    """Energy between counter nodes and the work in cells between them: terms (cells, 8), seconds per cell, span of each
    cell; per span joules, seconds, begin (s from the work's origin)."""

    terms: Floats
    cell_s: Floats
    span: Ints
    joules: Floats
    seconds: Floats
    begin: Floats
    trust: Floats | None = None

    def __len__(self) -> int:
        return len(self.joules)

    def weight(self) -> Floats:
        """Of each span's row in a fit: a longer one is known better, but counts once."""
        even: Floats = 1 / np.sqrt(self.seconds / np.median(self.seconds))
        return even if self.trust is None else even * np.sqrt(self.trust)

    def where(self, keep: Mask) -> Spans:
        """Only the spans kept."""
        cells = keep[self.span]
        index = np.cumsum(keep) - 1
        return Spans(
            self.terms[cells], self.cell_s[cells], index[self.span[cells]],
            self.joules[keep], self.seconds[keep], self.begin[keep], None if self.trust is None else self.trust[keep],
        )  # fmt: skip

    def summed(self, factor: Floats) -> Floats:
        """Terms per span, each cell weighted."""
        n = len(self.joules)
        columns = [np.bincount(self.span, factor * self.terms[:, k], n) for k in range(self.terms.shape[1])]
        return np.stack(columns, 1).astype(float)


def joined(parts: list[Spans]) -> Spans:
    """Spans of several runs, one after another."""
    first = np.cumsum([0, *(len(p) for p in parts[:-1])])
    return Spans(
        np.concatenate([p.terms for p in parts]), np.concatenate([p.cell_s for p in parts]),
        np.concatenate([p.span + k for p, k in zip(parts, first, strict=True)]),
        np.concatenate([p.joules for p in parts]), np.concatenate([p.seconds for p in parts]),
        np.concatenate([p.begin for p in parts]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """joules per unit in TERMS order with standard deviations, seconds per unit in FEATURES order, condition number of
    the scaled regressors before the prior, rms residual (W), spans used, covariance, and the power limit seen."""

    joules: Floats
    sd: Floats
    seconds: Floats
    condition: float
    residual_w: float
    blocks: int
    prior: str
    covariance: Floats
    cap_w: float = inf

    def power_idle_w(self) -> float:
        """Idle power."""
        return float(self.joules[0])

    def bend(self, terms: Floats, cell_s: Floats) -> Floats:
        """Factor on each cell's energy near the power limit."""
        return bent(terms @ self.joules / np.maximum(cell_s, 1e-9), self.cap_w)

    def energy(self, spans: Spans) -> Floats:
        """Modelled joules per span."""
        return np.asarray(spans.summed(self.bend(spans.terms, spans.cell_s)) @ self.joules)


def cells(work: WorkCurve, t: Floats) -> Floats:
    """Terms of the cells between instants t (seconds from the work's origin)."""
    features, busy, tail = work.at(t)
    lit, after = np.diff(busy), np.diff(tail)
    idle = np.maximum(np.diff(t) - lit - after, 0)
    return np.column_stack([idle, after, lit, np.diff(features, axis=0)])


def span_ns(work: WorkCurve) -> int:
    """Length of spans: half a second, or as much as STEPS_PER_SPAN steps take (at most 3 s)."""
    steps, busy_s = float(work.features[-1, 0] - work.features[0, 0]), float(work.busy[-1] - work.busy[0])
    return int(np.clip(1e9 * STEPS_PER_SPAN * busy_s / steps, SPAN_NS, 3e9)) if steps > 0 else SPAN_NS


def spans_of(curve: Curve, work: WorkCurve, origin_ns: int, lag_s: float) -> Spans:
    """Spans of half a second between counter nodes; resets, gaps and what lies outside the work's grid are left out."""
    cut = borders(curve, span_ns(work))
    t = (curve.t_ns[cut] - origin_ns) / 1e9 - lag_s
    joules, seconds = np.diff(curve.uj[cut]) / 1e6, np.diff(t)
    good = (seconds > 0.1) & (seconds < 4.0) & (t[:-1] >= work.t[0]) & (t[1:] <= work.t[-1])
    good &= ~(np.add.reduceat(curve.broken, cut[:-1]) > 0)
    if np.count_nonzero(good) > MOST_SPANS:  # evenly spaced spans say as much as all
        keep = np.flatnonzero(good)[np.linspace(0, np.count_nonzero(good) - 1, MOST_SPANS).astype(int)]
        good = np.isin(np.arange(len(good)), keep)
    grid = np.union1d(work.coarse(float(t[0]), float(t[-1])), t)
    span = np.searchsorted(t, (grid[1:] + grid[:-1]) / 2) - 1
    whole = Spans(np.maximum(cells(work, grid), 0), np.diff(grid), span, joules, seconds, t[:-1])
    return whole.where(good)


def fit_energy(spans: Spans, seconds: Floats, profile: Profile | None = None, *, limited: bool = True) -> Fit | str:
    """Coefficients of a run, or the reason why there are none. limited: look for a power limit, which predictions near
    it need. Shares do not: what a limit (or a prefill beside decodes) saves is not saved by each in proportion, and on
    boards of known truth, limited or not, the straight fit divides two to four times better."""
    if len(spans) < 2:
        return "fewer than two spans with known energy"
    top = sustained_w(spans.begin, spans.seconds, spans.joules)
    tried = CAPS if limited and len(spans) >= FEWEST_FOR_LIMIT else CAPS[:1]
    limits = [c * top for c in tried] if profile is None else [profile.cap_w]
    plain = _settled(spans, seconds, profile, limits[0])
    best = plain
    for cap in limits[1:]:
        found = _settled(spans, seconds, profile, cap)
        if cap == limits[1] and found[2] > plain[2]:
            break  # not even the mildest explains anything: the board was never held there
        if _worth(found[2], plain[2], len(spans)) and found[2] < best[2]:
            best = found
    joules, factor, _, cap = best
    return _fit(spans, joules, factor, seconds, profile, cap)


def fit_again(spans: Spans, fit: Fit, profile: Profile | None = None) -> Fit:
    """Coefficients of spans that say unequally much, times and power limit as found from all alike."""
    joules, factor, _, cap = _settled(spans, fit.seconds, profile, fit.cap_w)
    return _fit(spans, joules, factor, fit.seconds, profile, cap)


def from_profile(profile: Profile) -> Fit:
    """A profile's coefficients as they are, for runs in which nothing was measured."""
    joules = np.array([profile.joules.get(t, 0.0) for t in TERMS])
    sd = np.array([profile.sd.get(t, 0.0) for t in TERMS])
    seconds = np.array([profile.seconds.get(f, 0.0) for f in FEATURES])
    name = f"profile {profile.name}, nothing measured"
    return Fit(joules, sd, seconds, 1.0, 0.0, 0, name, np.diag(sd**2), profile.cap_w)


def _worth(error: float, plain: float, n: int) -> bool:
    """Does one more parameter pay (Schwarz criterion, twice over: the limit bends every term)?"""
    return bool(n * np.log(max(plain, 1e-30) / max(error, 1e-30)) > 4 * np.log(n))


def _settled(spans: Spans, seconds: Floats, profile: Profile | None, cap: float) -> tuple[Floats, Floats, float, float]:
    """(joules, cell factors, squared error, cap): coefficients and bending in turn until they agree."""
    factor = np.ones(len(spans.cell_s))
    joules: Floats | None = None
    for _ in range(1 if not isfinite(cap) else 24):
        found = _solve(spans.summed(factor), spans, seconds, profile)
        joules = found if joules is None else 0.5 * (joules + found)
        factor = bent(spans.terms @ joules / np.maximum(spans.cell_s, 1e-9), cap)
    assert joules is not None
    residual = (spans.joules - spans.summed(factor) @ joules) / np.sqrt(spans.seconds)
    return joules, factor, float(residual @ residual), cap


def _solve(x: Floats, spans: Spans, seconds: Floats, profile: Profile | None) -> Floats:
    y, weight = spans.joules, spans.weight()
    prior, loose, _ = _prior(x, spans, seconds, profile)
    scale = np.maximum(np.sqrt((x * x).mean(0)), 1e-30)
    sigma = _noise(y)
    joules = prior
    for _ in range(3):  # noise and coefficients settle together
        a = np.vstack([x * weight[:, None] / sigma, np.diag(1 / loose)])
        joules = nnls(a / scale, np.concatenate([y * weight / sigma, prior / loose]))[0] / scale
        sigma = _sigma(y, x, joules, weight)
    return np.where((x * x).mean(0) > 0, joules, prior)


def _noise(y: Floats) -> float:
    return max(0.01 * float(np.mean(y)), 1e-9)


def _sigma(y: Floats, x: Floats, joules: Floats, weight: Floats) -> float:
    residual = (y - x @ joules) * weight
    return max(float(np.sqrt(residual @ residual / max(1, len(y) - x.shape[1]))), 1e-4 * float(np.mean(y)) + 1e-9)


def _fit(spans: Spans, joules: Floats, factor: Floats, seconds: Floats, profile: Profile | None, cap: float) -> Fit:
    x, y, length, weight = spans.summed(factor), spans.joules, spans.seconds, spans.weight()
    _, loose, name = _prior(x, spans, seconds, profile)
    rows = x * (weight / _sigma(y, x, joules, weight))[:, None]
    covariance = _inverse(rows.T @ rows + np.diag(1 / loose**2))
    live = (x * x).mean(0) > 0
    values = np.linalg.svd(x[:, live] / np.sqrt((x[:, live] ** 2).mean(0)), compute_uv=False)
    condition = float(values[0] / max(values[-1], 1e-300)) if len(values) else 1.0
    residual_w = float(np.sqrt(np.mean(((y - x @ joules) / length) ** 2)))
    return Fit(joules, np.sqrt(np.diag(covariance)), seconds, condition, residual_w, len(y), name, covariance, cap)


def _inverse(normal: Floats) -> Floats:
    d = 1 / np.sqrt(np.diag(normal))
    out: Floats = np.linalg.inv(normal * d[:, None] * d[None, :]) * d[:, None] * d[None, :]
    return out


def _prior(x: Floats, spans: Spans, seconds: Floats, profile: Profile | None) -> tuple[Floats, Floats, str]:
    """(mean, sd, name) of the prior of each term."""
    y, length, busy = spans.joules, spans.seconds, x[:, 2]
    power = y / length
    quiet = busy < 0.02 * length
    idle_w = float(np.median(power[quiet])) if np.any(quiet) else float(power.min())
    full = busy / length >= np.quantile(busy / length, 0.5)
    busy_w = float(max((y[full] - idle_w * (length - busy)[full]).sum() / max(busy[full].sum(), 1e-9), 0.0))
    prior = np.zeros(len(TERMS))
    prior[0], prior[1], prior[2] = idle_w, idle_w, min(idle_w, busy_w)
    prior[3:] = max(busy_w - prior[2], 0.0) * seconds
    typical = float(max(y.mean(), 1e-9))
    loose = LOOSE * typical / np.maximum(np.abs(x).mean(0), 1e-9)
    loose[0] = max(0.5 * idle_w, 1.0)
    loose[1] = max(0.5 * idle_w, 1.0)  # just after work, up to 1.8 times idle power was seen
    loose[2] = max(0.5 * busy_w, 1.0)
    token = prior[3 + PREFILL]
    for feature, ratio, sd in TIES if token > 0 else ():
        loose[3 + feature] = min(loose[3 + feature], max(sd, ratio) * token)
    if profile is None:
        return prior, loose, "this run's mean busy power for the time each unit of work takes"
    for k, term in enumerate(TERMS):
        if term in profile.joules:
            prior[k] = profile.joules[term]
            loose[k] = max(profile.sd.get(term, 0.0), 0.05 * prior[k], 1e-15)
    return prior, loose, f"profile {profile.name}"
