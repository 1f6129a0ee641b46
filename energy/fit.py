"""Coefficients of a run: seconds and joules per unit of work, by non-negative least squares on the run's own blocks.

Two regressions. Time: busy seconds of a cell on its work (what each unit of work takes), which thousands of cells
resolve. Energy: joules of a block on idle, tail and busy seconds and the work. Where the blocks cannot tell two terms
apart, a weak prior decides: a saved profile of the same GPU and model when one is given, else "work draws the mean busy
power for the time it takes", the run's own measured power and time, nothing from any simulator.
May not know: requests, files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from energy.model import Blocks
from energy.tables import Floats, Mask
from energy.work import FEATURES, WorkCurve

TERMS = ("idle_s", "tail_s", "busy_s", *FEATURES)
"""Regressors of a block's energy; joules per unit each."""
LOOSE = 0.5
"""prior sd of each term's contribution, as a share of the mean busy energy of a block"""


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured coefficients of a GPU and model, with their standard errors (0 where the prior alone decides)."""

    name: str
    joules: dict[str, float]
    sd: dict[str, float]
    seconds: dict[str, float]
    provenance: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """joules per unit in TERMS order with standard deviations, seconds per unit in FEATURES order, condition number of
    the scaled regressors before the prior, rms residual (W), blocks used, covariance for the bootstrap."""

    joules: Floats
    sd: Floats
    seconds: Floats
    condition: float
    residual_w: float
    blocks: int
    prior: str
    covariance: Floats

    def power_idle_w(self) -> float:
        """Idle power."""
        return float(self.joules[0])


def fit_time(curve: WorkCurve, cell_s: float = 0.25) -> Floats:
    """Seconds per unit of work in FEATURES order, from cells of cell_s in which something ran."""
    t = np.arange(curve.t[0], curve.t[-1] + 1e-9, max(cell_s, float(curve.t[1] - curve.t[0])))
    if len(t) < 3:
        return np.zeros(len(FEATURES))
    features, busy, _ = curve.at(t)
    x, y = np.diff(features, axis=0), np.diff(busy)
    keep = y > 1e-6
    x, y = x[keep], y[keep]
    if not len(y):
        return np.zeros(len(FEATURES))
    scale = np.maximum(x.mean(0), 1e-30)
    ridge = 0.02 * np.sqrt(len(y)) * float(y.mean())
    a = np.vstack([x / scale, ridge * np.eye(x.shape[1]) / x.shape[1]])
    b = np.concatenate([y, np.zeros(x.shape[1])])
    out: Floats = nnls(a, b)[0] / scale * (x.mean(0) > 0)
    return out


def design(blocks: Blocks) -> Floats:
    """Regressors in TERMS order, one row per block."""
    return np.column_stack([blocks.idle, blocks.tail, blocks.busy, blocks.work])


def fit_energy(blocks: Blocks, seconds: Floats, profile: Profile | None = None, *, noise_w: float = 1.0) -> Fit | str:
    """Coefficients of the usable blocks, or the reason why there are none."""
    use = blocks.usable & (blocks.seconds > 0)
    if np.count_nonzero(use) < 2:
        return "fewer than two blocks with known energy"
    x, y = design(blocks)[use], blocks.uj[use] / 1e6
    length = blocks.seconds[use]
    weight = 1 / np.sqrt(length / np.median(length))
    prior, loose, name = _prior(x, y, blocks, use, seconds, profile)
    scale = np.maximum(np.sqrt((x * x).mean(0)), 1e-30)
    live = (x * x).mean(0) > 0
    sigma = max(noise_w * float(np.median(length)), 1e-9)
    joules = prior.copy()
    for _ in range(4):  # noise and coefficients settle together
        a = np.vstack([x * weight[:, None] / sigma, np.diag(1 / loose)])
        b = np.concatenate([y * weight / sigma, prior / loose])
        joules = _nnls(a, b, scale)
        residual = (y - x @ joules) * weight
        freedom = max(1, len(y) - int(live.sum()))
        sigma = max(float(np.sqrt(residual @ residual / freedom)), 1e-4 * float(np.mean(y)) + 1e-9)
    joules = np.where(live, joules, prior)
    normal = (x * (weight / sigma)[:, None]).T @ (x * (weight / sigma)[:, None]) + np.diag(1 / loose**2)
    covariance = _inverse(normal)
    unit = x[:, live] / scale[live]
    values = np.linalg.svd(unit, compute_uv=False)
    condition = float(values[0] / max(values[-1], 1e-300))
    residual_w = float(np.sqrt(np.mean(((y - x @ joules) / length) ** 2)))
    return Fit(joules, np.sqrt(np.diag(covariance)), seconds, condition, residual_w, len(y), name, covariance)


def _nnls(a: Floats, b: Floats, scale: Floats) -> Floats:
    out: Floats = nnls(a / scale, b)[0] / scale
    return out


def _inverse(normal: Floats) -> Floats:
    d = 1 / np.sqrt(np.diag(normal))
    out: Floats = np.linalg.inv(normal * d[:, None] * d[None, :]) * d[:, None] * d[None, :]
    return out


def _prior(
    x: Floats,
    y: Floats,
    blocks: Blocks,
    use: Mask,
    seconds: Floats,
    profile: Profile | None,
) -> tuple[Floats, Floats, str]:
    """(mean, sd, name) of the prior of each term."""
    length, busy = blocks.seconds[use], blocks.busy[use]
    power = y / length
    quiet = busy < 0.02 * length
    idle_w = float(np.median(power[quiet])) if np.any(quiet) else float(power.min())
    share = busy / length
    full = share >= np.quantile(share, 0.5)
    busy_w = float(max((y[full] - idle_w * (length - busy)[full]).sum() / max(busy[full].sum(), 1e-9), 0.0))
    prior = np.zeros(len(TERMS))
    prior[0], prior[1], prior[2] = idle_w, idle_w, min(idle_w, busy_w)
    prior[3:] = max(busy_w - prior[2], 0.0) * seconds
    typical = float(max(y.mean(), 1e-9))
    loose = LOOSE * typical / np.maximum(np.abs(x).mean(0), 1e-12)
    loose[0] = max(0.5 * idle_w, 1.0)
    loose[1] = max(0.2 * idle_w, 1.0)  # a tail of seconds cannot say much of itself
    loose[2] = max(0.5 * busy_w, 1.0)
    if profile is None:
        return prior, loose, "this run's mean busy power for the time each unit of work takes"
    for k, term in enumerate(TERMS):
        if term in profile.joules:
            prior[k] = profile.joules[term]
            loose[k] = max(profile.sd.get(term, 0.0), 0.05 * prior[k], 1e-15)
    return prior, loose, f"profile {profile.name}"
