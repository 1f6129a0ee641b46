"""Where the work lay in time: prefill and decode windows of every request, and the cumulative work of the engine.

From stamps and usage (L1), engine metrics per request (L2) or the iteration stream (L3) to the same two things:
`Windows` (who was scheduled when, with how many tokens) and `WorkCurve` (cumulative features on a fine grid, for lag
and time fits). Waiting draws nothing. May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from energy.tables import Floats, Ints, Mask, RequestTable, StepTable, known

TAIL_NS = 2_000_000_000
NOT_SERVED = ("rejected", "skipped", "unreachable")
FEATURES = ("steps", "prefill", "prefill_context", "decode", "context")
"""engine steps; prompt tokens computed; sum over them of the context before each; tokens decoded; context they read"""


@dataclass(frozen=True, slots=True)
class Windows:
    """Scheduled time of the requests that reached the engine: prefill [start, first], decode [first, last]; seconds
    from origin_ns. row: index into the request table. imputed: some count was missing and a typical one stands in."""

    origin_ns: int
    row: Ints
    sent: Floats
    start: Floats
    first: Floats
    last: Floats
    prefill: Floats
    cached: Floats
    prompt: Floats
    decode: Floats
    imputed: Mask

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class WorkCurve:
    """Cumulative work at instants t (seconds from the windows' origin): features[:, k] in FEATURES order, busy and tail
    seconds, and share = integral of 1 / scheduled sequences over steps (what one sequence pays of the steps)."""

    t: Floats
    features: Floats
    busy: Floats
    tail: Floats
    share: Floats

    def at(self, t: Floats) -> tuple[Floats, Floats, Floats]:
        """(features, busy, tail) interpolated."""
        columns = [np.interp(t, self.t, self.features[:, k]) for k in range(self.features.shape[1])]
        return np.stack(columns, 1), np.interp(t, self.t, self.busy), np.interp(t, self.t, self.tail)


def windows(requests: RequestTable, level: str) -> Windows:
    """Scheduled windows of every served request."""
    served = known(requests.sent_ns) & known(requests.end_ns)
    bad = [i for i, n in enumerate(requests.outcome.names) if n in NOT_SERVED]
    served &= ~np.isin(requests.outcome.codes, bad)
    row = np.flatnonzero(served)
    origin = int(requests.sent_ns[row].min()) if len(row) else 0
    sent, end = ((c[row] - origin) / 1e9 for c in (requests.sent_ns, requests.end_ns))
    end = np.maximum(end, sent + 1e-6)
    prompt, cached, completion, imputed = _counts(requests, row)
    computed = np.maximum(prompt - cached, np.minimum(prompt, 1.0))
    pace = _pace(sent, requests.first_ns[row], origin, computed)
    guess = np.minimum(sent + pace * computed, end)
    first = np.where(known(requests.first_ns[row]), (requests.first_ns[row] - origin) / 1e9, guess)
    first = np.clip(first, sent + 1e-6, end)
    last = np.where(known(requests.last_ns[row]), (requests.last_ns[row] - origin) / 1e9, end)
    decode = np.maximum(completion - 1, 0.0)
    last = np.where(decode > 0, np.maximum(last, first + 1e-6), first)
    unfinished = ~known(requests.first_ns[row]) & (completion == 0)
    first, last = np.where(unfinished, end, first), np.where(unfinished, end, last)
    computed = np.where(unfinished, np.minimum(computed, (end - sent) / max(pace, 1e-9)), computed)
    start = _fifo(sent, first, last, computed, decode, pace)
    if level != "L1":
        told = known(requests.prefill_ns[row]) & known(requests.first_ns[row])
        start = np.where(told, np.clip(first - requests.prefill_ns[row] / 1e9, sent, first - 1e-6), start)
    return Windows(origin, row, sent, start, first, last, computed, prompt - computed, prompt, decode, imputed)


def _counts(requests: RequestTable, row: Ints) -> tuple[Floats, Floats, Floats, Mask]:
    prompt, cached, completion = (c[row].astype(float) for c in (requests.prompt, requests.cached, requests.completion))
    no_prompt, no_cached, no_completion = (
        ~known(c[row]) for c in (requests.prompt, requests.cached, requests.completion)
    )
    counts = np.diff(requests.read_start)
    total = np.zeros(len(counts))
    some = np.flatnonzero(counts)
    if len(some):
        total[some] = np.add.reduceat(requests.read_tokens, requests.read_start[some], dtype=np.int64)
    seen = total[row]
    typical = float(np.median(prompt[~no_prompt])) if np.any(~no_prompt) else 0.0
    prompt = np.where(no_prompt, typical, prompt)
    completion = np.where(no_completion, seen, completion)
    cached = np.where(no_cached, 0.0, np.minimum(cached, prompt))
    return prompt, cached, completion, no_prompt | (no_completion & (counts[row] == 0))


def _pace(sent: Floats, first_ns: Ints, origin: int, computed: Floats) -> float:
    """Seconds per computed prompt token: the lower of two views over the longer prompts. Alone: from sent to first
    token (a low percentile, where nothing queued). In a queue: from the previous first token to one's own, for
    requests that were already there."""
    ok = known(first_ns) & (computed > 0)
    if not np.any(ok):
        return 1e-4
    sent, first, computed = sent[ok], (first_ns[ok] - origin) / 1e9, computed[ok]
    long = computed >= np.quantile(computed, 0.5)
    alone = float(np.quantile(((first - sent) / computed)[long], 0.1))
    order = np.argsort(first, kind="stable")
    gap = np.diff(first[order], prepend=first[order[0]])
    queued = long[order] & (sent[order] < first[order] - gap) & (gap > 0.002)
    if np.count_nonzero(queued) >= 20:
        alone = min(alone, float(np.quantile(gap[queued] / computed[order][queued], 0.25)))
    return max(1e-7, alone)


def _fifo(sent: Floats, first: Floats, last: Floats, computed: Floats, decode: Floats, pace: float) -> Floats:
    """When prefill began, where nobody says: not before it was sent, nor (first come, first served) before the previous
    group of first tokens, nor much longer ago than its tokens take."""
    if not len(sent):
        return sent
    some = decode > 0
    gap = float(np.quantile((last[some] - first[some]) / decode[some], 0.9)) if np.any(some) else 0.0
    order = np.argsort(first, kind="stable")
    f = first[order]
    new = np.concatenate([[True], np.diff(f) > max(0.002, 0.25 * gap)])
    group_start = f[np.flatnonzero(new)]
    index = np.cumsum(new) - 1
    previous = np.where(index > 0, group_start[np.maximum(index - 1, 0)], -np.inf)
    begin = np.empty_like(first)
    begin[order] = previous
    cap = 3 * computed * pace + 2 * gap
    return np.minimum(np.maximum.reduce([sent, np.minimum(begin, first - computed * pace), first - cap]), first - 1e-6)


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


def decode_reads(requests: RequestTable, work: Windows, a: int, b: int) -> tuple[Ints, Floats, Floats, Floats]:
    """(window index, t, decode tokens, context read) of every read of windows a..b: the first token is prefill's work,
    and token counts are scaled to usage. A request without reads decodes evenly (one entry per token, at most 64)."""
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
    scale = np.divide(work.decode[a:b], total, out=np.zeros(b - a), where=total > 0)[index - a]
    tokens = drawn * scale
    t = np.clip(t, work.first[index], work.last[index])
    context = tokens * (work.prompt[index] + np.maximum(before, 1) * scale) + tokens * np.maximum(tokens - 1, 0) / 2
    return index, t, tokens, context


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
    decode, context = np.zeros(cells), np.zeros(cells)
    for a, b in read_slices(requests, work.row):
        _, at, tokens, read = decode_reads(requests, work, a, b)
        cell = np.clip(((at - t0) / width).astype(np.int64), 0, cells - 1)
        decode += np.bincount(cell, tokens, cells)
        context += np.bincount(cell, read, cells)
    one = np.ones(len(work))
    prefilling = np.diff(spread(t, work.start, work.first, work.first - work.start))
    decoding = np.diff(spread(t, work.first, work.last, work.last - work.first))
    busy_start, busy_end = union(work.start, work.last)
    busy = spread(t, busy_start, busy_end, busy_end - busy_start)
    decode_busy = _cover(t, *union(work.first, work.last))
    gaps = np.concatenate([busy_start[1:], [np.inf]]) - busy_end if len(busy_end) else busy_end
    tail_end = busy_end + np.minimum(gaps, TAIL_NS / 1e9)
    tail = spread(t, busy_end, tail_end, tail_end - busy_end)
    at_once = decoding / np.maximum(decode_busy, 1e-9)
    count = np.where(decoding > 0, decode / np.maximum(at_once, 1.0), 0.0)
    present = (prefilling + decoding) / np.maximum(np.diff(busy), 1e-9)
    alone = np.diff(spread(t, work.start, work.first, one)) / np.maximum(present, 1.0)
    count = np.where(decoding <= 0, alone, count)  # prefills of one moment share a step
    share = count / np.maximum(present, 1.0)
    if steps is not None:
        count, share = _told(steps, work.origin_ns, busy_start, t, count, share, present)
    before = work.prefill * work.cached + work.prefill * np.maximum(work.prefill - 1, 0) / 2
    columns = [
        np.concatenate([[0.0], np.cumsum(count)]),
        spread(t, work.start, work.first, work.prefill * one),
        spread(t, work.start, work.first, before),
        np.concatenate([[0.0], np.cumsum(decode)]),
        np.concatenate([[0.0], np.cumsum(context)]),
    ]
    return WorkCurve(t, np.stack(columns, 1), busy, tail, np.concatenate([[0.0], np.cumsum(share)]))


def _cover(t: Floats, start: Floats, end: Floats) -> Floats:
    return np.diff(spread(t, start, end, end - start))


def _told(
    steps: StepTable, origin_ns: int, busy_start: Floats, t: Floats, count: Floats, share: Floats, present: Floats
) -> tuple[Floats, Floats]:
    """Steps and shares per cell as the iteration stream has them, where it covers the cell. A step lasts from the one
    before (or from the start of work) to its stamp. Windows seen from outside overlap more than batches do: what they
    share never exceeds the steps there were."""
    sequences = steps.ctx_requests + steps.generation_requests
    end = (steps.t_ns - origin_ns) / 1e9
    begun = busy_start[np.maximum(np.searchsorted(busy_start, end, "left") - 1, 0)] if len(busy_start) else end
    start = np.maximum(np.concatenate([[-np.inf], end[:-1]]), np.minimum(begun, end - 1e-6))
    inside = (end >= t[0]) & (end < t[-1]) & (sequences > 0)
    if not np.any(inside):
        return count, share
    start, end, sequences = np.minimum(start, end - 1e-6)[inside], end[inside], sequences[inside]
    covered = (t[1:] > start[0]) & (t[:-1] < end[-1])
    n = np.diff(spread(t, start, end, np.ones(len(end))))
    s = np.minimum(np.diff(spread(t, start, end, 1.0 / sequences)), n / np.maximum(present, 1.0))
    return np.where(covered, n, count), np.where(covered, s, share)
