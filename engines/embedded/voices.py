"""The voice for each dialect, chosen in one place. May not know: what they say."""

from __future__ import annotations

from engines.embedded.wire_in import Plan
from engines.embedded.wire_messages import MessagesVoice
from engines.embedded.wire_out import Names, OpenAiVoice
from engines.embedded.wire_responses import ResponsesVoice

Voice = OpenAiVoice | MessagesVoice | ResponsesVoice


def voice(plan: Plan, names: Names, *, details: bool, per_request_metrics: bool) -> Voice:
    """The voice for a plan's dialect."""
    if plan.api == "messages":
        return MessagesVoice(plan, names)
    if plan.api == "responses":
        return ResponsesVoice(plan, names, per_request_metrics=per_request_metrics)
    return OpenAiVoice(plan, names, details=details, per_request_metrics=per_request_metrics)
