"""The run as a Chrome trace for ui.perfetto.dev: requests as slices, dependencies as arrows, watts as tracks.

One process per workflow class, as many lanes in it as requests overlap; a request's slice runs from due to end and
holds its waiting and its decoding. Pure. May not know: files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

from joulegraph.report.facts import Facts, Request

POWER = 1
"""process id of the power tracks; classes follow"""


def trace_events(facts: Facts) -> Iterator[dict[str, Any]]:
    """Events in the Trace Event Format; times in us since the first request began."""
    shown = [r for r in facts.requests if r.begin_ns is not None]
    if not shown:
        return
    origin = min(r.begin_ns or 0 for r in shown)
    yield from _power(facts, origin)
    places: dict[tuple[str, str], tuple[int, int]] = {}
    for pid, name in enumerate(sorted({r.class_name for r in shown}), POWER + 1):
        yield _named(pid, f"class {name}")
        members = sorted((r for r in shown if r.class_name == name), key=lambda r: (r.begin_ns or 0, r.wire_id))
        for r, lane in zip(members, lanes([(r.begin_ns or 0, r.end_ns) for r in members]), strict=True):
            places[r.workflow_id, r.node_id] = (pid, lane)
            yield from _slices(r, pid, lane, origin)
    yield from _arrows(shown, places, origin)


def lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """The lowest free lane for each span (given by rising start), so that none overlaps another in its lane."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    out = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        lane = heappop(free) if free else len(busy)
        heappush(busy, (max(end, start + 1), lane))
        out.append(lane)
    return out


def _us(ns: int, origin: int) -> float:
    return (ns - origin) / 1000


def _named(pid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}


def _slices(r: Request, pid: int, lane: int, origin: int) -> Iterator[dict[str, Any]]:
    begin = r.begin_ns or 0
    joules = {"active_j": r.joules.active / 1e6, "full_j": r.joules.full / 1e6} if r.joules else {}
    about = {
        "workflow": r.workflow_id,
        "agent": r.agent_id,
        "outcome": r.outcome,
        "prompt_tokens": r.prompt_tokens,
        "cached_tokens": r.cached_tokens,
        "output_tokens": r.output_tokens,
        **joules,
    }
    args = {k: v for k, v in about.items() if v is not None}
    yield _slice(r.node_id, r.outcome, begin, r.end_ns, pid, lane, origin, args)
    if r.sent_ns is not None and r.first_ns is not None:
        yield _slice("waiting, prefill", "phase", r.sent_ns, r.first_ns, pid, lane, origin, {})
        yield _slice("decode", "phase", r.first_ns, r.end_ns, pid, lane, origin, {})


def _slice(
    name: str, category: str, start: int, end: int, pid: int, tid: int, origin: int, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": pid,
        "tid": tid,
        "ts": _us(start, origin),
        "dur": max(0, end - start) / 1000,
        "args": args,
    }


def _arrows(
    shown: Sequence[Request], places: dict[tuple[str, str], tuple[int, int]], origin: int
) -> Iterator[dict[str, Any]]:
    """One arrow per dependency, from the end of the one to the begin of the other."""
    ends = {(r.workflow_id, r.node_id): r.end_ns for r in shown}
    number = 0
    for r in shown:
        for dep in r.deps:
            source = (r.workflow_id, dep.on)
            if source not in places:
                continue
            number += 1
            (from_pid, from_lane), (pid, lane) = places[source], places[r.workflow_id, r.node_id]
            common = {"name": dep.kind, "cat": "dependency", "id": number}
            leave = min(ends[source], r.begin_ns or 0) - 1
            yield {"ph": "s", "pid": from_pid, "tid": from_lane, "ts": _us(leave, origin), **common}
            yield {"ph": "f", "bp": "e", "pid": pid, "tid": lane, "ts": _us(r.begin_ns or 0, origin), **common}


def _power(facts: Facts, origin: int) -> Iterator[dict[str, Any]]:
    """Mean watts per bin and device; bins that were not measured are left out."""
    line = facts.timeline
    if line is None or not line.power:
        return
    yield _named(POWER, "power")
    sent = min(r.sent_ns for r in facts.requests if r.sent_ns is not None)
    shift = _us(sent, origin)
    for power in line.power:
        for start, watts in zip(line.edges_s, power.watts, strict=False):
            if watts is not None:
                yield {
                    "ph": "C",
                    "name": power.device,
                    "pid": POWER,
                    "ts": start * 1e6 + shift,
                    "args": {"W": round(watts, 3)},
                }
