"""Several sensors of one device: how far each is from the one whose energy is used.

A counter, the driver's ring and instantaneous power integrated over time should tell the same joules; by how much they
do not is the trust that a figure deserves: a reading that watches a quarter of the time is 47 % low where work is
locked to its period (docs/power.md). Pure. May not know: requests, files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from energy.curve import GAP_PERIODS, Curve

WINDOW_NS = 1_000_000_000
Mask = npt.NDArray[np.bool_]


def agreement(used: list[Curve], curves: list[Curve]) -> list[dict[str, Any]]:
    """For each other curve of a device and domain in `used`, over the whole seconds that both cover and know:
    {source, against, seconds, uj, against_uj, percent, window_percent}. percent: of the energy of all these seconds;
    window_percent: median size of the difference of one second. Estimates are set against nothing; nothing in common,
    no entry."""
    chosen = {(one.domain, one.device): one for one in used if not one.estimated}
    pairs = [(one, chosen.get((one.domain, one.device))) for one in curves if not one.estimated]
    found = [_beside(one, other) for one, other in pairs if other is not None and one.source != other.source]
    return [one for one in found if one is not None]


def _beside(one: Curve, other: Curve) -> dict[str, Any] | None:
    begin, end = max(one.t_ns[0], other.t_ns[0]), min(one.t_ns[-1], other.t_ns[-1])
    edges = np.arange(begin, end + 1, WINDOW_NS, dtype=np.int64)
    if len(edges) < 2:
        return None
    mine, theirs = np.diff(one.at(edges)), np.diff(other.at(edges))
    good = _known(one, edges) & _known(other, edges) & (theirs > 0)
    if not np.any(good):
        return None
    uj, against_uj = round(float(mine[good].sum())), round(float(theirs[good].sum()))
    return {
        "source": one.source,
        "against": other.source,
        "seconds": int(np.count_nonzero(good)),
        "uj": uj,
        "against_uj": against_uj,
        "percent": 100 * (uj / against_uj - 1),
        "window_percent": 100 * float(np.median(np.abs(mine[good] / theirs[good] - 1))),
    }


def _known(curve: Curve, edges: npt.NDArray[np.int64]) -> Mask:
    """Windows without a stretch whose energy is unknown, or that was not read: between the reads on its two sides lies
    a straight line, not what a gauge would have shown, nor when a counter's joules flowed."""
    known = np.ones(len(edges) - 1, bool)
    gap = np.diff(curve.t_ns) > GAP_PERIODS * curve.period_ns
    for k in np.flatnonzero(curve.broken | gap).tolist():
        known &= (edges[1:] <= curve.t_ns[k]) | (edges[:-1] >= curve.t_ns[k + 1])
    return known
