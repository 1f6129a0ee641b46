"""What the cache held of each prompt, where no reply says it: from the engine's steps, else from how long prompts took.

The steps' prompt tokens are what was computed; those of a step belong to who got a first token in it, then to who gets
the next ones. Below L3 time tells: a turn of a conversation either computed what is new in it or everything, and the
run's own turns show which of the two goes with the time they took. Estimates: a note says so.
May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energy.schedule import Line, step_at
from energy.tables import Floats, Ints, Mask, RequestTable, known
from energy.windows import Windows

BLOCK = 16
"""tokens of a block of the cache, vLLM's usual size: a whole block is held or not"""
MISSING = 0.03
"""share of all prompt tokens that steps must lack before a cache is believed in"""
FEWEST = 10
"""groups of turns that must show how long prompts take"""
BETTER = 0.7
"""a cache is believed in where times fit what is new in each turn this much better than whole prompts"""
ROUNDS = 40
NOTE = "{n} requests do not say what the cache held of their prompts: it is estimated from {source}"


def with_cached(requests: RequestTable, work: Windows, line: Line | None) -> tuple[Windows, list[str]]:
    """The windows with estimates in place of cached tokens that nobody says, and a note where there are any."""
    unsaid = ~known(requests.cached[work.row]) & known(requests.prompt[work.row]) & (work.prefill > 1)
    unsaid &= known(requests.first_ns[work.row])
    if np.count_nonzero(unsaid) < FEWEST:
        return work, []
    new = _new(requests, work)
    found = _by_time(work, new) if line is None else _by_steps(work, line, unsaid, new)
    if found is None:
        return work, []
    computed = np.where(unsaid, np.clip(np.rint(found), 1.0, work.prompt), work.prefill)
    source = "the time they took" if line is None else "the engine's steps"
    note = NOTE.format(n=int(np.count_nonzero(unsaid)), source=source)
    return replace(work, prefill=computed, cached=work.prompt - computed), [note]


def _new(requests: RequestTable, work: Windows) -> Floats:
    """Tokens of each prompt beyond what the turn before it in its workflow left behind, whole blocks; inf: no turn."""
    flow = requests.workflow.codes[work.row].astype(np.int64)
    order = np.lexsort((work.sent, flow))
    out = np.full(len(work), np.inf)
    before, after = order[:-1], order[1:]
    left = work.prompt[before] + work.decode[before]
    grown = (flow[before] == flow[after]) & (flow[after] >= 0) & (work.last[before] <= work.sent[after])
    grown &= work.prompt[after] >= left
    out[after[grown]] = (work.prompt[after] - left // BLOCK * BLOCK)[grown]
    return np.asarray(np.maximum(out, 1.0))


def _by_steps(work: Windows, line: Line, unsaid: Mask, new: Floats) -> Floats | None:
    """Computed tokens per window such that those of each step add up to what the engine told, or None where nothing
    is missing."""
    filled = line.where((line.prompts > 0) & (line.tokens > 0))
    last = step_at(filled, work.first) if len(filled) else np.full(len(work), -1)
    if not np.any(last >= 0) or filled.tokens.sum() > (1 - MISSING) * work.prefill[last >= 0].sum():
        return None
    window, step = _members(work, filled, last)
    most = np.where(last >= 0, work.prefill, 0.0)
    tokens = np.minimum(np.minimum(new, most)[window], filled.tokens[step])
    for _ in range(ROUNDS):
        made = np.bincount(window, tokens, len(work))
        free = unsaid & (made <= most)
        tokens *= np.where(free, 1.0, most / np.maximum(made, 1e-9))[window]
        tokens *= (filled.tokens / np.maximum(np.bincount(step, tokens, len(filled)), 1e-9))[step]
    return np.asarray(np.where(last >= 0, np.bincount(window, tokens, len(work)), work.prefill))


def _members(work: Windows, filled: Line, last: Ints) -> tuple[Ints, Ints]:
    """(window, step) of prompts in steps: who ends there, then, as far as the step has more, who ends next."""
    order = np.lexsort((work.sent, last))
    order = order[last[order] >= 0]
    end = last[order]
    low, high = (np.searchsorted(end, np.arange(len(filled)), side) for side in ("left", "right"))
    many = np.maximum(filled.prompts.astype(np.int64), high - low)
    many = np.minimum(many, len(order) - low)
    step = np.repeat(np.arange(len(filled)), many)
    place = np.arange(len(step)) - np.repeat(np.cumsum(many) - many, many)
    window = order[low[step] + place]
    there = (last[window] == step) | (work.sent[window] < filled.end[step])
    return window[there], step[there]


def _by_time(work: Windows, new: Floats) -> Floats | None:
    """Computed tokens by the time that groups of prompts took; None where no turns tell, or no cache shows."""
    order = np.argsort(work.first, kind="stable")
    group = np.empty(len(work), np.int64)
    group[order] = np.cumsum(np.diff(work.first[order], prepend=-np.inf) > 0.002) - 1
    n = int(group.max()) + 1
    first = np.full(n, np.inf)
    np.minimum.at(first, group, work.first)
    start = np.full(n, -np.inf)
    np.maximum.at(start, group, work.start)
    took = first - np.maximum(start, np.append(-np.inf, first[:-1]))
    least, most = (np.bincount(group, x, n).astype(float) for x in (np.minimum(new, work.prefill), work.prefill))
    turns = (np.bincount(group, ~np.isfinite(new), n) == 0) & (took > 0)
    if np.count_nonzero(turns) < FEWEST:
        return None
    fresh = np.bincount(group, np.where(np.isfinite(new), 0.0, work.prefill), n)
    first_turns = (np.bincount(group, np.isfinite(new), n) == 0) & (took > 0)
    whole = _line_through(most, took, turns, first_turns)[2]
    tried = [  # first turns may have hit a prompt that all share
        _line_through(np.where(turns, least, most), took, turns, beside) for beside in (np.zeros(n, bool), first_turns)
    ]
    miss, fixed, pace = min((m if p > 0 else np.inf, f, p) for f, p, m in tried)
    if miss > BETTER * whole:
        return None
    tokens = np.maximum((took - fixed) / pace, 0.0)
    nearer = np.abs(tokens - least) < np.abs(tokens - most)
    known_new = np.bincount(group, np.where(np.isfinite(new), new, 0.0), n)
    part = np.clip((tokens - known_new) / np.maximum(fresh, 1.0), 0.0, 1.0)
    part = np.where(part > 0.6, 1.0, part)  # the time of a prompt computed whole spreads as much
    turn = np.where(nearer[group] | (fresh[group] > 0), np.minimum(new, work.prefill), work.prefill)
    return np.where(np.isfinite(new), turn, work.prefill * part[group])


def _line_through(x: Floats, y: Floats, judged: Mask, beside: Mask) -> tuple[float, float, float]:
    """(constant, slope, median miss of the judged) of a line through these points and those beside, by least squares
    three times without the worst fifth of either."""
    keep = judged | beside
    constant, slope = 0.0, 0.0
    for _ in range(3):
        slope, constant = np.polyfit(x[keep], y[keep], 1) if np.ptp(x[keep]) > 0 else (0.0, float(np.median(y[keep])))
        miss = np.abs(y - constant - slope * x)
        keep = np.zeros(len(x), bool)
        for some in (judged, beside):
            keep |= some & (miss <= np.quantile(miss[some], 0.8) if np.any(some) else some)
    return float(constant), float(slope), float(np.median(miss[judged]))
