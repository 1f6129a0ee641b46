"""What a warm board draws more: leakage current grows with temperature, and temperature follows the power drawn before.

A run's later phases find a board 10 to 20 degrees warmer than its first; idle power then is 10 to 20 W higher, and busy
power as much, which coefficients of work cannot say. How much is learned where nothing else varies: from the idle
spans, whose power is compared with the board's power before them, smoothed over seconds (the die) and a minute (the
cooler). No temperature is needed. May not know: phases, requests, files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls
from scipy.signal import lfilter

from energy.curve import Curve
from energy.fit import Spans
from energy.tables import Floats

PACES_S = (5.0, 60.0)
"""time constants of what becomes warm: fits of an H100's temperature to its power put most of it at 1 to 5 s, the rest
at a minute or more"""
STEP_S, MOST = 0.25, 1_000_000
"""power is smoothed in steps this long, or as many as this"""
FEWEST = 16
"""idle spans without which nothing is said of warmth"""
MOST_LEAK = 0.12
"""watts for each watt drawn before; more is not leakage: 0.6 %/K of 250 W static power at 0.07 K/W, the upper
ends of ranges that boards were measured in, and a margin; an H100 was seen at 0.03 to 0.06"""


@dataclass(frozen=True, slots=True)
class Warmth:
    """Power smoothed over each of PACES_S (W, above that of the first moment) at t (s from the work's origin)."""

    t: Floats
    above: Floats
    first_w: float

    def at(self, t: Floats) -> Floats:
        """(n, paces) at instants, of the power before them alone."""
        return np.stack([np.interp(t, self.t, column) for column in self.above.T], 1)


def warmth(curve: Curve, origin_ns: int, lag_s: float) -> Warmth:
    """Of a sensor's curve. At the beginning the board is taken to have drawn for long what it draws then."""
    known = (curve.t_ns - origin_ns) / 1e9 - lag_s
    step_s = max(STEP_S, float(known[-1] - known[0]) / MOST)
    t = np.arange(known[0], max(known[-1], known[0] + 2 * step_s), step_s)
    power = np.maximum(np.diff(np.interp(t, known, curve.uj / 1e6)) / step_s, 0)
    above = np.stack([_smoothed(power - power[0], step_s / pace) for pace in PACES_S], 1)
    return Warmth(t, np.vstack([np.zeros(len(PACES_S)), above]), float(power[0]))


def _smoothed(power: Floats, step: float) -> Floats:
    gain = -np.expm1(-step)
    return np.asarray(lfilter([gain], [1, gain - 1], power), float)


def leak_of(warm: Warmth, spans: Spans, *, sure: bool) -> Floats:
    """Watts that each watt of smoothed power (PACES_S) costs now, from the idle ones of these spans; zeros where too
    few are idle, or what was found cannot be warmth. sure: also zeros where warmth explains them no better than two
    more parameters may by chance (Schwarz criterion). Shares want that, whose blocks are scaled to what was measured
    warm; a prediction of later does not: leaving warmth out errs always to one side."""
    terms = spans.summed(np.ones(len(spans.cell_s)))
    idle = terms[:, 2] < 0.02 * spans.seconds
    if np.count_nonzero(idle) < FEWEST:
        return np.zeros(len(PACES_S))
    before = warm.at(spans.begin[idle]) * spans.seconds[idle, None]
    # seconds of idle and of tail beside it: a board not yet at rest is not to pass for a warm one
    rest, joules = terms[idle, :2], spans.joules[idle]
    found, error = nnls(np.column_stack([rest, before]), joules)
    if found[2:].sum() > MOST_LEAK:
        return np.zeros(len(PACES_S))
    plain, n = nnls(rest, joules)[1], len(joules)
    if sure and 2 * n * np.log(max(plain, 1e-15) / max(error, 1e-15)) <= len(PACES_S) * np.log(n):
        return np.zeros(len(PACES_S))
    return np.asarray(found[2:])


def cooled(spans: Spans, warm: Warmth, leak: Floats) -> Spans:
    """The same spans without what warmth costs."""
    return replace(spans, joules=spans.joules - warm.at(spans.begin) @ leak * spans.seconds)


def warmed_j(warm: Warmth, leak: Floats, t: Floats, joules: Floats) -> float:
    """What warmth adds to cells between instants t that are to take these joules without it: from the power before
    t[0], which was measured, and from then on the cells' own."""
    if not np.any(leak):
        return 0.0
    state, more = warm.at(t[:1])[0], 0.0
    for seconds, cell_j in zip(np.diff(t), joules, strict=True):
        extra = max(float(state @ leak), -cell_j / seconds)
        more += extra * seconds
        gain = -np.expm1(-seconds / np.array(PACES_S))
        state = state + gain * (cell_j / seconds + extra - warm.first_w - state)
    return more
