"""Whom preemption hit, and what was computed again for it: the victim pays, and pays nothing while it waits.

A sequence that runs gets a token in every step. One that misses steps while others get theirs lost its place; when it
is taken back its prompt and what it had given are computed once more, but for blocks that the cache still holds. Where
the iteration stream names the steps that preempted, a miss that begins with such a step is one; else only a stall of
several steps is, for which no burst of tokens makes up as after a late read. Pure. May not know: energy, sensors,
files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energy.reads import read_slices
from energy.schedule import Pieces
from energy.tables import NONE, Floats, Ints, Mask, RequestTable, StepTable, known
from energy.windows import Again, Windows
from energy.work import WorkCurve

STALLED_STEPS = 3
"""steps missed in a row, beyond the tokens that end the wait, that make a stall, where the engine does not name the
steps that preempted"""
SLOWER = 1.5
"""how much longer than a sequence's other waits one must be to be looked at"""
LEAST_S = 0.002
MOST_LISTED = 1000
"""victims named in the ledger"""


@dataclass(frozen=True, slots=True)
class Stalls:
    """Waits of decoding sequences: window index, from its last token before to its first one after (s), output tokens
    given before, tokens in the read that ended it, the sequence's mean other wait and its wait after (s)."""

    window: Ints
    begin: Floats
    end: Floats
    given: Floats
    burst: Floats
    usual: Floats
    after: Floats

    def where(self, keep: Mask) -> Stalls:
        """Only these."""
        return Stalls(*(getattr(self, name)[keep] for name in self.__slots__))


def with_recompute(
    requests: RequestTable, work: Windows, curve: WorkCurve, steps: StepTable | None, preempted: int | None
) -> Windows:
    """The windows with what was computed again for each victim. preempted: what the engine counts; 0 means none, None
    that it does not say. steps: the iteration stream, where the level allows it."""
    if preempted == 0 or not len(work):
        return work
    if steps is None or not np.any(steps.preempted > 0):
        found = waits(requests, work, SLOWER)
        found = found.where(_stalled(found, work, curve, preempted))
        again = _again(found, work, _given_meanwhile(found, work, curve))
    elif curve.pieces is not None and not told_late(requests, work, steps):
        again = _by_pieces(curve.pieces, work)
    else:
        again = _by_steps(waits(requests, work, SLOWER), work, steps)
    return replace(work, again=again) if len(again) else work


def told_late(requests: RequestTable, work: Windows, steps: StepTable) -> bool:
    """Does the engine tell of a preemption with the victim's next token (vLLM) instead of when it threw it out? Then
    fewer are running than a step before; an engine that does not say how many are is judged by the waits."""
    told = np.flatnonzero(steps.preempted > 0)
    if not len(told):
        return False
    if np.any(steps.running > 0):
        return bool(np.mean(np.diff(steps.running, prepend=steps.running[:1])[told] < 0) < 0.5)
    found, t = waits(requests, work, SLOWER), (steps.t_ns - work.origin_ns) / 1e9
    began, ended = (_named(found, t, steps.preempted, at_end=at_end)[1] for at_end in (False, True))
    return bool(np.count_nonzero(ended) > np.count_nonzero(began))


def in_time(requests: RequestTable, work: Windows, steps: StepTable | None) -> StepTable | None:
    """The stream, without its preemptions where they are told too late to say whom they hit."""
    if steps is None or not np.any(steps.preempted > 0) or not told_late(requests, work, steps):
        return steps
    return replace(steps, preempted=np.full(len(steps), NONE))


def _by_pieces(found: Pieces, work: Windows) -> Again:
    """What the replayed queue computed again: of interrupted decodes piece by piece, of prompts what exceeds them, as
    entries of no length: that lies in their own windows."""
    k = np.flatnonzero(found.again & (found.tokens > 0))
    tokens = found.tokens[k]
    decoding = Again(
        found.window[k], np.minimum(found.since[k], found.start[k]), found.start[k], found.end[k], tokens,
        np.maximum(found.context[k] / tokens - tokens / 2, 0.0),
    )  # fmt: skip
    made = np.bincount(found.window[~found.again], found.tokens[~found.again], len(work))
    w = np.flatnonzero(np.isfinite(found.lost) & (made > work.prefill + 0.5))
    end = work.first[w]
    at = np.minimum(found.lost[w], end - 1e-6)
    return _joined(decoding, Again(w, at, end, end, (made - work.prefill)[w], work.cached[w]))


def restated(steps: StepTable, width: int) -> StepTable:
    """The stream with prompt tokens computed again counted as prompt tokens. vLLM calls a preempted sequence that has
    given tokens a generating one, and what is computed again of it generation tokens: more than `width` (one, and its
    drafts) for each generating sequence. A stream in which that is no exception speculates without saying so, and
    stays as it is."""
    more = steps.generation_tokens - steps.generation_requests * width
    odd = more > 0
    if not np.any(odd) or np.mean(odd) > 0.2:
        return steps
    moved = np.where(odd, 1, 0)
    return replace(
        steps,
        ctx_requests=steps.ctx_requests + moved,
        ctx_tokens=steps.ctx_tokens + np.where(odd, more + width, 0),
        generation_requests=steps.generation_requests - moved,
        generation_tokens=steps.generation_tokens - np.where(odd, more + width, 0),
    )


