"""vLLM's llm_request spans as per-request engine times, and their join with a run's requests by X-Request-Id.

Pure. Attribute names: vLLM 0.26 to 0.32 (tracing). May not know: how spans arrive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

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
_WRAPPED = re.compile(r"^(?:chatcmpl|cmpl|resp)-(.+?)(?:-\d+)?$")


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


def candidates(engine_id: str) -> list[str]:
    """X-Request-Ids that vLLM may have made this id of: as it stands, without its prefix, and without its index.

    A completion's id is cmpl-<header>-<index of the prompt>, a chat's chatcmpl-<header>.
    """
    found = [engine_id]
    if match := _WRAPPED.match(engine_id):
        found += [engine_id.partition("-")[2], match[1]]
    return list(dict.fromkeys(found))


def joined(requests: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """X-Request-Id -> times, for the requests of a run; several spans of one request (several prompts) give none."""
    known = set(requests)
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row.get("kind") == "span" and row.get("text"):
            name = next((c for c in candidates(str(row["text"])) if c in known), None)
            if name is not None:
                found.setdefault(name, []).append(dict(row.get("values") or {}))
    return {name: values[0] for name, values in found.items() if len(values) == 1}
