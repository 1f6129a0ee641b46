"""Who did what in which block: one row per (request, phase, block) with its share of every feature of the model.

The model of a block's energy is base (idle, tail, static power while busy split by time caused, engine steps split
equally among scheduled sequences) plus own work (prompt tokens, their context, decoded tokens, context read). Rows here
carry those features; sums over a block are the regressors, so that fit and split can never disagree.
May not know: sensors, coefficients' values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from energy.reads import LONG_S, MOST_PARTS, decode_reads, read_slices
from energy.schedule import Pieces
from energy.tables import Floats, Ints, Mask, RequestTable
from energy.windows import Windows
from energy.work import WorkCurve

PREFILL, DECODE = 0, 1
_Pieces = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int8], Floats, Floats]


@dataclass(frozen=True, slots=True)
class Shares:
    """Rows sorted by nothing in particular. window: index into Windows; block: index into the borders' blocks.

    work columns: steps (share of engine steps), prefill, prefill_context, decode, context (work.FEATURES);
    seconds: time scheduled; waiting: seconds between sent and start (only for policies that charge it)."""

    window: npt.NDArray[np.int32]
    block: npt.NDArray[np.int32]
    phase: npt.NDArray[np.int8]
    work: Floats
    seconds: Floats
    waiting: Floats

    def __len__(self) -> int:
        return len(self.window)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Per block, times in seconds from the windows' origin on the work's axis (lag taken out): borders t (n + 1),
    energy uJ (n), busy and tail seconds, summed work (n, 5), usable: energy known and fit for fitting."""

    t: Floats
    uj: Ints
    busy: Floats
    tail: Floats
    work: Floats
    usable: Mask

    def __len__(self) -> int:
        return len(self.uj)

    @property
    def seconds(self) -> Floats:
        """Length of each block."""
        return np.diff(self.t)

    @property
    def idle(self) -> Floats:
        """Seconds with nothing scheduled, tail left out."""
        return np.maximum(self.seconds - self.busy - self.tail, 0.0)


def shares(requests: RequestTable, work: Windows, curve: WorkCurve, t: Floats, *, waiting: bool = False) -> Shares:
    """Cut every window at the block borders t. waiting: with rows for the time before a request was scheduled, which
    only a policy that charges it needs (an overloaded hour has tens of millions of them)."""
    window, block, phase, low, high = _cut_spans(((work.start, work.first), (work.first, work.last)), t)
    seconds = np.maximum(high - low, 0.0)
    out = np.zeros((len(window), 5), np.float64)
    for k in (PREFILL, DECODE) if curve.line is not None else (PREFILL,):
        mine = phase == k
        out[mine, 0] = _paid(curve, k, low[mine], high[mine])
    pre = phase == PREFILL
    w = window[pre]
    part0, part1 = _progress(work, curve, w, low[pre]), _progress(work, curve, w, high[pre])
    tokens = work.prefill[w]
    out[pre, 1] = tokens * (part1 - part0)
    out[pre, 2] = tokens * (part1 - part0) * (work.cached[w] + tokens * (part0 + part1) / 2)
    if curve.pieces is not None:
        _placed(curve.pieces, t, window, block, phase, out)
    _decoded(requests, work, curve, t, window, block, phase, out)
    rows = Shares(window, block, phase, out, seconds, np.zeros(len(window)))
    rows = _computed_again(rows, work, curve, t) if len(work.again) else rows
    return _waited(rows, work, t) if waiting else rows


def _paid(curve: WorkCurve, phase: int, low: Floats, high: Floats) -> Floats:
    """What one sequence in a phase pays of the steps between instants."""
    paid = curve.share[:, phase]
    return np.asarray(np.interp(high, curve.t, paid) - np.interp(low, curve.t, paid))


