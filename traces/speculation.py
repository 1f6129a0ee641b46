"""What an engine says of a request's speculative decoding, read in one place for live replies and for recordings.

May not know: who asks.
"""

from __future__ import annotations

from typing import Any


def speculated(said: Any) -> tuple[int | None, int | None]:
    """(draft tokens verified, those of them accepted) from vLLM's `metrics.speculative_decoding`, which it gives under
    --per-request-spec-decode-metrics summary; None where it does not say."""
    if not isinstance(said, dict):
        return None, None
    drafted, accepted = said.get("num_draft_tokens"), said.get("num_accepted_draft_tokens")
    return None if drafted is None else int(drafted), None if accepted is None else int(accepted)
