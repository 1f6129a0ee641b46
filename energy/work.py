"""Where the work lay in time: the cumulative work of the engine, from windows, reads and (L3) the iteration stream.

`WorkCurve` has cumulative features on a fine grid, for lag, time and energy fits. May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from energy.reads import decode_reads, read_slices
from energy.schedule import Line, Pieces, pieces
from energy.tables import Floats, RequestTable, StepTable, known
from energy.windows import Windows

TAIL_NS = 2_000_000_000
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
    line: Line | None = None
    pieces: Pieces | None = None

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


def work_curve(requests: RequestTable, work: Windows, steps: StepTable | None, t0: float, t1: float) -> WorkCurve:
    """Cumulative work from t0 to t1 (seconds from the windows' origin) on a grid of 20 ms (coarser for long runs)."""
    cells = int(np.clip(np.ceil((t1 - t0) / 0.02), 1, 500_000))
    t = np.linspace(t0, t1, cells + 1)
    width = t[1] - t[0]
    turns, decode, context = np.zeros(cells), np.zeros(cells), np.zeros(cells)
    busy_start, busy_end = union(work.start, work.last)
    line = None if steps is None else _line(steps, work.origin_ns, busy_start)
    decoded = None if line is None else line.where(line.decodes > 0)
    for a, b in read_slices(requests, work.row):
        _, at, steps_of, tokens, read = decode_reads(requests, work, a, b, decoded)
        cell = np.clip(((at - t0) / width).astype(np.int64), 0, cells - 1)
        turns += np.bincount(cell, steps_of, cells)
        decode += np.bincount(cell, tokens, cells)
        context += np.bincount(cell, read, cells)
    one = np.ones(len(work))
    again = work.again.where(work.again.end > work.again.start)
    prefilling = np.diff(spread(t, work.start, work.first, work.first - work.start))
    decoding = np.diff(spread(t, work.first, work.last, work.last - work.first))
    if len(again):  # a victim waits, and is then in prefill once more: neither is decode
        prefilling += _cover(t, again.start, again.end)
        decoding = np.maximum(decoding - _cover(t, again.stall, again.end), 0.0)
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
    if steps is None or line is None:
        return curve
    found = pieces(requests, work, line)
    return replace(_placed(curve, _told_steps(line, found, curve)), line=line, pieces=found)


def line_of(steps: StepTable, work: Windows) -> Line:
    """The stream's steps in time."""
    return _line(steps, work.origin_ns, union(work.start, work.last)[0])


def _line(steps: StepTable, origin_ns: int, busy_start: Floats) -> Line:
    start, end = _step_times(steps, origin_ns, busy_start)
    prompts, decodes = steps.ctx_requests.astype(float), steps.generation_requests.astype(float)
    made = steps.generation_tokens.astype(float)
    lost = np.where(known(steps.preempted), steps.preempted, 0).astype(float)
    return Line(np.minimum(start, end - 1e-6), end, prompts, steps.ctx_tokens.astype(float), decodes, made, lost)


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


def _told_steps(line: Line, found: Pieces, curve: WorkCurve) -> Told:
    """Duration and work of every step of the stream. Tokens as told; contexts of prompts by whose tokens they were, of
    decodes by what lies around the step."""
    start, end, n = line.start, line.end, len(line)
    around = curve.at(end + NEAR_S)[0] - curve.at(start - NEAR_S)[0]
    per_prompt = np.divide(around[:, 2], around[:, 1], out=np.zeros(n), where=around[:, 1] > 0.5)
    per_token = np.divide(around[:, 4], around[:, 3], out=np.zeros(n), where=around[:, 3] > 0.5)
    placed, context = (np.bincount(found.step, x, n) for x in (found.tokens, found.context))
    per_prompt = np.where(placed > 0.5 * line.tokens, context / np.maximum(placed, 1.0), per_prompt)
    work = np.stack([np.ones(n), line.tokens, line.tokens * per_prompt, line.generated, line.generated * per_token], 1)
    good = (end > start + 1e-5) & (line.tokens + line.generated > 0)
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
