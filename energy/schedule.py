"""Which engine step computed how many prompt tokens of which request: nobody says it, but nearly everything around it.

Each request's tokens lie in steps between its start and its first token; each step's tokens add up to what the engine
told. First the queue is replayed as a first come, first served engine keeps it: who ends in a step takes all that is
left of its prompt, the others of that step share the rest evenly, and who loses its place begins again. Then the table
is fitted to its margins (iterative proportional fitting): rows to each prompt's tokens, columns to each step's; the
row of a victim of preemption is what the columns leave. May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from energy.tables import Floats, Ints, Mask, RequestTable
from energy.windows import Windows

LATE_S = 0.02
"""a stamp of a step's end may come after the client's by this much and be of the same step"""
MOST_STEPS = 4000
"""steps that one prompt may lie in; a longer window stays even"""
ROUNDS = 60
CLOSE = 0.002
"""margins agree to this share: no more rounds"""


@dataclass(frozen=True, slots=True)
class Line:
    """Engine steps in order of time: start, end (s), requests in prefill, prompt tokens computed, requests in decode,
    tokens that they made, running sequences that lost their place at its begin."""

    start: Floats
    end: Floats
    prompts: Floats
    tokens: Floats
    decodes: Floats
    generated: Floats
    preempted: Floats

    def __len__(self) -> int:
        return len(self.end)

    @property
    def sequences(self) -> Floats:
        """Sequences in each step."""
        return self.prompts + self.decodes

    def where(self, keep: Mask) -> Line:
        """Only these steps."""
        return Line(*(getattr(self, name)[keep] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Pieces:
    """Prompt tokens of a window in a step (index into the line): its start and end (s), tokens, tokens x context, the
    window's share of the step. again: computed once more after it had decoded; since: when it lost its place for that
    (s). covered: windows whose prefill is in here; lost: when such a window lost its place before its first token (s,
    inf: never)."""

    window: Ints
    step: Ints
    again: Mask
    start: Floats
    end: Floats
    tokens: Floats
    context: Floats
    part: Floats
    since: Floats
    covered: Mask
    lost: Floats


def step_at(line: Line, t: Floats) -> Ints:
    """The last step that a stamp t can be of (-1: none)."""
    slack = np.minimum(0.25 * (line.end - line.start), LATE_S)
    out: Ints = np.searchsorted(np.maximum.accumulate(line.end - slack), t, "right") - 1
    return out


def pieces(requests: RequestTable, work: Windows, line: Line) -> Pieces:
    """Prompt tokens of every window that the steps cover, by step."""
    some = (line.prompts > 0) & (line.tokens > 0)
    if not np.any(some):
        none, nothing = np.zeros(0, np.int64), np.zeros(0)
        lost = np.full(len(work), np.inf)
        unseen = np.zeros(len(work), bool)
        return Pieces(
            none, none, none > 0, nothing, nothing, nothing, nothing, nothing, nothing, unseen, lost
        )  # fmt: skip
    filled = line.where(some)
    preempted = _preempted(line, filled)
    last = step_at(filled, work.first)
    end = filled.end[np.maximum(last, 0)]
    low = np.searchsorted((filled.start + filled.end) / 2, end - (work.first - work.start), "left")
    low = np.minimum(low, last)
    near = (last >= 0) & (work.first - end < 1.0 + 2 * (work.first - work.start))
    inside = near & (work.start >= line.start[0] - 0.01) & (work.first <= line.end[-1] + 0.1)
    covered = inside & (work.prefill > 0) & (last - low < MOST_STEPS)
    leave = np.searchsorted(filled.end, work.last, "left")
    queue = _Queue(requests, work, filled, preempted, low, last, leave, np.flatnonzero(covered))
    window, step, tokens, before, since = queue.replay()
    need = np.where(covered, work.prefill, 0.0)
    tokens = _fitted(window, step, tokens, need, filled.tokens, queue.lost)
    order = np.lexsort((step, window))
    window, step = window[order], step[order]
    tokens, before, since = tokens[order], before[order], since[order]
    done = np.cumsum(tokens)
    done += -tokens - (done - tokens)[np.searchsorted(window, window, "left")]
    before = np.where(queue.lost[window] > 0, before, np.minimum(done, work.prefill[window]))
    context = tokens * (work.cached[window] + before + tokens / 2)
    present = np.bincount(step, minlength=len(filled))
    part = np.minimum(filled.prompts / np.maximum(present, 1), 1.0) / np.maximum(filled.sequences, 1.0)
    again = step > last[window]
    return Pieces(
        window,
        np.flatnonzero(some)[step],
        again,
        filled.start[step],
        filled.end[step],
        tokens,
        context,
        part[step],
        since,
        covered,
        queue.early,
    )


def _preempted(line: Line, filled: Line) -> dict[int, list[tuple[float, float]]]:
    """Begin and end (s) of the step of each preemption, by the next step with a prompt in it."""
    at = np.repeat(np.arange(len(line)), line.preempted.astype(np.int64))
    out: dict[int, list[tuple[float, float]]] = {}
    for k, begin, end in zip(
        np.searchsorted(filled.end, line.end[at]).tolist(), line.start[at].tolist(), line.end[at].tolist(), strict=True
    ):
        out.setdefault(k, []).append((begin, end))
    return out


class _Queue:
    """The engine's queue, step by step."""

    def __init__(
        self,
        requests: RequestTable,
        work: Windows,
        line: Line,
        preempted: dict[int, list[tuple[float, float]]],
        low: Ints,
        last: Ints,
        leave: Ints,
        which: Ints,
    ) -> None:
        self.requests, self.work, self.line, self.preempted = requests, work, line, preempted
        self.prefill = work.prefill.tolist()
        self.last, self.leave = last.tolist(), leave
        self.coming = which[np.lexsort((work.sent[which], low[which]))].tolist()[::-1]
        self.low = low.tolist()
        self.leaving = which[np.argsort(leave[which], kind="stable")].tolist()[::-1]
        self.running: dict[int, None] = {}
        self.active: dict[int, float] = {}
        self.waiting: list[int] = []
        self.away: dict[int, float] = {}
        self.again: dict[int, float] = {}
        """what an interrupted decode had, less what was cached at first"""
        self.lost = np.zeros(len(work))
        self.early = np.full(len(work), np.inf)
        self.found: list[tuple[int, int, float, float, float]] = []

    def replay(self) -> tuple[Ints, Ints, Floats, Floats, Floats]:
        """(window, step, tokens, tokens computed before them, when an interrupted decode lost its place), as far as
        the rules say."""
        requests, tokens = self.line.prompts.tolist(), self.line.tokens.tolist()
        for k in range(len(requests)):
            self._leave(k)
            thrown = self.preempted.get(k, ())
            now = [end >= self.line.end[k] for _, end in thrown]
            self.waiting += self._thrown(k, [x for x, here in zip(thrown, now, strict=True) if not here])
            held = self._thrown(k, [x for x, here in zip(thrown, now, strict=True) if here])
            if not held or len(self.active) < requests[k]:
                self._admit(k, int(requests[k]))
            self.waiting += held
            self._compute(k, int(requests[k]), tokens[k])
        rows = np.array(self.found, float).reshape(-1, 5)
        return rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2], rows[:, 3], rows[:, 4]

    def _leave(self, k: int) -> None:
        while self.leaving and self.leave[self.leaving[-1]] < k:
            gone = self.leaving.pop()
            self.running.pop(gone, None)

    def _thrown(self, k: int, steps: list[tuple[float, float]]) -> list[int]:
        """Who lost its place in each of these steps: the last admitted that did not go on getting tokens."""
        out = []
        for begin, end in steps:
            there = reversed(self.running)
            victim = next((w for w in there if w in self.active or not self._goes_on(w, begin, end)), None)
            if victim is None:
                continue
            del self.running[victim]
            left = self.active.pop(victim, None)
            if left is not None:
                self.lost[victim] += self.prefill[victim] - left
                self.early[victim] = min(self.early[victim], begin)
            elif not self._interrupted(victim, begin, end):
                continue
            out.append(victim)
        return out

    def _times(self, w: int) -> Floats:
        low, high = self.requests.read_start[self.work.row[w] :][:2]
        out: Floats = (self.requests.read_ns[low:high] - self.work.origin_ns) / 1e9
        return out

    def _goes_on(self, w: int, begin: float, end: float) -> bool:
        """Did a decode get a token in the step that threw someone out, as in the one before?"""
        times, near = self._times(w), 0.25 * (end - begin)
        i = int(np.searchsorted(times, end - near))
        return 0 < i < len(times) and abs(times[i] - end) < near and abs(times[i - 1] - begin) < near

    def _interrupted(self, w: int, begin: float, end: float) -> bool:
        """A decode lost its place: what it had is computed again before its next token. False: none came."""
        times = self._times(w)
        i = int(np.searchsorted(times, end - LATE_S / 10))
        if i >= len(times):
            return False
        self.last[w] = int(step_at(self.line, times[i : i + 1])[0])
        low = self.requests.read_start[self.work.row[w]]
        self.again[w] = self.work.prefill[w] + float(self.requests.read_tokens[low : low + i].sum())
        self.lost[w] += self.work.cached[w] + self.again[w]
        self.away[w] = begin
        self.prefill[w] = 1.0  # the cache may hold the rest; if not, the steps' tokens say so
        return True

    def _admit(self, k: int, requests: int) -> None:
        new = []
        while self.coming and self.low[self.coming[-1]] <= k:
            new.append(self.coming.pop())
        for w in [w for w in self.waiting if self.last[w] <= k]:  # its next token says so
            self.waiting.remove(w)
            self._enter(w, k)
        while self.waiting and (new or len(self.active) < requests):
            self._enter(self.waiting.pop(), k)
        for w in new:
            self._enter(w, k)

    def _enter(self, w: int, k: int) -> None:
        """An interrupted decode is taken to end where it is admitted: when it is read again says little of when."""
        self.running[w] = None
        if self.prefill[w] <= 1.0:
            self.last[w] = k
        self.active[w] = self.prefill[w]

    def _compute(self, k: int, requests: int, tokens: float) -> None:
        """Who ends here takes what is left of it; the others share what the step has besides, evenly."""
        ends = [w for w in self.active if self.last[w] <= k]
        others = [w for w in self.active if self.last[w] > k][: max(requests - len(ends), 0)]
        for w in ends:
            left = self.active.pop(w)
            self.found.append((w, k, left, max(self.prefill[w] - left, self.again.get(w, 0.0)), self.away.get(w, 0.0)))
            tokens -= left
        tokens = max(tokens, float(len(others)))
        others.sort(key=self.active.__getitem__)
        for i, w in enumerate(others):
            n = max(min(tokens / (len(others) - i), self.active[w] - 1.0), 1.0)
            self.found.append((w, k, n, self.prefill[w] - self.active[w], 0.0))
            self.active[w] = max(self.active[w] - n, 1.0)
            tokens -= n


def _fitted(window: Ints, step: Ints, seed: Floats, row: Floats, column: Floats, lost: Floats) -> Floats:
    """Tokens per entry. Row sums are exact; a victim's row may hold more, at most what it lost, and all victims'
    together what the steps computed beyond everyone's first tokens. Column sums are as near as they can be."""
    spare = max(float(column.sum() - row.sum()), 0.0)
    out = seed.copy()
    for _ in range(ROUNDS):
        out *= _row(window, out, row, lost, spare)[window]
        ratio = column / np.maximum(np.bincount(step, out, len(column)), 1e-30)
        if np.all(np.abs(ratio[step] - 1) < CLOSE):
            break
        out *= ratio[step]
    scaled: Floats = out * _row(window, out, row, lost, spare)[window]
    return scaled


def _row(window: Ints, out: Floats, row: Floats, lost: Floats, spare: float) -> Floats:
    made = np.bincount(window, out, len(row))
    more = np.clip(made - row, 0.0, lost)
    more *= min(spare / max(float(more.sum()), 1e-30), 1.0)
    return (row + more) / np.maximum(made, 1e-30)
