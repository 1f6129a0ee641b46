"""Where the work lay in time: the cumulative work of the engine, from windows, reads and (L3) the iteration stream.

`WorkCurve` has cumulative features on a fine grid, for lag, time and energy fits. May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from energy.reads import decode_reads, read_slices
from energy.schedule import Line, Pieces, pieces
from energy.tables import Floats, RequestTable, StepTable, known
from energy.tail import TAIL_S, faded
from energy.windows import Windows

CELL_S, COARSE_S, MOST_FINE, MOST = 0.005, 0.02, 200_000, 500_000
"""cells that work is laid out in: below a step's length where the run is short enough for so many, else up to COARSE_S,
longer where those would be more than MOST"""
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
    seconds, share[:, phase] = integral over steps of what one sequence in prefill (0) or decode (1) pays of them; turn:
    per cell, what one decoding sequence pays of a step in which it decodes; clock: seconds in which decodes did not
    stand still (None: they never do); lit: disjoint intervals in which something ran; tail_s: time constant of
    power after it (energy.tail)."""

    t: Floats
    features: Floats
    busy: Floats
    tail: Floats
    share: Floats
    turn: Floats
    clock: Floats | None = None
    told: Told | None = None
    line: Line | None = None
    pieces: Pieces | None = None
    lit: tuple[Floats, Floats] | None = None
    tail_s: float = TAIL_S

    def until(self, t: float) -> WorkCurve:
        """What precedes t."""
        k = self.t <= t
        told = None if self.told is None else self.told.until(t)
        part = (self.t[k], self.features[k], self.busy[k], self.tail[k], self.share[k], self.turn[k[1:]])
        return WorkCurve(*part, told=told, tail_s=self.tail_s)

    def fading(self, tail_s: float) -> WorkCurve:
        """The same work, before a board whose power fades with this time constant after it."""
        if self.lit is None:
            return self
        return replace(self, tail=faded(self.t, *self.lit, tail_s), tail_s=tail_s)

    def coarse(self, begin: float, end: float) -> Floats:
        """Instants between begin and end that cut the time into cells of COARSE_S, the same whatever the grid: power
        bends with the work of a cell, so that its length is part of what a limit means."""
        every = max(1, round(COARSE_S / float(self.t[1] - self.t[0]))) if len(self.t) > 1 else 1
        t = self.t[::every]
        return np.asarray(t[(t > begin) & (t < end)])

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


def _grid(t0: float, t1: float) -> Floats:
    """Instants of even spacing, a whole number of which make one coarse cell."""
    coarse = int(np.clip(np.ceil((t1 - t0) / COARSE_S), 1, MOST))
    parts = max(1, min(round(COARSE_S / CELL_S), MOST_FINE // coarse))
    return np.linspace(t0, t1, coarse * parts + 1)


def work_curve(
    requests: RequestTable, work: Windows, steps: StepTable | None, t0: float, t1: float, *, alone: bool = False
) -> WorkCurve:
    """Cumulative work from t0 to t1 (seconds from the windows' origin). alone: prompts have the engine to themselves,
    for where nobody told its steps."""
    t = _grid(t0, t1)
    busy_start, busy_end = union(work.start, work.last)
    busy = spread(t, busy_start, busy_end, busy_end - busy_start)
    tail = faded(t, busy_start, busy_end, TAIL_S)
    line = None if steps is None else _line(steps, work.origin_ns, busy_start)
    clock = None
    if line is None and alone:
        start, end = union(work.start, work.first)
        clock = t - spread(t, start, end, end - start)
    turns, decode, context = _decodes(requests, work, t, line, clock)
    present = _present(work, t)
    count, share, turn = _paid(work, t, np.diff(busy), present, turns, alone=clock is not None)
    if steps is not None:
        count, share = _told(steps, work.origin_ns, busy_start, t, count, share, present)
    one, again = np.ones(len(work)), work.again
    before = work.prefill * work.cached + work.prefill * np.maximum(work.prefill - 1, 0) / 2
    twice = again.tokens * (again.context + again.tokens / 2)
    columns = [
        np.concatenate([[0.0], np.cumsum(count)]),
        spread(t, work.start, work.first, work.prefill * one) + spread(t, again.start, again.end, again.tokens),
        spread(t, work.start, work.first, before) + spread(t, again.start, again.end, twice),
        np.concatenate([[0.0], np.cumsum(decode)]),
        np.concatenate([[0.0], np.cumsum(context)]),
    ]
    paid = np.concatenate([np.zeros((1, 2)), np.cumsum(share, 0)])
    curve = WorkCurve(t, np.stack(columns, 1), busy, tail, paid, turn, clock, lit=(busy_start, busy_end))
    if steps is None or line is None:
        return curve
    found = pieces(requests, work, line)
    return replace(_placed(curve, _told_steps(line, found, curve)), line=line, pieces=found)


def _decodes(
    requests: RequestTable, work: Windows, t: Floats, line: Line | None, clock: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """(turns, tokens, context read) of decodes per cell."""
    cells, width = len(t) - 1, t[1] - t[0]
    turns, decode, context = np.zeros(cells), np.zeros(cells), np.zeros(cells)
    decoded = None if line is None else line.where(line.decodes > 0)
    moving = None if clock is None else (t, clock)
    for a, b in read_slices(requests, work.row):
        _, at, steps_of, tokens, read = decode_reads(requests, work, a, b, decoded, moving)
        cell = np.clip(((at - t[0]) / width).astype(np.int64), 0, cells - 1)
        given = np.bincount(cell, tokens, cells)
        turns += given if steps_of is tokens else np.bincount(cell, steps_of, cells)
        decode += given
        context += np.bincount(cell, read, cells)
    return turns, decode, context


def _present(work: Windows, t: Floats) -> Floats:
    """Seconds of windows in prefill and in decode, per cell."""
    again = work.again.where(work.again.end > work.again.start)
    prefilling, decoding = _cover(t, work.start, work.first), _cover(t, work.first, work.last)
    if len(again):  # a victim waits, and is then in prefill once more: neither is decode
        prefilling += _cover(t, again.start, again.end)
        decoding = np.maximum(decoding - _cover(t, again.stall, again.end), 0.0)
    return np.stack([prefilling, decoding], 1)


def _paid(
    work: Windows, t: Floats, busy: Floats, present: Floats, turns: Floats, *, alone: bool
) -> tuple[Floats, Floats, Floats]:
    """Per cell, as reads show it: engine steps, what one sequence in prefill and one in decode pays of them, and what a
    decoding sequence pays of one step. A decoding sequence has as many steps as tokens; prompts are computed in those
    steps, but where nobody decodes, or prompts are alone: there those of one moment share a step."""
    decode_busy = _cover(t, *union(work.first, work.last))
    at_once = np.maximum(present[:, 1] / np.maximum(decode_busy, 1e-9), 1.0)
    together = np.maximum(present.sum(1) / np.maximum(busy, 1e-9), 1.0)
    prompts = np.diff(spread(t, work.start, work.first, np.ones(len(work))))
    shared = np.where(present[:, 1] > 0, turns / at_once, 0.0)
    if alone:
        beside = np.maximum(present[:, 0] / np.maximum(_cover(t, *union(work.start, work.first)), 1e-9), 1.0)
        own = prompts / beside
        return shared + own, np.stack([own / beside, shared / at_once], 1), 1 / at_once
    lone = np.clip(1 - decode_busy / np.maximum(busy, 1e-9), 0.0, 1.0)
    count = shared + lone * prompts / together
    return count, np.stack([count / together] * 2, 1), 1 / together


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
