"""Decoded tokens in time, from what clients read: when each was computed, with how much context.

May not know: energy, sensors, files.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from energy.schedule import Line, step_at
from energy.tables import Floats, Ints, RequestTable
from energy.windows import Windows

MOST_PARTS = 16
LONG_S = 0.05
"""work of a longer step is laid over it in parts of this length, so that a step across a border is on both sides"""
LONGEST_STEP_S = 0.5
"""a longer wait for one token was not all work on it"""


def read_slices(requests: RequestTable, row: Ints, size: int = 400_000) -> list[tuple[int, int]]:
    """Ranges of window indices whose reads stay below `size`, so that temporaries stay small."""
    counts = (requests.read_start[row + 1] - requests.read_start[row]).cumsum()
    cuts = [0]
    while cuts[-1] < len(row):
        base = counts[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(counts, base + size, "right"))))
    return [(a, min(b, len(row))) for a, b in pairwise(cuts)]


def of_ranges(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """(which range, index) of every index in the ranges low..high, one range after another."""
    counts = high - low
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.repeat(low, counts) + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)


def decode_reads(
    requests: RequestTable,
    work: Windows,
    a: int,
    b: int,
    turns: Line | None = None,
    clock: tuple[Floats, Floats] | None = None,
) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """(window index, t, steps, tokens computed, context read) of every read of windows a..b: the first token is
    prefill's work, and token counts are scaled to usage. steps: engine steps that the sequence took, one per token
    but for accepted drafts, which cost no step; each step computes its drafts besides its token, and reads the context
    once. turns: the steps in which anything decodes, where they are known; clock: (instants, seconds until then in
    which decodes did not stand still), where prompts hold them up. A request without reads decodes evenly (one entry
    per token, at most 64)."""
    row = work.row[a:b]
    low, high = requests.read_start[row], requests.read_start[row + 1]
    high = np.where((high - low == 1) & (work.decode[a:b] > 1), low, high)  # one read for all: says nothing of when
    counts = high - low
    index, flat = of_ranges(low, high)
    index += a
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
    if turns is not None and len(turns):
        index, t, drawn, before = _on_steps(index, t, drawn, before, turns)
    else:
        moved = t if clock is None else np.interp(t, *clock)
        index, t, drawn, before = _split_reads(index, moved, drawn, before)
        t = t if clock is None else _back(t, *clock)
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


def _back(moved: Floats, t: Floats, clock: Floats) -> Floats:
    """Instants at which the clock showed these seconds."""
    return np.asarray(np.interp(moved, clock + 1e-9 * np.arange(len(t)), t))


def _split_reads(index: Ints, t: Floats, drawn: Floats, before: Floats) -> tuple[Ints, Floats, Floats, Floats]:
    """Tokens where they were computed: in the middle of the time since the read before, not at its end. Several in one
    read (a server sends every nth, a reader was late) in up to MOST_PARTS parts laid evenly over that time."""
    many = drawn > 1.5
    same = np.diff(index, prepend=-1) == 0
    gap = np.where(same, np.diff(t, prepend=t[:1]), 0.0)
    gap = np.where(many, gap, np.minimum(gap, LONGEST_STEP_S))
    fine = np.ceil(np.where(many, drawn, gap / LONG_S))
    if not np.any(fine > 1):
        return index, t - gap / 2, drawn, before
    parts = np.clip(fine, 1, MOST_PARTS).astype(np.int64)
    again = np.repeat(np.arange(len(index)), parts)
    part = np.arange(len(again)) - np.repeat(np.cumsum(parts) - parts, parts)
    each = (drawn / parts)[again]
    back = (parts[again] - 0.5 - part) / parts[again]
    return index[again], t[again] - gap[again] * back, each, before[again] + part * each


def _on_steps(
    index: Ints, t: Floats, drawn: Floats, before: Floats, turns: Line
) -> tuple[Ints, Floats, Floats, Floats]:
    """Tokens in the steps that made them: a read of n holds those of the last n steps, one each, laid evenly over the
    time of its step."""
    last = step_at(turns, t) + 1.0
    knots = np.stack([turns.start, turns.end], 1).ravel()
    count = np.stack([np.arange(len(turns)), np.arange(1, len(turns) + 1)], 1).ravel().astype(float)
    begin = np.interp(np.maximum(last - drawn, 0.0), count, knots)
    took = np.interp(last, count, knots) - begin
    covered = (last >= drawn) & (t <= turns.end[-1] + LONGEST_STEP_S)
    parts = np.clip(np.ceil(np.where(covered, np.maximum(drawn, took / LONG_S), 1)), 1, MOST_PARTS).astype(np.int64)
    again = np.repeat(np.arange(len(index)), parts)
    part = np.arange(len(again)) - np.repeat(np.cumsum(parts) - parts, parts)
    each = (drawn / parts)[again]
    at = np.interp(last[again] - each * (parts[again] - 0.5 - part), count, knots)
    return index[again], np.where(covered[again], at, t[again]), each, before[again] + part * each


def _even(work: Windows, which: Ints) -> tuple[Ints, Floats, Floats, Floats]:
    n = np.minimum(np.ceil(work.decode[which]), 64).astype(np.int64)
    index = np.repeat(which, n)
    k = np.arange(len(index)) - np.repeat(np.cumsum(n) - n, n)
    part = np.repeat(n, n)
    t = work.first[index] + (k + 1) / part * (work.last[index] - work.first[index])
    each = work.decode[index] / part
    return index, t, each, 1 + k * each
