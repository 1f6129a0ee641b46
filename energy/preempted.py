"""How often the engine took a running sequence's blocks away: from its iteration stream, else from its counters.

Neither says whose they were. Pure. May not know: files, energy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from energy.tables import StepTable, known

COUNTER = "vllm:num_preemptions_total"


def preemptions(steps: StepTable | None, scrapes: Iterable[Mapping[str, Any]] = ()) -> int | None:
    """Preemptions of the run; None where the engine does not say. scrapes: rows of kind "counters" in order of time,
    read only where no step says; a counter that went back started anew at 0 (the engine was restarted)."""
    told = steps.preempted[known(steps.preempted)] if steps is not None else ()
    if len(told):
        return int(np.sum(told))
    values = [
        float(row["values"][COUNTER])
        for row in scrapes
        if row.get("kind") == "counters" and COUNTER in (row.get("values") or ())
    ]
    if not values:
        return None
    return round(sum(b - a if b >= a else b for a, b in pairwise(values)))
