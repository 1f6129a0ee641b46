"""What a run's speculative decoding came to: requests that speculated, drafts verified, drafts accepted.

Pure. May not know: files, energy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from energy.tables import RequestTable, known

COUNTER = "vllm:spec_decode_num_draft_tokens_total"
UNSAID = (
    "the engine speculates, its replies do not say for whom: drafts count as each output token's alike (vLLM says with"
    " --enable-per-request-metrics --per-request-spec-decode-metrics summary)"
)


def speculation(requests: RequestTable) -> dict[str, Any] | None:
    """{requests, draft_tokens, accepted_tokens, acceptance} over the requests that say; None where none does."""
    said = known(requests.drafted) & known(requests.accepted)
    if not np.any(said):
        return None
    drafted, accepted = int(requests.drafted[said].sum()), int(requests.accepted[said].sum())
    return {
        "requests": int(np.count_nonzero(said)),
        "draft_tokens": drafted,
        "accepted_tokens": accepted,
        "acceptance": accepted / drafted if drafted else None,
    }


def unsaid(requests: RequestTable, scrapes: Iterable[Mapping[str, Any]]) -> list[str]:
    """A note where the engine's own counter grew and no request says its part. scrapes: rows of kind "counters"."""
    if np.any(known(requests.drafted)):
        return []
    values = [row["values"][COUNTER] for row in scrapes if COUNTER in (row.get("values") or ())]
    return [UNSAID] if len(values) > 1 and values[-1] > values[0] else []
