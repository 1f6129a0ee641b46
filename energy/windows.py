"""Who was scheduled when, with how many tokens: prefill and decode window of every request.

From stamps and usage (L1) or engine metrics per request (L2, L3). Waiting draws nothing: a window begins where prefill
did, which nobody says at L1. May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from energy.tables import NONE, Floats, Ints, Mask, RequestTable, known

APART = 0.1
"""share of the time its prompts take by which a group of first tokens must follow the one before to be a step of its
own: a reader is late by milliseconds, a step of long prompts lasts hundreds"""
WHOLE, FEW = 0.9, 2
"""a reply of more than FEW tokens in one read, that late in its request's time, was not streamed"""
NOT_SERVED = ("rejected", "skipped", "unreachable")


@dataclass(frozen=True, slots=True)
class Again:
    """Prompt work done once more after a preemption: window index; the sequence waits in [stall, start] and is computed
    again in [start, end] (s): this many tokens, after `context` that the cache still held."""

    window: Ints
    stall: Floats
    start: Floats
    end: Floats
    tokens: Floats
    context: Floats

    def __len__(self) -> int:
        return len(self.window)

    def where(self, keep: Mask) -> Again:
        """Only these."""
        return Again(*(getattr(self, name)[keep] for name in self.__slots__))


def _never() -> Again:
    none = np.zeros(0)
    return Again(np.zeros(0, np.int64), none, none, none, none, none)


@dataclass(frozen=True, slots=True)
class Windows:
    """Scheduled time of the requests that reached the engine: prefill [start, first], decode [first, last]; seconds
    from origin_ns. row: index into the request table. decode: tokens given after the first; drafted, accepted: draft
    tokens verified for it and those accepted (0 where nothing speculates, or nobody says). imputed: some count was
    missing and a typical one stands in."""

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
    drafted: Floats
    accepted: Floats
    imputed: Mask
    again: Again = field(default_factory=_never)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def computed_again(self) -> float:
        """Prompt tokens computed once more after a preemption, as a share of those computed at first."""
        return float(self.again.tokens.sum() / max(self.prefill.sum(), 1.0))


def windows(requests: RequestTable, level: str, rows: Mask | None = None) -> Windows:
    """Scheduled windows of every served request; rows: of these alone (one engine's)."""
    served = known(requests.sent_ns) & known(requests.end_ns)
    served &= True if rows is None else rows
    bad = [i for i, n in enumerate(requests.outcome.names) if n in NOT_SERVED]
    served &= ~np.isin(requests.outcome.codes, bad)
    row = np.flatnonzero(served)
    origin = int(requests.sent_ns[row].min()) if len(row) else 0
    sent, end = ((c[row] - origin) / 1e9 for c in (requests.sent_ns, requests.end_ns))
    end = np.maximum(end, sent + 1e-6)
    prompt, cached, completion, imputed = _counts(requests, row)
    computed = np.maximum(prompt - cached, np.minimum(prompt, 1.0))
    first_ns = np.where(_at_once(requests, row, completion), NONE, requests.first_ns[row])
    pace = _pace(sent, first_ns, origin, computed)
    first = np.where(known(first_ns), (first_ns - origin) / 1e9, np.minimum(sent + pace * computed, end))
    if level != "L1":
        told = known(requests.prefill_ns[row]) & known(requests.queue_ns[row]) & ~known(first_ns)
        first = np.where(told, sent + (requests.queue_ns[row] + requests.prefill_ns[row]) / 1e9, first)
    first = np.clip(first, sent + 1e-6, end)
    last = np.where(known(requests.last_ns[row]), (requests.last_ns[row] - origin) / 1e9, end)
    last = np.where(known(first_ns), last, end)
    decode = np.maximum(completion - 1, 0.0)
    last = np.where(decode > 0, np.maximum(last, first + 1e-6), first)
    unfinished = ~known(first_ns) & (completion == 0)
    first, last = np.where(unfinished, end, first), np.where(unfinished, end, last)
    computed = np.where(unfinished, np.minimum(computed, (end - sent) / max(pace, 1e-9)), computed)
    start = _fifo(sent, first, last, computed, decode, pace)
    if level != "L1":
        told = known(requests.prefill_ns[row]) & known(requests.first_ns[row])
        start = np.where(told, np.clip(first - requests.prefill_ns[row] / 1e9, sent, first - 1e-6), start)
    drafted, accepted = _drafts(requests, row, decode)
    return Windows(
        origin, row, sent, start, first, last, computed, prompt - computed, prompt, decode, drafted, accepted, imputed
    )