def _computed_again(rows: Shares, work: Windows, curve: WorkCurve, t: Floats) -> Shares:
    """Victims of preemption: no decode while they wait and are computed again (the tokens are where they were read),
    and rows of prefill for what was computed again."""
    again = work.again.where(work.again.end > work.again.start)
    k, block, _, low, high = _cut_spans(((again.stall, again.end),), t)
    window = again.window[k]
    at = _row_of(rows, window, block, len(work))
    found = at >= 0
    at, low, high = at[found], low[found], high[found]
    seconds, steps = rows.seconds.copy(), rows.work[:, 0].copy()
    np.subtract.at(seconds, at, np.maximum(high - low, 0.0))
    if curve.line is not None:
        np.subtract.at(steps, at, _paid(curve, DECODE, low, high))
    done = rows.work.copy()
    done[:, 0] = np.maximum(steps, 0.0)
    k, block, phase, low, high = _cut_spans(((again.start, again.end),), t)
    length = np.maximum(again.end - again.start, 1e-9)
    part0, part1 = (low - again.start[k]) / length[k], (high - again.start[k]) / length[k]
    tokens = again.tokens[k]
    more = np.zeros((len(k), done.shape[1]))
    more[:, 0] = _paid(curve, PREFILL, low, high)
    more[:, 1] = tokens * (part1 - part0)
    more[:, 2] = more[:, 1] * (again.context[k] + tokens * (part0 + part1) / 2)
    return Shares(
        np.concatenate([rows.window, again.window[k].astype(np.int32)]),
        np.concatenate([rows.block, block]),
        np.concatenate([rows.phase, phase]),
        np.concatenate([done, more]),
        np.concatenate([np.maximum(seconds, 0.0), np.maximum(high - low, 0.0)]),
        np.concatenate([rows.waiting, np.zeros(len(k))]),
    )


def _row_of(rows: Shares, window: Ints, block: npt.NDArray[np.int32], windows: int) -> Ints:
    """Index of the decode row of each (window, block), -1 where there is none. A window's rows lie side by side."""
    at = np.flatnonzero(rows.phase == DECODE)
    first_row, first_block, last_block = (np.full(windows, -1, np.int64) for _ in range(3))
    first_row[rows.window[at][::-1]] = at[::-1]
    first_block[rows.window[at][::-1]] = rows.block[at][::-1]
    last_block[rows.window[at]] = rows.block[at]
    inside = (first_row[window] >= 0) & (block >= first_block[window]) & (block <= last_block[window])
    return np.where(inside, first_row[window] + block - first_block[window], -1)


def _progress(work: Windows, curve: WorkCurve, w: npt.NDArray[np.int32], t: Floats) -> Floats:
    """Share of each prefill w that is done at t: even over its window, or, where the engine told its steps, as the
    prompt tokens of all went."""
    length = np.maximum(work.first[w] - work.start[w], 1e-9)
    even = (t - work.start[w]) / length
    if curve.told is None:
        return even
    done = curve.features[:, 1]
    begin, now, end = (np.interp(x, curve.t, done) for x in (work.start[w], t, work.first[w]))
    made = end - begin
    return np.where(made > 1.0, (now - begin) / np.maximum(made, 1.0), even)


def _placed(
    found: Pieces,
    t: Floats,
    window: npt.NDArray[np.int32],
    block: npt.NDArray[np.int32],
    phase: npt.NDArray[np.int8],
    out: Floats,
) -> None:
    """Prefill rows of the windows that the pieces cover, from the pieces."""
    out[(phase == PREFILL) & found.covered[window], :3] = 0.0
    parts = np.ceil((found.end - found.start) / LONG_S).clip(1, MOST_PARTS).astype(np.int64)
    again = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(again)) - np.repeat(np.cumsum(parts) - parts, parts)
    when = found.start[again] + (part + 0.5) / parts[again] * (found.end - found.start)[again]
    first, low, high = _rows_of(PREFILL, window, block, phase, len(found.covered))
    w = found.window[again]
    ok = (when > t[0]) & (when <= t[-1]) & (first[w] >= 0) & ~found.again[again]
    w, mine = w[ok], again[ok]
    row = first[w] + np.clip(np.searchsorted(t, when[ok], "left") - 1, low[w], high[w]) - low[w]
    for k, amount in enumerate((found.part, found.tokens, found.context)):
        out[:, k] += np.bincount(row, (amount / parts)[mine], len(out))


