"""Which requests ran while no sensor was read: what no meter saw, nobody can divide. Pure; sentences for the notes.

May not know: how energy is split.
"""

from __future__ import annotations

import numpy as np

from energy.curve import Curve
from energy.tables import RequestTable, StepTable, known


def apart(curves: list[Curve], requests: RequestTable) -> list[str]:
    """A note per sensor that was read at other times than the requests ran: most likely on another clock."""
    served = known(requests.sent_ns) & known(requests.end_ns)
    if not np.any(served):
        return []
    begin, end = int(requests.sent_ns[served].min()), int(requests.end_ns[served].max())
    return [
        f"{c.source}: read from {c.t_ns[0]} to {c.t_ns[-1]} ns, requests ran from {begin} to {end} ns: no joules meet"
        " them; are both on one monotonic clock?"
        for c in curves
        if c.t_ns[-1] <= begin or c.t_ns[0] >= end
    ]


def partly(curves: list[Curve], requests: RequestTable) -> list[str]:
    """A note per sensor whose readings begin after, or end before, some requests did."""
    served = known(requests.sent_ns) & known(requests.end_ns)
    notes = []
    for c in curves:
        early, late = requests.sent_ns < c.t_ns[0], requests.end_ns > c.t_ns[-1]
        cut = int(np.count_nonzero(served & (early | late)))
        none = int(np.count_nonzero(served & ((requests.end_ns <= c.t_ns[0]) | (requests.sent_ns >= c.t_ns[-1]))))
        if cut:
            notes.append(
                f"{c.source}: {cut} requests ran in part ({none} of them wholly) before its first or after its last"
                " reading: their joules are those of the part that was read; start the sampler before the load and"
                " stop it after"
            )
    return notes


def elsewhere(steps: StepTable | None, requests: RequestTable) -> list[str]:
    """A note where no engine step lies among the requests: most likely stamped by another clock."""
    served = known(requests.sent_ns) & known(requests.end_ns)
    if steps is None or not len(steps) or not np.any(served):
        return []
    begin, end = int(requests.sent_ns[served].min()), int(requests.end_ns[served].max())
    if np.any((steps.t_ns >= begin) & (steps.t_ns <= end)):
        return []
    return [
        f"the iteration stream runs from {steps.t_ns.min()} to {steps.t_ns.max()} ns, requests from {begin} to {end}:"
        " it is left out; are both on one monotonic clock?"
    ]
