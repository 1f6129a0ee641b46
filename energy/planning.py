"""Energy of a phase from its request list alone: a batch stepped through the fitted times, first come first served.

Who is still being served when the phase begins stays in the batch; where requests ran past the phase's end, so that the
next phase has them, the plan is cut there, else it runs until all are served. May not know: sensors, phases, files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

import numpy as np

from energy.fit import Fit
from energy.tables import Floats
from energy.tail import TAIL_S, left_s
from energy.windows import Windows

BUDGET = 8192
"""prompt tokens per step when planning; vLLM's default on cards of this class"""
SHORTEST_S = 1e-5
LATE_S = 0.05
"""an answer that ends this much after a phase still belongs to it: its end was read, not made, then"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a plan: when it comes (s), prompt tokens to compute after those cached, tokens to decode."""

    sent: float
    prefill: float
    cached: float
    decode: float


@dataclass(slots=True)
class _Batch:
    """What runs: how many decode, over how much context in all, and when (in steps) each is done."""

    step: int = 0
    decoding: int = 0
    context: float = 0.0
    ends: list[tuple[int, float]] = field(default_factory=list)

    def join(self, context: float, decode: float) -> None:
        """A sequence decodes from the next step on."""
        left = max(1, round(decode))
        heappush(self.ends, (self.step + left, context + left))
        self.decoding += 1
        self.context += context

    def stepped(self) -> None:
        """One token more for each; those that are done leave."""
        self.step += 1
        self.context += self.decoding
        while self.ends and self.ends[0][0] <= self.step:
            self.context -= heappop(self.ends)[1]
            self.decoding -= 1


def planned_j(windows: Windows, fit: Fit, begin: float, end: float, tail_s: float = TAIL_S) -> float:
    """Joules of [begin, end] (s from the windows' origin) by its requests and the fit's times and costs."""
    w = windows
    late = (w.sent >= begin) & (w.sent < end) & (w.last > end + LATE_S)
    work, seconds, gaps = steps_of(asked(w, begin, end), fit.seconds, begin, end, cut=bool(np.any(late)))
    before = w.last[w.last <= begin]
    quiet_j = _quiet_j(gaps, begin, begin - float(before.max()) if len(before) else inf, fit, tail_s)
    if not len(work):
        return quiet_j
    terms = np.column_stack([np.zeros((len(work), 2)), seconds, work])
    return float((fit.bend(terms, seconds) * (terms @ fit.joules)).sum()) + quiet_j


def _quiet_j(gaps: list[tuple[float, float]], begin: float, since: float, fit: Fit, tail_s: float) -> float:
    """Joules of the time with nothing to do: at first a board cools. since: how long it already had at the begin."""
    total = 0.0
    for start, seconds in gaps:
        tail = left_s(since if start == begin else 0.0, seconds, tail_s)
        total += tail * float(fit.joules[1]) + (seconds - tail) * float(fit.joules[0])
    return total


def asked(windows: Windows, begin: float, end: float) -> list[Asked]:
    """Requests sent in [begin, end), after those that were still being served at its begin."""
    w = windows
    over = np.flatnonzero((w.sent < begin) & (w.last > begin + LATE_S))
    computed = np.clip((begin - w.start[over]) / np.maximum(w.first[over] - w.start[over], 1e-9), 0, 1)
    given = np.clip((begin - w.first[over]) / np.maximum(w.last[over] - w.first[over], 1e-9), 0, 1)
    out = [
        Asked(begin, float(w.prefill[i] * (1 - c)), float(w.cached[i] + w.prefill[i] * c + w.decode[i] * g),
              float(w.decode[i] * (1 - g)))
        for i, c, g in zip(over, computed, given, strict=True)
    ]  # fmt: skip
    mine = np.flatnonzero((w.sent >= begin) & (w.sent < end))
    order = mine[np.argsort(w.sent[mine], kind="stable")]
    return out + [Asked(float(w.sent[i]), float(w.prefill[i]), float(w.cached[i]), float(w.decode[i])) for i in order]


def steps_of(
    coming: list[Asked], seconds: Floats, begin: float, end: float, *, cut: bool
) -> tuple[Floats, Floats, list[tuple[float, float]]]:
    """(work of each step in FEATURES order, its seconds, start and seconds of each gap). cut: what would run after the
    end is left out."""
    now, gaps = begin, list[tuple[float, float]]()
    queue, waiting, batch = coming[::-1], list[list[float]](), _Batch()  # waiting: [left to compute, context, decode]
    work, took = [], []
    while (queue or waiting or batch.decoding) and not (cut and now >= end):
        while queue and queue[-1].sent <= now:
            one = queue.pop()
            waiting.append([one.prefill, one.cached, one.decode])
        if not waiting and not batch.decoding:
            gaps.append((now, queue[-1].sent - now))
            now = queue[-1].sent
            continue
        row = _step(waiting, batch)
        duration = max(float(np.dot(row, seconds)), SHORTEST_S)
        part = min(1.0, (end - now) / duration) if cut else 1.0
        work.append([part * x for x in row])
        took.append(part * duration)
        now += duration
    if end > now:
        gaps.append((now, end - now))
    return np.array(work, float), np.array(took, float), gaps


def _step(waiting: list[list[float]], batch: _Batch) -> list[float]:
    """Work of the next step: a token of each sequence that decodes, the rest of the budget for prompts in order."""
    row = [1.0, 0.0, 0.0, float(batch.decoding), batch.context]
    budget = BUDGET - batch.decoding
    batch.stepped()
    while waiting and budget >= 1:
        head = waiting[0]
        chunk = min(head[0], budget)
        row[1] += chunk
        row[2] += chunk * (head[1] + chunk / 2)
        head[0] -= chunk
        head[1] += chunk
        budget -= int(max(chunk, 1))
        if head[0] > 0:
            break
        waiting.pop(0)
        if head[2] > 0:
            batch.join(head[1] + 1, head[2])
    return row