def _rows_of(
    kind: int, window: npt.NDArray[np.int32], block: npt.NDArray[np.int32], phase: npt.NDArray[np.int8], n: int
) -> tuple[Ints, Ints, Ints]:
    """(first row, first block, last block) of every window's rows of a phase, which lie side by side; -1: none."""
    at = np.flatnonzero(phase == kind)
    first, low, high = np.full(n, -1, np.int64), np.zeros(n, np.int64), np.full(n, -1, np.int64)
    first[window[at][::-1]] = at[::-1]
    low[window[at][::-1]] = block[at][::-1]
    high[window[at]] = block[at]
    return first, low, high


def _waited(rows: Shares, work: Windows, t: Floats) -> Shares:
    """Add rows for the time between sent and start: no work in them."""
    window, block, phase, low, high = _cut_spans(((work.sent, work.start),), t)
    long = high - low > 1e-4
    n = int(np.count_nonzero(long))
    return Shares(
        np.concatenate([rows.window, window[long]]),
        np.concatenate([rows.block, block[long]]),
        np.concatenate([rows.phase, phase[long]]),
        np.concatenate([rows.work, np.zeros((n, 5))]),
        np.concatenate([rows.seconds, np.zeros(n)]),
        np.concatenate([rows.waiting, (high - low)[long]]),
    )


def _cut_spans(spans: Sequence[tuple[Floats, Floats]], t: Floats) -> _Pieces:
    """Pieces of spans cut at the borders t: index of the span, block, which of `spans`, from, to."""
    parts = []
    for phase, (start, end) in enumerate(spans):
        live = np.flatnonzero((end > start) & (end > t[0]) & (start < t[-1]))
        b0 = np.clip(np.searchsorted(t, start[live], "right") - 1, 0, len(t) - 2)
        b1 = np.clip(np.searchsorted(t, end[live], "left") - 1, 0, len(t) - 2)
        n = b1 - b0 + 1
        window = np.repeat(live, n)
        block = np.repeat(b0, n) + np.arange(len(window)) - np.repeat(np.cumsum(n) - n, n)
        low, high = np.maximum(start[window], t[block]), np.minimum(end[window], t[block + 1])
        parts.append((window.astype(np.int32), block.astype(np.int32), np.full(len(window), phase, np.int8), low, high))
    columns: Any = [np.concatenate(p) for p in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2], columns[3], columns[4]


def _decoded(
    requests: RequestTable,
    work: Windows,
    curve: WorkCurve,
    t: Floats,
    window: npt.NDArray[np.int32],
    block: npt.NDArray[np.int32],
    phase: npt.NDArray[np.int8],
    out: Floats,
) -> None:
    """Add decode tokens and context of every read to its row, and its part of the steps where nobody told them: a
    sequence takes as many as it gets tokens. Rows of one window's decode lie side by side."""
    line = curve.line
    turns = None if line is None else line.where(line.decodes > 0)
    clock = None if curve.clock is None else (curve.t, curve.clock)
    width = float(curve.t[1] - curve.t[0])
    first_row, first_block, last_block = _rows_of(DECODE, window, block, phase, len(work))
    for a, b in read_slices(requests, work.row):
        index, when, steps, tokens, context = decode_reads(requests, work, a, b, turns, clock)
        inside = (when > t[0]) & (when <= t[-1]) & (first_row[index] >= 0)
        if not np.all(inside):
            index, when, steps, tokens, context = (x[inside] for x in (index, when, steps, tokens, context))
        where = np.clip(np.searchsorted(t, when, "left") - 1, first_block[index], last_block[index])
        row = first_row[index] + where - first_block[index]
        base = int(row.min()) if len(row) else 0
        size = int(row.max()) - base + 1 if len(row) else 0
        if line is None:
            cell = np.clip(((when - curve.t[0]) / width).astype(np.int64), 0, len(curve.turn) - 1)
            out[base : base + size, 0] += np.bincount(row - base, steps * curve.turn[cell], size)
        out[base : base + size, 3] += np.bincount(row - base, tokens, size)
        out[base : base + size, 4] += np.bincount(row - base, context, size)


def blocks(rows: Shares, curve: WorkCurve, t: Floats, uj: Ints, usable: Mask) -> Blocks:
    """Block totals of the rows."""
    n = len(uj)
    summed: Floats = np.stack([np.bincount(rows.block, rows.work[:, k], n) for k in range(5)], 1).astype(float)
    _, busy, tail = curve.at(t)
    return Blocks(t, uj, np.diff(busy), np.diff(tail), summed, usable)
