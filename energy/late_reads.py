"""Tokens that a client read late: a client busy with hundreds of streams stamps them seconds after they were made.

The engine's own word on how long it generated (metrics per request: L2, L3) then tells when the last token came, and
the reads between are drawn together. May not know: sensors, energy, files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from energy.tables import RequestTable, known

LATE, LATE_NS = 0.1, 50_000_000
"""a stream is late whose reads took this much of their time, and so many ns, more than the engine generated: less than
that is the way through server and network"""


def read_in_time(requests: RequestTable) -> tuple[RequestTable, list[str]]:
    """(the requests with late reads where the engine made their tokens, notes). Rows and reads stay in order."""
    took = requests.last_ns - requests.first_ns
    told = known(requests.first_ns) & known(requests.last_ns) & known(requests.decode_ns) & (requests.decode_ns > 0)
    late = np.flatnonzero(told & (took - requests.decode_ns > np.maximum(LATE * took, LATE_NS)))
    if not len(late):
        return requests, []
    first, part = requests.first_ns[late], requests.decode_ns[late] / took[late]
    last = requests.last_ns.copy()
    last[late] = first + requests.decode_ns[late]
    reads = requests.read_ns.copy()
    for row, begin, share in zip(late.tolist(), first.tolist(), part.tolist(), strict=True):
        mine = slice(requests.read_start[row], requests.read_start[row + 1])
        after = np.maximum(reads[mine] - begin, 0)
        reads[mine] = np.minimum(reads[mine], begin) + np.rint(after * share).astype(np.int64)
    worst = float((took - requests.decode_ns)[late].max() / 1e9)
    said = (
        f"the tokens of {len(late)} requests were read late by the client, up to {worst:.2f} s: the engine's times hold"
    )
    return replace(requests, last_ns=last, read_ns=reads), [said]
