"""Where the work lay in time: the cumulative work of the engine, from windows, reads and (L3) the iteration stream.

`WorkCurve` has cumulative features on a fine grid, for lag, time and energy fits. May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from energy.tables import Floats, Ints, RequestTable, StepTable
from energy.windows import Windows

TAIL_NS = 2_000_000_000
MOST_PARTS = 16
LONGEST_STEP_S = 0.5
"""a longer wait for one token was not all work on it"""
FEATURES = ("steps", "prefill", "prefill_context", "decode", "context")
"""engine steps; prompt tokens computed; sum over them of the context before each; tokens computed in decode, those of
drafts among them; context read, once per sequence and step"""


@dataclass(frozen=True, slots=True)
class Told:
    """Steps as the engine's stream has them: end (s), duration (s) and work in FEATURES order, one row each."""

    end: Floats
    seconds: Floats
    work: Floats

    def until(self, t: float) -> Told:
        """Only the steps that ended by t."""
        keep = self.end <= t
        return Told(self.end[keep], self.seconds[keep], self.work[keep])


@dataclass(frozen=True, slots=True)
class WorkCurve:
    """Cumulative work at instants t (seconds from the windows' origin): features[:, k] in FEATURES order, busy and tail
    seconds, share[:, phase] = integral over steps of what one sequence in prefill (0) or decode (1) pays of them."""

    t: Floats
    features: Floats
    busy: Floats
    tail: Floats
    share: Floats
    told: Told | None = None

    def until(self, t: float) -> WorkCurve:
        """What precedes t."""
        k = self.t <= t
        told = None if self.told is None else self.told.until(t)
        return WorkCurve(self.t[k], self.features[k], self.busy[k], self.tail[k], self.share[k], told)

    def at(self, t: Floats) -> tuple[Floats, Floats, Floats]:
        """(features, busy, tail) interpolated."""
        columns = [np.interp(t, self.t, self.features[:, k]) for k in range(self.features.shape[1])]
        return np.stack(columns, 1), np.interp(t, self.t, self.busy), np.interp(t, self.t, self.tail)


def spread(at: Floats, start: Floats, end: Floats, amount: Floats) -> Floats:
    """Cumulative total at instants `at` of amounts laid evenly over [start, end]."""
    rate = amount / np.maximum(end - start, 1e-9)
    return _ramp(at, start, rate) - _ramp(at, end, rate)


def _ramp(at: Floats, knot: Floats, rate: Floats) -> Floats:
    order = np.argsort(knot, kind="stable")
    k, r = knot[order], rate[order]
    total = np.concatenate([[0.0], np.cumsum(r)])
    moment = np.concatenate([[0.0], np.cumsum(r * k)])
    i = np.searchsorted(k, at, "right")
    out: Floats = total[i] * at - moment[i]
    return out


def union(start: Floats, end: Floats) -> tuple[Floats, Floats]:
    """Disjoint intervals that cover the same time, in order."""
    if not len(start):
        return start, end
    order = np.argsort(start, kind="stable")
    s, reach = start[order], np.maximum.accumulate(end[order])
    new = np.concatenate([[True], s[1:] > reach[:-1]])
    return s[new], reach[np.concatenate([np.flatnonzero(new)[1:] - 1, [len(s) - 1]])]


def read_slices(requests: RequestTable, row: Ints, size: int = 400_000) -> list[tuple[int, int]]:
    """Ranges of window indices whose reads stay below `size`, so that temporaries stay small."""
    counts = (requests.read_start[row + 1] - requests.read_start[row]).cumsum()
    cuts = [0]
    while cuts[-1] < len(row):
        base = counts[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(counts, base + size, "right"))))
    return [(a, min(b, len(row))) for a, b in pairwise(cuts)]


def decode_reads(requests: RequestTable, work: Windows, a: int, b: int) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """(window index, t, steps, tokens computed, context read) of every read of windows a..b: the first token is
    prefill's work, and token counts are scaled to usage. steps: engine steps that the sequence took, one per token
    but for accepted drafts, which cost no step; each step computes its drafts besides its token, and reads the context
    once. A request without reads decodes evenly (one entry per token, at most 64)."""
    row = work.row[a:b]
    low, high = requests.read_start[row], requests.read_start[row + 1]
    counts = high - low
    index = np.repeat(np.arange(a, b), counts)
    offset = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    flat = np.repeat(low, counts) + offset
    tokens = requests.read_tokens[flat].astype(float)
    t = (requests.read_ns[flat] - work.origin_ns) / 1e9
    before = np.cumsum(tokens) - tokens
    before -= (
        np.repeat(before[np.minimum(np.cumsum(counts) - counts, max(len(before) - 1, 0))], counts) if len(before) else 0
    )
    drawn = np.maximum(0.0, tokens - np.maximum(0.0, 1.0 - before))  # the first token is not decoded
    total = np.bincount(index - a, drawn, b - a)
    bare = (total <= 0) & (work.decode[a:b] > 0)
    if np.any(bare):
        i, tb, db, bb = _even(work, np.flatnonzero(bare) + a)
        index, t, drawn, before = (np.concatenate(p) for p in ((index, i), (t, tb), (drawn, db), (before, bb)))
        total = np.bincount(index - a, drawn, b - a)
    index, t, drawn, before = _split_reads(index, t, drawn, before)
    scale = np.divide(work.decode[a:b], total, out=np.zeros(b - a), where=total > 0)[index - a]
    tokens = drawn * scale
    t = np.clip(t, work.first[index], work.last[index])
    context = tokens * (work.prompt[index] + np.maximum(before, 1) * scale) + tokens * np.maximum(tokens - 1, 0) / 2
    drafted, accepted = work.drafted[a:b], work.accepted[a:b]
    if not np.any(drafted):
        return index, t, tokens, tokens, context
    given = np.maximum(work.decode[a:b], 1.0)
    once, more = (1 - accepted / given)[index - a], ((drafted - accepted) / given)[index - a]
    return index, t, tokens * once, tokens * (1 + more), context * once


