"""Rows of a foreign recording's requests as records: what a client wrote down of each, whatever is missing of it.

May not know: sensors, attribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from energy.foreign_text import lines
from traces.errors import UserError
from traces.records import Outcome, RequestRecord
from traces.speculation import speculated

FEWEST_READS = 8
"""of a stream that says how many tokens a read holds"""
REFUSED = (*range(400, 500), 503)
"""statuses with which a request was turned away before any work"""


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines. A last line cut short is left out (a writer was killed); any other damage is an error."""
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line.endswith("\n"):
                return
            raise UserError(f"{path}: line {number}: not JSON ({error}); fix or remove the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: not an object; docs/attribution.md has the layout")
        yield row


def tokens_per_read(path: Path) -> float:
    """Tokens in a read after the first, the median of finished streams that say both; 1 where none does."""
    found = []
    for row in rows_of(path):
        gaps, usage = row.get("token_dt_us"), row.get("usage")
        said = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if row.get("error") is None and isinstance(gaps, list) and isinstance(said, int) and len(gaps) >= FEWEST_READS:
            found.append((said - 1) / len(gaps))
    return max(float(np.median(found)), 1.0) if found else 1.0


def _outcome(row: dict[str, Any], first: int | None) -> Outcome:
    """A status that says no, and no token: the engine did nothing for it."""
    status = row.get("status")
    if first is None and isinstance(status, int) and status in REFUSED:
        return "rejected"
    return "ok" if row.get("error") is None and row.get("status", 200) in (None, 200) else "error"


def _end(row: dict[str, Any]) -> int:
    """When a request ended, ns; of one that was still running when the recording ended its last read, else when it was
    sent: what it drew after that nobody saw."""
    end = row.get("t_end_ns")
    if end is None and row.get("t_first_ns") is not None:
        end = row["t_first_ns"] + 1000 * sum(row.get("token_dt_us") or ())
    return int(row["t_send_ns"] if end is None else round(end))


def record_of(row: dict[str, Any], each: float) -> RequestRecord:
    """One foreign row, its fields checked (energy.foreign_rows.REQUEST). Latency metrics are in ms;
    time_to_first_token_ms counts from scheduling. `n_out` is what was asked for: it stands for what was given only
    where the request ended well. Else its reads say, `each` tokens in one."""
    usage, metrics = row.get("usage") or {}, row.get("metrics") or {}
    sent, end = row["t_send_ns"], _end(row)
    first, gaps = row.get("t_first_ns"), row.get("token_dt_us") or []
    outcome = _outcome(row, first)
    times = np.cumsum([0, *gaps]) * 1000
    last = None if first is None or not gaps else min(int(first + times[-1]), end)
    completion = _count(usage, "completion_tokens", row.get("n_out") if outcome == "ok" else None)
    seen = completion if completion is not None else 1 + round(each * len(gaps))
    drafted, accepted = speculated(metrics.get("speculative_decoding"))
    reads = () if first is None else (first - sent, *(int(g) * 1000 for g in gaps))
    return RequestRecord(
        request_id=row["id"],
        workflow_id=row.get("workflow"),
        node_id=row.get("node"),
        outcome=outcome,
        t_arrival_ns=sent,
        t_end_ns=end,
        agent_id=row.get("agent"),
        class_name=row.get("kind") or row.get("phase"),
        deps=tuple({"on": d} if isinstance(d, str) else d for d in row.get("deps") or ()),
        t_upstream_ns=sent,
        t_first_token_ns=first,
        t_last_token_ns=last,
        status=row.get("status"),
        error=None if row.get("error") is None else str(row["error"]),
        upstream=row.get("engine"),
        stream=True,
        prompt_tokens=_count(usage, "prompt_tokens", row.get("n_in")),
        cached_tokens=_count(usage.get("prompt_tokens_details") or {}, "cached_tokens"),
        completion_tokens=completion,
        engine_queue_ns=_ms(metrics.get("queue_time_ms")),
        engine_prefill_ns=_ms(metrics.get("time_to_first_token_ms")),
        engine_decode_ns=_ms(metrics.get("generation_time_ms")),
        draft_tokens=drafted,
        accepted_tokens=accepted,
        read_dt_ns=reads,
        read_tokens=_spread(len(reads), seen),
    )


def _count(row: dict[str, Any], name: str, other: int | None = None) -> int | None:
    """Whole tokens; `other` where the row does not say."""
    value: int | None = row.get(name)
    return other if value is None else value


def _ms(value: float | None) -> int | None:
    return None if value is None else round(value * 1e6)


def _spread(reads: int, tokens: int | None) -> tuple[int, ...]:
    """Tokens per read: one, with the rest (chunks that carried several) laid evenly over the later reads."""
    if not reads:
        return ()
    extra = max(0, (tokens or reads) - reads)
    marks = np.floor(np.linspace(0, extra, reads)).astype(int) if reads > 1 else np.array([extra])
    return tuple(int(1 + x) for x in np.diff(marks, prepend=0))