def width_of(work: Windows) -> int:
    """Tokens that a decode computes in a step at most: one, and the drafts that requests say were verified for them."""
    turns = np.maximum(work.decode - work.accepted, 1.0)
    return 1 + (int(np.ceil(np.max(work.drafted / turns))) if len(work) else 0)


def victims(requests: RequestTable, works: list[Windows]) -> dict[str, Any]:
    """{requests, recomputed_tokens, listed: [{request_id, t_ns, recomputed_tokens}] of up to MOST_LISTED, most first},
    over the engines of a run."""
    found = [
        (float(w.again.tokens[k]), int(w.row[w.again.window[k]]), w.origin_ns + round(float(w.again.stall[k]) * 1e9))
        for w in works
        for k in range(len(w.again))
    ]
    found.sort(key=lambda f: (-f[0], f[2]))
    return {
        "requests": len({row for _, row, _ in found}),
        "recomputed_tokens": round(sum(tokens for tokens, _, _ in found)),
        "listed": [
            {"request_id": requests.ids[row], "t_ns": t_ns, "recomputed_tokens": round(tokens)}
            for tokens, row, t_ns in found[:MOST_LISTED]
        ],
    }


def _by_steps(found: Stalls, work: Windows, steps: StepTable) -> Again:
    """Victims of the steps that preempted: those that missed it in decode, the rest in prefill. What was computed again
    is in all what the stream has of prompt tokens beyond everyone's first ones. An engine that tells of a preemption
    with the victim's next token (vLLM) names the step that ended the wait; who was in prefill is not known then."""
    t = (steps.t_ns - work.origin_ns) / 1e9
    began, ended = (_named(found, t, steps.preempted, at_end=at_end) for at_end in (False, True))
    late = np.count_nonzero(ended[1]) > np.count_nonzero(began[1])
    step, keep = ended if late else began
    again = _again(found.where(keep), work)
    if not late:
        left = np.where(known(steps.preempted), steps.preempted, 0) - np.bincount(step[keep], minlength=len(t))
        again = _joined(again, _early(work, t, left))
    inside = (t >= 0) & (t <= work.last.max())
    spare = float(steps.ctx_tokens[inside].sum()) - float(work.prefill.sum())
    tokens = np.maximum(_within(again.tokens, max(spare, 0.0)), 1.0)
    return replace(again, tokens=tokens, context=again.context + again.tokens - tokens)


def _early(work: Windows, t: Floats, left: Ints) -> Again:
    """Victims that had given nothing yet: of those in prefill when a step preempted, the last admitted. They do again
    what they had done."""
    pace = _pace(work)
    order = np.argsort(work.start, kind="stable")
    rows = []
    for k in np.flatnonzero(left > 0):
        at = float(t[k])
        there = order[: np.searchsorted(work.start[order], at)][::-1]
        there = there[(work.first[there] > at)][: int(left[k])]
        rows += [(int(w), at, min((at - work.start[w]) / pace, work.prefill[w])) for w in there.tolist()]
    window = np.array([r[0] for r in rows], np.int64)
    since, tokens = (np.array([r[i] for r in rows], float) for i in (1, 2))
    end = work.first[window]
    start = np.maximum(since, end - np.maximum(tokens * pace, 1e-6))
    return Again(window, end, np.minimum(start, end - 1e-6), end, tokens, work.cached[window])


def _within(most: Floats, total: Floats | float) -> Floats:
    """Amounts up to `most` that sum to total, the same for all who could have had it: the cache keeps the blocks of a
    victim that comes back soon, whatever its length."""
    order = np.sort(most)
    n = len(order)
    filled = np.concatenate([[0.0], np.cumsum(order)])[:n] + order * (n - np.arange(n))
    k = int(np.searchsorted(filled, total))
    if k == n:
        return most
    level = (total - order[:k].sum()) / (n - k)
    capped: Floats = np.minimum(most, level)
    return capped


def _joined(a: Again, b: Again) -> Again:
    return Again(*(np.concatenate([getattr(a, n), getattr(b, n)]) for n in Again.__slots__))


