"""Do prompts have the engine to themselves, or do sequences decode in the same steps? Nobody says it below L3.

Where both share a step, a first token comes out of the step that gave every decoding sequence a token: their reads
coincide with it as often as with each other. Where decodes stand still meanwhile, no read of theirs is near. The
coincidences of reads with one another are the measure, so that stamps that jitter blur both alike. Stamps as late as a
step is long leave it open: then the run is laid out both ways, and how well each explains the busy seconds counts too.
May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energy.overtaken import begun
from energy.reads import of_ranges
from energy.tables import Floats, Ints, RequestTable
from energy.timefit import misfit
from energy.windows import Windows, pace_of
from energy.work import WorkCurve, work_curve

MOST_READS = 1_000_000
"""reads looked at: of the requests in the middle of the run"""
MOST_INSTANTS = 4000
FEWEST = 20
"""first tokens beside decoding sequences below which nothing is concluded"""
CALLED, OPEN = 0.12, 0.5
"""shares of the coincidences that reads have with one another: below the first prompts are alone, above the second they
are not. Between them lie prompts that are alone by stamps as late as a step is long, and too few reads"""
LATE_ALONE, LATE_BESIDE = 0.25, 0.75
"""what stamps late by half a step to a whole one leave, of prompts that are alone and of others"""
LEAST = 0.7
MOST_SORTED = 20_000_000
"""beyond these the sort would cost more time than it is worth"""
NEAR = 0.5
"""reads this far apart, as a share of the usual wait for a token, coincide"""


def laid_out(
    requests: RequestTable, work: Windows, level: str, t0: float, t1: float
) -> tuple[Windows, WorkCurve, bool, list[str]]:
    """(windows, work from t0 to t1, whether prompts are alone, notes) of a run whose steps nobody told."""
    found, reads = coincidence(requests, work), len(requests.read_ns)
    if found is None or found[0] >= OPEN:
        return *_beside(requests, work, level, t0, t1), False, []
    if reads > MOST_SORTED:
        said = [f"{reads} reads, more than {MOST_SORTED}: prompts' begins are not looked for among them"]
        alone = found[0] < CALLED
        return work, work_curve(requests, work, None, t0, t1, alone=alone), alone, said if alone else []
    own = _alone(requests, work, level, t0, t1)
    if found[0] < CALLED:
        return *own, True, []
    beside = _beside(requests, work, level, t0, t1)
    alone = likelier_alone(*found, misfit(own[1]), misfit(beside[1]))
    return *(own if alone else beside), alone, []


def likelier_alone(share: float, expected: float, alone: tuple[float, int], beside: tuple[float, int]) -> bool:
    """Coincidences (their share of the `expected`, a Poisson count) and the fits of busy seconds (rms miss, cells) of
    both layouts, which have as many costs, weighed as likelihoods. Reads are not as independent as counts: they say at
    most as much as one parameter of the fits costs."""
    cells = max(min(alone[1], beside[1]), 2)
    counted = expected * (LATE_BESIDE - LATE_ALONE + share * np.log(LATE_ALONE / LATE_BESIDE))
    fitted = cells * np.log(beside[0] / alone[0]) if alone[0] > 0 and beside[0] > 0 else 0.0
    return bool(fitted + np.clip(counted, -np.log(cells), np.log(cells)) > 0)


def _alone(requests: RequestTable, work: Windows, level: str, t0: float, t1: float) -> tuple[Windows, WorkCurve]:
    found = after_reads(requests, work, pace_of(requests, work)) if level == "L1" else work
    return found, work_curve(requests, found, None, t0, t1, alone=True)


def _beside(requests: RequestTable, work: Windows, level: str, t0: float, t1: float) -> tuple[Windows, WorkCurve]:
    curve = work_curve(requests, work, None, t0, t1)
    found = begun(work, curve) if level == "L1" else work
    return found, curve if found is work else work_curve(requests, found, None, t0, t1)


def coincidence(requests: RequestTable, work: Windows) -> tuple[float, float] | None:
    """(reads near first tokens as a share of those that would be there if they were near as one another, how many that
    would be); None where reads cannot tell."""
    some = _middle(work, np.diff(requests.read_start)[work.row])
    if not len(some):
        return None
    window, flat = _later_reads(requests, work.row[some])
    if len(flat) < FEWEST:
        return None
    t = (requests.read_ns[flat] - work.origin_ns) / 1e9
    begin, end = work.first[some], work.last[some]
    inner = window[1:] == window[:-1]
    wait = np.diff(t)[inner] / np.maximum(requests.read_tokens[flat][1:][inner], 1)
    if not len(wait):
        return None
    short, usual = (float(q) for q in np.quantile(wait, (0.25, 0.5)))
    at = _some(work.first[some])
    ours = _coincide(t, at, begin, end, NEAR * usual, short, own=0.0)
    theirs = _coincide(t, _some(t), begin, end, NEAR * usual, short, own=1.0)
    if ours is None or theirs is None or theirs[0] <= 0:
        return None
    expected = theirs[0] / theirs[1] * ours[1]
    return ours[0] / expected, expected


def after_reads(requests: RequestTable, work: Windows, pace: float) -> Windows:
    """The windows of prompts that are alone begun no earlier than the last read of a decoding sequence before them: it
    came of a step in which nobody prefilled. pace: seconds per prompt token; a read later than LEAST of the time that
    its tokens take before a first token was late, and says nothing."""
    _, flat = _later_reads(requests, work.row)
    if not len(flat):
        return work
    t = np.sort((requests.read_ns[flat] - work.origin_ns) / 1e9)
    before = np.searchsorted(t, work.first - LEAST * work.prefill * pace, "left") - 1
    start = np.maximum(work.start, np.where(before >= 0, t[np.maximum(before, 0)], -np.inf))
    return replace(work, start=np.minimum(start, work.first - 1e-6))


def _middle(work: Windows, reads: Ints) -> Ints:
    """Windows of streamed requests in the middle of the run, by first token, whose reads are few enough."""
    some = np.flatnonzero((work.decode > 0) & (reads > 2))
    some = some[np.argsort(work.first[some], kind="stable")]
    total = np.cumsum(reads[some])
    if not len(some) or total[-1] <= MOST_READS:
        return some
    low = (total[-1] - MOST_READS) // 2
    return some[np.searchsorted(total, low) : np.searchsorted(total, low + MOST_READS)]


def _later_reads(requests: RequestTable, row: Ints) -> tuple[Ints, Ints]:
    """(position in row, index) of all reads but each request's first."""
    low, high = requests.read_start[row], requests.read_start[row + 1]
    return of_ranges(np.minimum(low + 1, high), high)


def _some(t: Floats) -> Floats:
    out: Floats = t[np.linspace(0, len(t) - 1, min(len(t), MOST_INSTANTS)).astype(int)]
    return out


def _coincide(
    t: Floats, at: Floats, begin: Floats, end: Floats, near: float, short: float, *, own: float
) -> tuple[float, float] | None:
    """(reads within `near` of the instants, sequences that decode on both sides of them), each summed over instants;
    own: reads of the instant itself and sequences that it belongs to, left out."""
    times, starts, ends = np.sort(t), np.sort(begin), np.sort(end)
    there = np.searchsorted(starts, at - 2 * short) - np.searchsorted(ends, at + short) - own
    ok = there > 0
    if np.count_nonzero(ok) < FEWEST:
        return None
    found = np.searchsorted(times, at[ok] + near) - np.searchsorted(times, at[ok] - near) - own
    return float(found.sum()), float(there[ok].sum())
