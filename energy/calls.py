"""Which call of a Parrot each record of the engine below belongs to, so that joules land on the call its client knows.

Exact where the record carries the call's request id (our load generator sends one along, engines.parrot.protocol.mark).
Else found within the session: same asked length, submitted before the engine began, seen ready after the engine ended,
and of those the pair with the least time between the engine's end and the value's reading. Pure.
May not know: files, energy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

EARLY_NS = 1_000_000
"""stamps of two processes beside one another"""


@dataclass(frozen=True, slots=True)
class Seen:
    """One side's view of a call: [begin, end], session of the core, tokens asked for at most."""

    request_id: str
    session: str
    begin_ns: int
    end_ns: int
    max_tokens: int | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Seen | None:
        """From a row of requests.* or bridge.*; None where it was no call, or never ran."""
        session, slash, _ = (row.get("response_id") or "").partition("/")
        begin, end = row.get("t_arrival_ns"), row.get("t_end_ns")
        if row.get("api") != "parrot" or not slash or begin is None or end is None:
            return None
        return cls(str(row["request_id"]), session, int(begin), int(end), row.get("max_tokens"))


def join_calls(calls: Iterable[Seen], tasks: Sequence[Seen]) -> tuple[dict[str, str], int]:
    """(request id of a task's record -> request id of its call, for those found; how many of them by time alone)."""
    named = {c.request_id: c for c in calls}
    found = {t.request_id: t.request_id for t in tasks if t.request_id in named}
    exact = len(found)
    rest: dict[tuple[str, int | None], list[Seen]] = defaultdict(list)
    for call in named.values():
        if call.request_id not in found:
            rest[call.session, call.max_tokens].append(call)
    pairs = [
        (call.end_ns - task.end_ns, task.request_id, call.request_id)
        for task in tasks
        if task.request_id not in found
        for call in rest[task.session, task.max_tokens]
        if task.begin_ns >= call.begin_ns - EARLY_NS and task.end_ns <= call.end_ns + EARLY_NS
    ]
    taken: set[str] = set()
    for _, task_id, call_id in sorted(pairs):
        if task_id not in found and call_id not in taken:
            found[task_id] = call_id
            taken.add(call_id)
    return found, len(found) - exact
