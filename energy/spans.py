"""An engine's OTLP spans as per-request times, where its replies told none: the same level L2, another way in.

vLLM's `llm_request` spans (journal engine.spans.jsonl, kind "span") carry queue, prefill and decode times and token
counts; they join by X-Request-Id. What a reply told stands. Pure column work. May not know: how spans arrive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from energy.tables import NONE, RequestTable

_WRAPPED = re.compile(r"^(?:chatcmpl|cmpl|resp)-(.+?)(?:-\d+)?$")
COLUMNS = {
    "queue_ns": "engine_queue_ns",
    "prefill_ns": "engine_prefill_ns",
    "decode_ns": "engine_decode_ns",
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
}
"""column of the request table -> value of a span"""


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


def with_spans(requests: RequestTable, rows: Iterable[Mapping[str, Any]], notes: list[str]) -> RequestTable:
    """The table with what spans say put where nothing stands; a note counts the requests that gained their times."""
    times = joined(requests.ids, rows)
    if not times:
        return requests
    at = [(k, times[name]) for k, name in enumerate(requests.ids) if name in times]
    columns = {name: np.array(getattr(requests, name)) for name in COLUMNS}
    gained = sum(columns["prefill_ns"][k] == NONE and COLUMNS["prefill_ns"] in values for k, values in at)
    for name, ours in COLUMNS.items():
        column = columns[name]
        for k, values in at:
            if column[k] == NONE and ours in values:
                column[k] = int(values[ours])
    if gained:
        notes.append(f"engine times of {gained} requests are those of its OTLP spans (their replies told none)")
    return replace(
        requests,
        queue_ns=columns["queue_ns"],
        prefill_ns=columns["prefill_ns"],
        decode_ns=columns["decode_ns"],
        prompt=columns["prompt"],
        completion=columns["completion"],
    )
