"""A board at its power limit: what it draws less than the sum of its parts, and where the limit can lie.

A limited board lowers its clock until its power, over a second or so, is the limit; for tenths of a second it draws
more. So a limit is looked for right above the highest power that was sustained, never above a passing peak: a limit
that far up mimics other savings, and lets a phase that no other comes near run past what the board can draw.
May not know: coefficients, requests, files.
"""

from __future__ import annotations

from math import inf, isfinite

import numpy as np

from energy.tables import Floats

KNEE = 8
"""how sharply power bends at the limit: p / (1 + (p / cap)^KNEE)^(1 / KNEE)"""
CAPS = (inf, 1.06, 1.04, 1.02, 1.0)
"""limits tried, as multiples of the highest sustained power, mildest first: work that wants 15 to 40 % more than the
limit bends to 96 to 99 % of it, so the limit of a board that was held there lies a few per cent above what it drew"""
SUSTAINED_S = 1.9
ODD = 4
"""windows of a run that may lie above what is called sustained: one wrong reading lies in that many"""


def bent(power: Floats, cap_w: float) -> Floats:
    """Ratio of bent to unbent power."""
    if not isfinite(cap_w):
        return np.ones(len(power))
    out: Floats = (1 + np.minimum(np.maximum(power, 0) / cap_w, 1e6) ** KNEE) ** (-1 / KNEE)
    return out


def sustained_w(begin: Floats, seconds: Floats, joules: Floats) -> float:
    """Highest mean power over about two seconds without a gap; of single spans where there is no such stretch."""
    time = np.concatenate([[0.0], np.cumsum(seconds)])
    energy = np.concatenate([[0.0], np.cumsum(joules)])
    first = np.arange(len(seconds))
    last = np.searchsorted(time, time[:-1] + SUSTAINED_S)
    whole = last <= len(seconds)
    first, last = first[whole], last[whole]
    close = begin[last - 1] + seconds[last - 1] - begin[first] < (time[last] - time[first]) + 0.05
    first, last = first[close], last[close]
    power = (energy[last] - energy[first]) / (time[last] - time[first]) if len(first) else joules / seconds
    return float(np.sort(power)[max(0, len(power) - 1 - ODD)])
