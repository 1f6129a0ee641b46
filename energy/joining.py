"""When a prompt joins the engine, where nobody says (L1): a step that runs takes nobody in, so at the end of that step.

Steps end where tokens come: the next read of anyone after a request was sent says when the step that ran then ended.
May not know: energy, sensors, files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energy.tables import RequestTable
from energy.windows import Windows, pace_of

MOST_READS = 20_000_000
"""beyond these the sort would cost more time than it is worth: half a step per request is not known then"""

LEAST = 0.7
"""of the time that its tokens take must be left: a later read is of a step that computed it already"""


def joined(requests: RequestTable, work: Windows, most_reads: int = MOST_READS) -> tuple[Windows, list[str]]:
    """The windows, with prompts that were held up by nothing but the step that ran when they were sent begun at its
    end (never later than leaves them the time that their tokens take), and a note where that was left out."""
    if not len(work) or not len(requests.read_ns):
        return work, []
    if len(requests.read_ns) > most_reads:
        return work, [f"{len(requests.read_ns)} reads, more than {most_reads}: when prompts joined is not looked for"]
    at = (np.sort(requests.read_ns) - work.origin_ns) / 1e9
    after = np.append(at, np.inf)[np.searchsorted(at, work.sent, "right")]
    least = LEAST * work.prefill * pace_of(requests, work)
    held = (work.start <= work.sent + 1e-6) & (after < work.first - least)
    return replace(work, start=np.where(held, np.maximum(after, work.start), work.start)), []
