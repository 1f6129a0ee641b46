"""vLLM's llm_request spans as rows of a run's journal; energy.spans joins them with its requests.

Pure. Attribute names: vLLM 0.26 to 0.32 (tracing). May not know: how spans arrive, what their times are used for.
"""

from __future__ import annotations

from joulegraph.join.otlp import Span
from traces.records import EngineRecord

NAME = "llm_request"
_ID = "gen_ai.request.id"
_TIMES = {  # attribute (seconds): name of ours
    "gen_ai.latency.time_in_queue": "engine_queue_ns",
    "gen_ai.latency.time_in_model_prefill": "engine_prefill_ns",
    "gen_ai.latency.time_in_model_decode": "engine_decode_ns",
    "gen_ai.latency.time_to_first_token": "engine_ttft_ns",
    "gen_ai.latency.e2e": "engine_e2e_ns",
}
_COUNTS = {"gen_ai.usage.prompt_tokens": "prompt_tokens", "gen_ai.usage.completion_tokens": "completion_tokens"}


def record(span: Span, t_ns: int) -> EngineRecord | None:
    """A row of kind "span" whose text is vLLM's request id; None for other spans. t_ns: when it arrived here."""
    name = span.attributes.get(_ID)
    if span.name != NAME or not isinstance(name, str):
        return None
    values: dict[str, float] = {"start_unix_ns": span.start_unix_ns, "end_unix_ns": span.end_unix_ns}
    for attribute, ours in _TIMES.items():
        seconds = span.attributes.get(attribute)
        if isinstance(seconds, int | float):
            values[ours] = round(seconds * 1e9)
    for attribute, ours in _COUNTS.items():
        count = span.attributes.get(attribute)
        if isinstance(count, int | float):
            values[ours] = count
    return EngineRecord("span", t_ns, values, name)