def _split_reads(index: Ints, t: Floats, drawn: Floats, before: Floats) -> tuple[Ints, Floats, Floats, Floats]:
    """Tokens where they were computed: in the middle of the time since the read before, not at its end. Several in one
    read (a server sends every nth, a reader was late) in up to MOST_PARTS parts laid evenly over that time."""
    many = drawn > 1.5
    same = np.diff(index, prepend=-1) == 0
    gap = np.where(same, np.diff(t, prepend=t[:1]), 0.0)
    if not np.any(many):
        return index, t - np.minimum(gap, LONGEST_STEP_S) / 2, drawn, before
    parts = np.where(many, np.minimum(np.ceil(drawn), MOST_PARTS), 1).astype(np.int64)
    again = np.repeat(np.arange(len(index)), parts)
    part = np.arange(len(again)) - np.repeat(np.cumsum(parts) - parts, parts)
    each = (drawn / parts)[again]
    back = (parts[again] - 0.5 - part) / parts[again]
    gap = np.where(many, gap, np.minimum(gap, LONGEST_STEP_S))
    return index[again], t[again] - gap[again] * back, each, before[again] + part * each


def _even(work: Windows, which: Ints) -> tuple[Ints, Floats, Floats, Floats]:
    n = np.minimum(np.ceil(work.decode[which]), 64).astype(np.int64)
    index = np.repeat(which, n)
    k = np.arange(len(index)) - np.repeat(np.cumsum(n) - n, n)
    part = np.repeat(n, n)
    t = work.first[index] + (k + 1) / part * (work.last[index] - work.first[index])
    each = work.decode[index] / part
    return index, t, each, 1 + k * each


def work_curve(requests: RequestTable, work: Windows, steps: StepTable | None, t0: float, t1: float) -> WorkCurve:
    """Cumulative work from t0 to t1 (seconds from the windows' origin) on a grid of 20 ms (coarser for long runs)."""
    cells = int(np.clip(np.ceil((t1 - t0) / 0.02), 1, 500_000))
    t = np.linspace(t0, t1, cells + 1)
    width = t[1] - t[0]
    turns, decode, context = np.zeros(cells), np.zeros(cells), np.zeros(cells)
    for a, b in read_slices(requests, work.row):
        _, at, steps_of, tokens, read = decode_reads(requests, work, a, b)
        cell = np.clip(((at - t0) / width).astype(np.int64), 0, cells - 1)
        turns += np.bincount(cell, steps_of, cells)
        decode += np.bincount(cell, tokens, cells)
        context += np.bincount(cell, read, cells)
    one = np.ones(len(work))
    again = work.again
    prefilling = np.diff(spread(t, work.start, work.first, work.first - work.start))
    decoding = np.diff(spread(t, work.first, work.last, work.last - work.first))
    if len(again):  # a victim waits, and is then in prefill once more: neither is decode
        prefilling += _cover(t, again.start, again.end)
        decoding = np.maximum(decoding - _cover(t, again.stall, again.end), 0.0)
    busy_start, busy_end = union(work.start, work.last)
    busy = spread(t, busy_start, busy_end, busy_end - busy_start)
    decode_busy = _cover(t, *union(work.first, work.last))
    gaps = np.concatenate([busy_start[1:], [np.inf]]) - busy_end if len(busy_end) else busy_end
    tail_end = busy_end + np.minimum(gaps, TAIL_NS / 1e9)
    tail = spread(t, busy_end, tail_end, tail_end - busy_end)
    at_once = decoding / np.maximum(decode_busy, 1e-9)
    count = np.where(decoding > 0, turns / np.maximum(at_once, 1.0), 0.0)
    present = (prefilling + decoding) / np.maximum(np.diff(busy), 1e-9)
    alone = np.diff(spread(t, work.start, work.first, one)) / np.maximum(present, 1.0)
    count = np.where(decoding <= 0, alone, count)  # prefills of one moment share a step
    share = np.stack([count / np.maximum(present, 1.0)] * 2, 1)
    if steps is not None:
        count, share = _told(steps, work.origin_ns, busy_start, t, count, share, np.stack([prefilling, decoding], 1))
    before = work.prefill * work.cached + work.prefill * np.maximum(work.prefill - 1, 0) / 2
    twice = again.tokens * (again.context + again.tokens / 2)
    columns = [
        np.concatenate([[0.0], np.cumsum(count)]),
        spread(t, work.start, work.first, work.prefill * one) + spread(t, again.start, again.end, again.tokens),
        spread(t, work.start, work.first, before) + spread(t, again.start, again.end, twice),
        np.concatenate([[0.0], np.cumsum(decode)]),
        np.concatenate([[0.0], np.cumsum(context)]),
    ]
    curve = WorkCurve(t, np.stack(columns, 1), busy, tail, np.concatenate([np.zeros((1, 2)), np.cumsum(share, 0)]))
    return curve if steps is None else _placed(curve, _told_steps(steps, work.origin_ns, busy_start, curve))


