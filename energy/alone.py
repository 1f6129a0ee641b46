"""Do prompts have the engine to themselves, or do sequences decode in the same steps? Nobody says it below L3.

Where both share a step, a first token comes out of the step that gave every decoding sequence a token: their reads
coincide with it as often as with each other. Where decodes stand still meanwhile, no read of theirs is near. The
coincidences of reads with one another are the measure, so that stamps that jitter blur both alike.
May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energy.reads import of_ranges
from energy.tables import Floats, Ints, RequestTable
from energy.windows import Windows

MOST_READS = 1_000_000
"""reads looked at: of the requests in the middle of the run"""
MOST_INSTANTS = 4000
FEWEST = 20
"""first tokens beside decoding sequences below which nothing is concluded"""
CALLED = 0.12
"""share of the coincidences that reads have with one another below which prompts are alone: stamps as late as a step is
long leave a fifth to a half of them, prompts that are alone next to none"""
LEAST = 0.7
MOST_SORTED = 20_000_000
"""beyond these the sort would cost more time than it is worth"""
NEAR = 0.5
"""reads this far apart, as a share of a short wait for a token, coincide"""


def prompts_alone(requests: RequestTable, work: Windows) -> bool:
    """Whether sequences that decode stand still while a prompt is computed; False where reads cannot tell."""
    some = _middle(work, np.diff(requests.read_start)[work.row])
    if not len(some):
        return False
    window, flat = _later_reads(requests, work.row[some])
    if len(flat) < FEWEST:
        return False
    t = (requests.read_ns[flat] - work.origin_ns) / 1e9
    begin, end = work.first[some], work.last[some]
    inner = window[1:] == window[:-1]
    wait = np.diff(t)[inner] / np.maximum(requests.read_tokens[flat][1:][inner], 1)
    if not len(wait):
        return False
    short = float(np.quantile(wait, 0.25))
    near = NEAR * short
    at = _some(work.first[some])
    ours = _coincide(t, at, begin, end, near, short, own=0.0)
    theirs = _coincide(t, _some(t), begin, end, near, short, own=1.0)
    if ours is None or theirs is None or theirs <= 0:
        return False
    return ours < CALLED * theirs


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
) -> float | None:
    """Reads within `near` of the instants, per sequence that decodes on both sides of them; own: reads of the instant
    itself and sequences that it belongs to, left out."""
    times, starts, ends = np.sort(t), np.sort(begin), np.sort(end)
    there = np.searchsorted(starts, at - 2 * short) - np.searchsorted(ends, at + short) - own
    ok = there > 0
    if np.count_nonzero(ok) < FEWEST:
        return None
    found = np.searchsorted(times, at[ok] + near) - np.searchsorted(times, at[ok] - near) - own
    return float(found.sum() / there[ok].sum())