def waits(requests: RequestTable, work: Windows, slower: float) -> Stalls:
    """Waits between reads that are `slower` times as long as the sequence's others on average."""
    parts = []
    for a, b in read_slices(requests, work.row):
        row = work.row[a:b]
        low, high = requests.read_start[row], requests.read_start[row + 1]
        counts = high - low
        index = np.repeat(np.arange(a, b), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        flat = np.repeat(low, counts) + np.arange(len(index)) - first
        t = (requests.read_ns[flat] - work.origin_ns) / 1e9
        gap = np.diff(t, prepend=t[:1])
        inner = np.arange(len(index)) > first
        gap = np.where(inner, gap, 0.0)
        total = np.bincount(index - a, gap, b - a)
        usual = (total[index - a] - gap) / np.maximum(counts[index - a] - 2, 1)
        long = np.flatnonzero(inner & (gap > slower * usual) & (gap > LEAST_S) & (counts[index - a] > 3))
        tokens = requests.read_tokens[flat].astype(float)
        so_far = np.cumsum(tokens)
        given = (so_far - tokens)[long] - (so_far - tokens)[first[long]]
        following = np.minimum(long + 1, max(len(gap) - 1, 0))
        after = np.where(inner[following] & (following > long), gap[following], usual[long])
        parts.append((index[long], t[long] - gap[long], t[long], given, tokens[long], usual[long], after))
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 7
    return Stalls(columns[0].astype(np.int64), *columns[1:])


def _stalled(found: Stalls, work: Windows, curve: WorkCurve, preempted: int | None) -> Mask:
    """Stalls of several steps that the tokens at their end do not make up for, as those would that a late network held
    back; of more than the engine counts the longest."""
    steps = _steps_taken(work, curve)
    missed = np.interp(found.end, curve.t, steps) - np.interp(found.begin, curve.t, steps) - found.burst
    out: Mask = (missed >= STALLED_STEPS) & (found.after >= 0.3 * found.usual)
    if preempted is not None and np.count_nonzero(out) > preempted:
        longest = np.argsort(np.where(out, missed, -1.0), kind="stable")[len(out) - preempted :]
        out = out & np.isin(np.arange(len(out)), longest)
    return out


def _given_meanwhile(found: Stalls, work: Windows, curve: WorkCurve) -> Floats | None:
    """Tokens that others were given during each wait, None where nothing is cached: a prefix cache keeps the blocks of
    a victim until others need them, and they need room for a token each per step."""
    if not np.any(work.cached > 0):
        return None
    given = curve.features[:, 3]
    return np.asarray(np.interp(found.end, curve.t, given) - np.interp(found.begin, curve.t, given))


def _steps_taken(work: Windows, curve: WorkCurve) -> Floats:
    """Steps in which those in decode got a token, so far, at the curve's instants. An engine that lets prompts go first
    makes all of them wait at once: nobody misses anything, and steps that hold prompts alone do not count."""
    middle = (curve.t[1:] + curve.t[:-1]) / 2
    there = np.searchsorted(np.sort(work.first), middle) - np.searchsorted(np.sort(work.last), middle)
    done = np.diff(curve.features[:, [0, 3]], axis=0)
    return np.concatenate([[0.0], np.cumsum(np.minimum(done[:, 0], done[:, 1] / np.maximum(there, 1)))])


def _named(found: Stalls, t: Floats, preempted: Ints, *, at_end: bool) -> tuple[Ints, Mask]:
    """(the step that could have told of each wait, whether it did). That step is the first one missed, or (at_end) the
    one that ended the wait. Of more than a step told of, those that waited longest. t: when steps ended."""
    slack = 0.3 * found.usual
    missed = np.minimum(np.searchsorted(t, found.begin + slack, "right"), len(t) - 1)
    last = np.minimum(np.searchsorted(t, found.end - slack, "right"), len(t) - 1)
    step = last if at_end else missed
    ok = known(preempted)[step] & (preempted[step] > 0) & (t[missed] < found.end - slack)
    order = np.lexsort((found.begin - found.end, step))
    order = order[ok[order]]
    rank = np.arange(len(order)) - np.searchsorted(step[order], step[order], "left")
    keep = np.zeros(len(ok), bool)
    keep[order[rank < preempted[step[order]]]] = True
    return step, keep


def _again(found: Stalls, work: Windows, most: Floats | None = None) -> Again:
    """Prompt and output given so far less what was cached at first: at most what the wait had time for, and `most`."""
    w = found.window
    whole = work.prompt[w] + found.given
    pace = _pace(work)
    tokens = np.minimum(whole - work.cached[w], (found.end - found.begin) / pace)
    tokens = np.maximum(tokens if most is None else np.minimum(tokens, most), 1.0)
    start = np.maximum(found.begin, found.end - np.maximum(tokens * pace, found.usual))
    return Again(w, found.begin, start, found.end, tokens, whole - tokens)


def _pace(work: Windows) -> float:
    """Seconds per prompt token computed, the median token's."""
    took = (work.first - work.start) / np.maximum(work.prefill, 1.0)
    order = np.argsort(took)
    total = np.cumsum(work.prefill[order])
    return max(float(took[order][np.searchsorted(total, total[-1] / 2)]), 1e-7) if total[-1] > 0 else 1e-4
