"""The run on one time axis: mean watts per device and how many requests waited or decoded, in bins.

Pure column work. May not know: files, plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from joulegraph.report.facts import Power, Request, Timeline

BINS = 400
MARGIN_NS = 2_000_000_000
SHORTEST_NS = 100_000_000
Floats = npt.NDArray[np.float64]


def timeline(requests: Sequence[Request], curves: Sequence[Any]) -> Timeline | None:
    """Bins over the whole run with a margin of 2 s where power was measured there; None when nothing was sent."""
    sent = [r for r in requests if r.sent_ns is not None]
    if not sent:
        return None
    start = min(r.sent_ns or 0 for r in sent)
    end = max(r.end_ns for r in sent)
    low = max(start - MARGIN_NS, min((int(c.t_ns[0]) for c in curves), default=start))
    high = min(end + MARGIN_NS, max((int(c.t_ns[-1]) for c in curves), default=end))
    low, high = min(low, start), max(high, end)
    coarse = max([SHORTEST_NS, (high - low) // BINS, *(2 * c.period_ns for c in curves)])
    count = max(1, -(-(high - low) // coarse))
    edges = low + coarse * np.arange(count + 1, dtype=np.int64)
    return Timeline(
        edges_s=tuple(((edges - start) / 1e9).tolist()),
        power=tuple(_power(c, edges) for c in curves),
        waiting=_mean_count(edges, [(r.sent_ns or 0, _first(r)) for r in sent]),
        decoding=_mean_count(edges, [(r.first_ns, r.end_ns) for r in sent if r.first_ns is not None]),
    )


def _first(r: Request) -> int:
    return r.first_ns if r.first_ns is not None else r.end_ns


def _power(curve: Any, edges: npt.NDArray[np.int64]) -> Power:
    """Mean watts per bin. A bin that reaches outside the measured span, or over a reset, is not measured."""
    uj = curve.at(edges)
    watts = np.diff(uj) / np.diff(edges) * 1e3
    known = (edges[:-1] >= curve.t_ns[0]) & (edges[1:] <= curve.t_ns[-1])
    for k in np.flatnonzero(curve.broken):
        known &= (edges[1:] <= curve.t_ns[k]) | (edges[:-1] >= curve.t_ns[k + 1])
    return Power(
        curve.device,
        curve.domain,
        tuple(float(w) if ok else None for w, ok in zip(watts, known, strict=True)),
        curve.simulated,
        curve.integrated,
    )


def _mean_count(edges: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Mean number of spans open per bin: integral of the count, exactly, over each bin."""
    if not spans:
        return (0.0,) * (len(edges) - 1)
    origin = int(edges[0])
    starts = np.sort(np.array([a for a, _ in spans], np.int64) - origin).astype(np.float64)
    ends = np.sort(np.array([max(a, b) for a, b in spans], np.int64) - origin).astype(np.float64)
    at = (edges - origin).astype(np.float64)
    area = _ramp(at, starts) - _ramp(at, ends)
    return tuple((np.diff(area) / np.diff(at)).tolist())


def _ramp(at: Floats, knots: Floats) -> Floats:
    """Sum over knots of max(0, at - knot)."""
    sums = np.concatenate([[0.0], np.cumsum(knots)])
    i = np.searchsorted(knots, at, "right")
    out: Floats = i * at - sums[i]
    return out
