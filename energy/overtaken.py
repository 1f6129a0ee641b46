"""When prefill began where prompts are computed side by side, and nobody says (L1): from who overtook whom.

An engine admits first come, first served. Where it computes a prompt after another, nobody's first token comes before
that of one who was there earlier; where later ones overtake, each prompt gets at most a chunk per step. The chunk shows
twice: no prompt took fewer steps since it was sent than its tokens over the chunk, and one who was overtaken began
before the one who overtook it ended. Steps are counted by the tokens of those who decode meanwhile.
May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energy.tables import Floats, Mask
from energy.windows import Windows
from energy.work import WorkCurve

LATER_S = 0.01
"""a first token must be this much earlier to have overtaken: stamps jitter"""
LONG = 256
"""prompt tokens above which a prompt tells of chunks"""
FEWEST, SHARE = 5, 0.015
"""overtaken prompts, and their share of all, below which it was chance (a late stamp, a preemption)"""


def overtaken(work: Windows) -> tuple[Floats, Mask]:
    """(the earliest first token of all who were sent later, whether it is earlier than one's own)."""
    order = np.argsort(work.sent, kind="stable")
    first = work.first[order]
    later = np.append(np.minimum.accumulate(first[::-1])[::-1][1:], np.inf)
    earliest = np.empty(len(work))
    earliest[order] = later
    return earliest, earliest < work.first - LATER_S


def begun(work: Windows, curve: WorkCurve) -> Windows:
    """The windows with starts of prompts computed side by side; as they are where nobody was overtaken."""
    earliest, passed = overtaken(work)
    long = work.prefill > LONG
    if np.count_nonzero(passed & long) < FEWEST or np.mean(passed) < SHARE:
        return work
    steps = curve.features[:, 0]
    done = np.interp(work.first, curve.t, steps)
    since = np.maximum(done - np.interp(work.sent, curve.t, steps), 1.0)
    beside = np.maximum(done - np.interp(np.minimum(earliest, work.first), curve.t, steps), 0.5)
    least = float(np.quantile((work.prefill / since)[long], 0.97))
    most = float(np.quantile((work.prefill / beside)[passed & long], 0.25))
    chunk = max(least, most / 1.2)
    target = np.maximum(done - np.maximum(np.ceil(work.prefill / chunk), 1.0), steps[0])
    start = np.interp(target, steps + 1e-9 * np.arange(len(steps)), curve.t)
    start = np.clip(start, work.sent, work.first - 1e-6)
    order = np.argsort(work.sent, kind="stable")
    start[order] = np.minimum.accumulate(start[order][::-1])[::-1]
    return replace(work, start=np.clip(start, work.sent, work.first - 1e-6))