def _placed(curve: WorkCurve, told: Told) -> WorkCurve:
    """The curve with its work where the engine's steps had it, each step's evenly over its time, instead of evenly over
    each request's window: with long steps, or prompts that are computed piece by piece, energy follows the steps."""
    if len(told.end) < 2:
        return replace(curve, told=told)
    t, start = curve.t, told.end - told.seconds
    covered = (t[1:] > start[0]) & (t[:-1] < told.end[-1])
    parts = np.diff(curve.features, axis=0)
    for k in range(1, parts.shape[1]):
        parts[:, k] = np.where(covered, np.diff(spread(t, start, told.end, told.work[:, k])), parts[:, k])
    return replace(
        curve, told=told, features=np.concatenate([curve.features[:1], curve.features[0] + np.cumsum(parts, 0)])
    )


def _cover(t: Floats, start: Floats, end: Floats) -> Floats:
    return np.diff(spread(t, start, end, end - start))


NEAR_S = 0.25
"""contexts of a step are those of the time around it, per token"""


def _told_steps(steps: StepTable, origin_ns: int, busy_start: Floats, curve: WorkCurve) -> Told:
    """Duration and work of every step of the stream. Tokens as told; their contexts by what lies around the step."""
    start, end = _step_times(steps, origin_ns, busy_start)
    around = curve.at(end + NEAR_S)[0] - curve.at(start - NEAR_S)[0]
    per_prompt = np.divide(around[:, 2], around[:, 1], out=np.zeros(len(end)), where=around[:, 1] > 0.5)
    per_token = np.divide(around[:, 4], around[:, 3], out=np.zeros(len(end)), where=around[:, 3] > 0.5)
    prompt, decode = steps.ctx_tokens.astype(float), steps.generation_tokens.astype(float)
    work = np.stack([np.ones(len(end)), prompt, prompt * per_prompt, decode, decode * per_token], 1)
    good = (end > start + 1e-5) & (prompt + decode > 0)
    return Told(end[good], (end - start)[good], work[good])


def _step_times(steps: StepTable, origin_ns: int, busy_start: Floats) -> tuple[Floats, Floats]:
    """A step lasts from the one before (or from the start of work) to its stamp."""
    end = (steps.t_ns - origin_ns) / 1e9
    begun = busy_start[np.maximum(np.searchsorted(busy_start, end, "left") - 1, 0)] if len(busy_start) else end
    start = np.maximum(np.concatenate([[-np.inf], end[:-1]]), np.minimum(begun, end - 1e-6))
    return start, end


def _told(
    steps: StepTable, origin_ns: int, busy_start: Floats, t: Floats, count: Floats, share: Floats, present: Floats
) -> tuple[Floats, Floats]:
    """Steps and shares per cell as the iteration stream has them, where it covers the cell. present: seconds of windows
    in each phase. A step's sequences pay one part each: those in prefill share the parts of its prefills, those in
    decode the parts of its decodes (a decode that stands still while prompts have the engine to themselves pays
    nothing)."""
    sequences = steps.ctx_requests + steps.generation_requests
    start, end = _step_times(steps, origin_ns, busy_start)
    inside = (end >= t[0]) & (end < t[-1]) & (sequences > 0)
    if not np.any(inside):
        return count, share
    start, end, sequences = np.minimum(start, end - 1e-6)[inside], end[inside], sequences[inside]
    covered = (t[1:] > start[0]) & (t[:-1] < end[-1])
    n = np.diff(spread(t, start, end, np.ones(len(end))))
    parts = [
        np.diff(spread(t, start, end, c[inside] / sequences)) for c in (steps.ctx_requests, steps.generation_requests)
    ]
    width = t[1] - t[0]
    paid = np.stack(parts, 1) * width / np.maximum(present, 1e-4 * width)
    paid = np.where(present > 1e-4 * width, paid, 0.0)
    return np.where(covered, n, count), np.where(covered[:, None], paid, share)
