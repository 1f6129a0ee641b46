"""How much each part of a run says about a phase: more, the more alike their work is.

Costs are linear only nearly: a token costs less beside many others, a burst of prompts less than a stretch of them. So
coefficients for a phase are fitted once more with what ran near its states counted in full, the rest by a tenth, which
keeps what only the rest can tell apart. States are watts by term, near is a share of what the board draws at most.
May not know: sensors, requests, files.
"""

from __future__ import annotations

import numpy as np

from energy.fit import Fit, Spans
from energy.powerlimit import sustained_w
from energy.tables import Floats

NEAR = 0.2
"""of the highest sustained power: states this far apart, in watts by term, are half alike"""
REST = 0.1
"""what a span says whose state is nowhere near"""
MOST = 200
"""states of a phase that are looked at"""


def trusted(spans: Spans, fit: Fit, terms: Floats, seconds: Floats) -> Floats:
    """Weight of each span (REST to 1) for a phase with these terms in cells of these lengths."""
    lit = np.flatnonzero(terms[:, 2] > 0.5 * seconds)
    if not len(lit):
        return np.ones(len(spans))
    lit = lit[np.linspace(0, len(lit) - 1, min(len(lit), MOST)).astype(int)]
    theirs = spans.summed(np.ones(len(spans.cell_s))) * fit.joules / spans.seconds[:, None]
    mine = terms[lit] * fit.joules / seconds[lit, None]
    width = NEAR * sustained_w(spans.begin, spans.seconds, spans.joules)
    apart = (theirs**2).sum(1)[:, None] + (mine**2).sum(1)[None, :] - 2 * theirs @ mine.T
    alike: Floats = np.exp(-np.maximum(apart, 0) / (2 * max(width, 1e-9) ** 2)).mean(1)
    return np.asarray(REST + (1 - REST) * alike / max(float(alike.max()), 1e-9))
