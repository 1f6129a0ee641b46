"""How the power of a board fades after work: exponentially, from what it draws just after to what it draws at rest.

Clocks and voltage go down a while after the last kernel. A second of rest counts as tail by what is left of that, the
remainder as idle, so that tail and idle power each stand for one state of the board. How fast it fades is the board's:
of a few time constants the one that fits the run's energy best is taken. May not know: sensors, requests, files.
"""

from __future__ import annotations

import numpy as np

from energy.tables import Floats

TAIL_S = 0.5
"""time constant where nothing was measured"""
TAILS_S = (0.25, 0.5, 1.0, 2.0)
"""those tried: boards were recorded to take 0.3 to 2 s"""
BLURRED_S = 0.25
"""lag of a sensor from which on it averages over so long that what it smears would pass for a fading: none is looked
for then"""


def tried_s(lag_s: float) -> tuple[float, ...]:
    """Time constants that a sensor of this lag can tell apart; 0 is no fading."""
    return TAILS_S if lag_s < BLURRED_S else (0.0,)


def left_s(since: float, seconds: float, tail_s: float) -> float:
    """Of `seconds` of rest that begin `since` (s) after work: how many count as tail."""
    if tail_s <= 0:
        return 0.0
    return float(tail_s * np.exp(-since / tail_s) * -np.expm1(-seconds / tail_s))


def faded(t: Floats, start: Floats, end: Floats, tail_s: float) -> Floats:
    """Tail seconds so far at instants t, of work in disjoint intervals [start, end] in order."""
    if not len(end) or tail_s <= 0:
        return np.zeros(len(t))
    rest = np.append(start[1:] - end[:-1], np.inf)
    before = np.concatenate([[0.0], np.cumsum(-tail_s * np.expm1(-rest[:-1] / tail_s))])
    k = np.searchsorted(end, t, "right") - 1
    since = np.clip(t - end[k], 0.0, rest[k])
    return np.where(k >= 0, before[k] - tail_s * np.expm1(-since / tail_s), 0.0)