def _at_once(requests: RequestTable, row: Ints, completion: Floats) -> Mask:
    """Replies that came whole (not streamed): their first byte says nothing of their first token."""
    reads = np.diff(requests.read_start)[row]
    late = requests.first_ns[row] - requests.sent_ns[row] > WHOLE * (requests.end_ns[row] - requests.sent_ns[row])
    return np.asarray((reads <= 1) & (completion > FEW) & late)


def _drafts(requests: RequestTable, row: Ints, decode: Floats) -> tuple[Floats, Floats]:
    """(draft tokens verified, accepted) where both are said. No more can have been accepted than was given, less one
    token for each step, of which there is one at least."""
    said = known(requests.drafted[row]) & known(requests.accepted[row]) & (decode > 0)
    drafted = np.where(said, requests.drafted[row], 0).astype(float)
    accepted = np.where(said, requests.accepted[row], 0).astype(float)
    return drafted, np.minimum(np.minimum(accepted, drafted), np.maximum(decode - 1, 0.0))


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


def pace_of(requests: RequestTable, work: Windows) -> float:
    """Seconds per computed prompt token."""
    return _pace(work.sent, requests.first_ns[work.row], work.origin_ns, work.prefill)


def _pace(sent: Floats, first_ns: Ints, origin: int, computed: Floats) -> float:
    """Seconds per computed prompt token, weighted by tokens (a short prompt says more of steps than of tokens): the
    lower of two views. Alone: from sent to first token, a low percentile, where nothing queued. In a queue: from the
    previous group of first tokens to one's own, for groups that were all there before."""
    ok = known(first_ns) & (computed > 0)
    if not np.any(ok):
        return 1e-4
    sent, first, computed = sent[ok], (first_ns[ok] - origin) / 1e9, computed[ok]
    alone = _weighted((first - sent) / computed, computed, 0.1)
    order = np.argsort(first, kind="stable")
    at = np.flatnonzero(_steps(first[order], computed[order], alone, 0.002))
    begin, tokens = first[order][at], np.add.reduceat(computed[order], at)
    latest = np.maximum.reduceat(sent[order], at)
    queued = np.flatnonzero(latest[1:] < begin[:-1]) + 1
    if len(queued) >= 20:
        took = begin[queued] - begin[queued - 1]
        alone = min(alone, _weighted(took / tokens[queued], tokens[queued], 0.5))
    return max(1e-7, alone)


def _weighted(values: Floats, weights: Floats, q: float) -> float:
    """Quantile q of values by weight."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, q * total[-1])])


def _fifo(sent: Floats, first: Floats, last: Floats, computed: Floats, decode: Floats, pace: float) -> Floats:
    """When prefill began, where nobody says: not before it was sent, nor (first come, first served) before the previous
    group of first tokens, nor much longer ago than its tokens and a short step take."""
    if not len(sent):
        return sent
    some = decode > 0
    gap = float(np.quantile((last[some] - first[some]) / decode[some], 0.9)) if np.any(some) else 0.0
    order = np.argsort(first, kind="stable")
    f = first[order]
    new = _steps(f, computed[order], pace, max(0.002, 0.25 * gap))
    at = np.flatnonzero(new)
    index = np.cumsum(new) - 1
    together = np.empty_like(first)
    begins, took = f[at], np.add.reduceat(computed[order], at)
    together[order] = took[index]
    previous = np.where(index > 0, begins[np.maximum(index - 1, 0)], -np.inf)
    alone = begins - np.maximum(np.maximum.reduceat(sent[order], at), np.append(-np.inf, begins[:-1]))
    step = float(np.quantile(alone, 0.05))
    begin = np.empty_like(first)
    begin[order] = previous
    cap = np.maximum(3 * computed, 1.5 * together) * pace + 2 * max(gap, step)
    return np.minimum(np.maximum.reduce([sent, np.minimum(begin, first - computed * pace), first - cap]), first - 1e-6)


def _steps(first: Floats, computed: Floats, pace: float, least: float) -> Mask:
    """Where a new group of first tokens begins, times in order: groups that follow one another too closely for the
    tokens of the later one came out of one step, and were read apart."""
    new = np.diff(first, prepend=-np.inf) > least
    at = np.flatnonzero(new)
    gap = np.diff(first[at], prepend=-np.inf)
    new[at] = gap > APART * pace * np.add.reduceat(computed, at)
    new[0] = True
    return np.asarray(new)
