"""From a run directory to Facts: journals streamed once, attribution joined by wire id, power binned.

Reads only. A part that was not recorded is said in the notes; a damaged line is counted there.
May not know: how anything is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from joulegraph.report.facts import ADDED, Facts, Joules, Request, Workflow
from joulegraph.report.timeline import timeline
from traces.errors import UserError
from traces.exact import facts, link
from traces.journal import JournalReader
from traces.records import is_call
from traces.rundir import RunDir
from traces.workflow import Dep

ITL_SAMPLE = 2_000_000
"""token gaps kept for quantiles; beyond it every second, third ... request is taken"""
_DEP = frozenset(("on", "kind", "blocking", "anchor", "provenance", "confidence"))


def gather(run: RunDir) -> Facts:
    """Everything the report of a run needs. UserError when it recorded no request at all."""
    notes: list[str] = []
    joules = _joules(run, notes)
    gaps = _Gaps()
    requests = _requests(run, joules, gaps, notes)
    sensors, sampling, curves = _power(run, notes)
    return Facts(
        name=run.path.resolve().name,
        info=run.info,
        requests=requests,
        workflows=_workflows(requests),
        ledger=_ledger(run, notes),
        timeline=timeline(requests, curves),
        truth=_truth(run, notes) if joules else None,
        goodput=_goodput(run),
        sensors=sensors,
        sampling=sampling,
        itl_ns=gaps.quantiles(),
        planned=bool(run.journals("dispatch")),
        notes=notes,
    )


def gather_workflows(run: RunDir) -> list[Workflow]:
    """Workflows alone, for the table per class."""
    notes: list[str] = []
    return _workflows(_requests(run, _joules(run, notes), None, notes))


def _requests(run: RunDir, joules: dict[str, Joules], gaps: _Gaps | None, notes: list[str]) -> list[Request]:
    """From the generator's journal where there is one (it knows what was due), else from the proxy's."""
    planned = bool(run.journals("dispatch"))
    make, name = (_planned, "dispatch") if planned else (_seen, "requests")
    requests = []
    linked: list[dict[str, Any]] | None = [] if not planned and len(run.journals(name)) > 1 else None
    for row in _rows(run, name, notes):
        if not planned and not is_call(row):
            continue
        if gaps is not None:
            gaps.add(row)
        requests.append(make(row, joules))
        if linked is not None:
            linked.append(facts(row))
    if not requests:
        raise UserError(f"{run.path}: recorded no request (no dispatch or requests journal); nothing to report")
    if linked is not None:
        requests = [replace(r, deps=_deps(deps)) for r, deps in zip(requests, link(linked), strict=True)]
    return requests


def _rows(run: RunDir, name: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    for path in run.journals(name):
        reader = JournalReader(path)
        yield from reader
        if reader.torn or reader.damaged:
            notes.append(
                f"{path.name}: {len(reader.damaged)} damaged lines and {reader.torn} torn last line were left out"
            )


class _Gaps:
    """Gaps between tokens, over as many requests as fit; k tokens of one read share its gap evenly."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray[Any, Any]] = []
        self._kept = 0
        self._step = 1
        self._seen = 0

    def add(self, row: dict[str, Any]) -> None:
        """The reads of one good request."""
        self._seen += 1
        if row.get("outcome") != "ok" or self._seen % self._step:
            return
        dt = np.asarray(row.get("read_dt_ns") or (), np.int64)
        tokens = np.asarray(row.get("read_tokens") or (), np.int64)
        carrying = np.flatnonzero(tokens) if len(tokens) == len(dt) else np.zeros(0, np.int64)
        if len(carrying) < 2:
            return
        at = np.cumsum(dt)[carrying]
        gap = np.diff(at) / tokens[carrying[1:]]
        self._parts.append(np.repeat(gap, tokens[carrying[1:]]))
        self._kept += len(self._parts[-1])
        if self._kept > ITL_SAMPLE:
            self._parts = self._parts[::2]
            self._kept = sum(map(len, self._parts))
            self._step *= 2

    def quantiles(self) -> dict[str, float] | None:
        """p50, p95, p99, mean, n, and the longest where no request was left out; None without gaps."""
        if not self._parts:
            return None
        gaps = np.concatenate(self._parts)
        p50, p95, p99 = np.quantile(gaps, (0.5, 0.95, 0.99))
        found = {"n": len(gaps), "mean": float(gaps.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}
        return found | ({"max": float(gaps.max())} if self._step == 1 else {})


def _deps(rows: Sequence[dict[str, Any]]) -> tuple[Dep, ...]:
    return tuple(Dep(**{k: v for k, v in d.items() if k in _DEP}) for d in rows if "on" in d)


def _tokens(row: dict[str, Any]) -> int | None:
    """Output tokens as the engine counted them; where it did not, the token events seen."""
    told: int | None = row.get("completion_tokens")
    reads = row.get("read_tokens")
    return told if told is not None else sum(reads) if reads else None


def _planned(row: dict[str, Any], joules: dict[str, Joules]) -> Request:
    """A row of the generator's journal."""
    return Request(
        wire_id=row["wire_id"],
        node_id=row["request_id"],
        workflow_id=row["workflow_id"],
        class_name=row.get("class_name") or "workflow",
        agent_id=row.get("agent_id"),
        kind=row.get("kind", "llm"),
        outcome=row["outcome"],
        due_ns=row["due_ns"],
        sent_ns=row.get("t_sent_ns"),
        first_ns=row.get("t_first_token_ns"),
        last_ns=row.get("t_last_token_ns"),
        end_ns=row["t_end_ns"],
        prompt_tokens=row.get("prompt_tokens"),
        cached_tokens=row.get("cached_tokens"),
        output_tokens=_tokens(row),
        planned_tokens=(row.get("planned_input_tokens"), row.get("planned_output_tokens")),
        delay_ns=row.get("delay_ns", 0),
        deps=_deps(row.get("deps") or ()),
        error=row.get("error"),
        joules=joules.get(row["wire_id"]),
    )


def _seen(row: dict[str, Any], joules: dict[str, Joules]) -> Request:
    """A row of the proxy's journal: live traffic, so nothing was due."""
    return Request(
        wire_id=row["request_id"],
        node_id=row.get("node_id") or row["request_id"],
        workflow_id=row.get("workflow_id") or row["request_id"],
        class_name=row.get("class_name") or ("workflow" if row.get("workflow_id") else "untagged"),
        agent_id=row.get("agent_id"),
        kind="llm" if row.get("api") or not row.get("path") else "other",
        outcome=row["outcome"],
        due_ns=None,
        sent_ns=row["t_arrival_ns"],
        first_ns=row.get("t_first_token_ns"),
        last_ns=row.get("t_last_token_ns"),
        end_ns=row["t_end_ns"],
        prompt_tokens=row.get("prompt_tokens"),
        cached_tokens=row.get("cached_tokens"),
        output_tokens=_tokens(row),
        deps=_deps(row.get("deps") or ()),
        error=row.get("error"),
        joules=joules.get(row["request_id"]),
    )


def _workflows(requests: list[Request]) -> list[Workflow]:
    members: dict[str, list[Request]] = {}
    for request in requests:
        members.setdefault(request.workflow_id, []).append(request)
    return [Workflow(name, rows[0].class_name, tuple(rows)) for name, rows in members.items()]


def _joules(run: RunDir, notes: list[str]) -> dict[str, Joules]:
    """Attribution per request over the added components; empty (and noted) when there is none."""
    path = run.file("attribution.parquet")
    if not path.is_file():
        notes.append("no attribution.parquet: joules per request are not known (joulegraph attribute makes them)")
        return {}
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    sums: dict[str, list[int]] = {}
    parts: dict[str, dict[str, int]] = {}
    for i, wire_id in enumerate(columns["request_id"]):
        component, active = columns["component"][i], columns["active_uj"][i]
        by = parts.setdefault(wire_id, {})
        by[component] = by.get(component, 0) + active
        into = sums.setdefault(wire_id, [0] * 7)
        if component in ADDED:
            for place, name in enumerate(("own_uj", "active_uj", "full_uj", "lo_uj", "hi_uj")):
                into[place] += columns[name][i] or 0
            into[5 if columns["phase"][i] == "prefill" else 6] += active
    out = {}
    for wire_id, (own, active, full, low, high, prefill, decode) in sums.items():
        out[wire_id] = Joules(own, active, full, low, high, prefill, decode, tuple(parts[wire_id].items()))
    return out


def _ledger(run: RunDir, notes: list[str]) -> dict[str, Any] | None:
    path = run.file("ledger.json")
    if not path.is_file():
        notes.append("no ledger.json: the energy of the run was not attributed")
        return None
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); run joulegraph attribute again") from error
    return value if isinstance(value, dict) else None


def _power(run: RunDir, notes: list[str]) -> tuple[list[dict[str, Any]], dict[str, int], list[Any]]:
    """Sensors as described, what the sampler said of itself, one energy curve per device."""
    from dataclasses import asdict

    from energy.curve import choose, curves_of
    from energy.sensed import load_power

    if not run.journals("power"):
        notes.append("no power journal: no power was measured")
        return [], {}, []
    series, events, _ = load_power(run, notes)
    # what was never there is missing, not lost: it has no description
    events = [e for e in events if e.kind != "lost" or e.source in series]
    sampling = {kind: sum(e.kind == kind for e in events) for kind in ("gap", "reset", "lost")}
    beats = [e for e in events if e.kind == "heartbeat"]
    if beats:
        sampling |= {"ticks": max(e.ticks or 0 for e in beats), "missed": max(e.missed or 0 for e in beats)}
    notes += [f"sensor lost: {e.source}: {e.why}" for e in events if e.kind == "lost"][:5]
    every, missing = curves_of(series)
    curves = choose(every)
    notes += missing
    sensors = [{**asdict(s.info), "samples": len(s.value), "failed": s.failed} for s in series.values()]
    return sensors, sampling, curves


def _truth(run: RunDir, notes: list[str]) -> dict[str, float] | None:
    """Error against the embedded engine's truth, where it kept one."""
    if not run.journals("truth"):
        return None
    from energy.truth import score_truth

    try:
        return score_truth(run)
    except UserError as error:
        notes.append(str(error))
        return None


def _goodput(run: RunDir) -> dict[str, Any] | None:
    """Of the whole run under the bounds it was given."""
    path = run.file("figures.json")
    try:
        figures = orjson.loads(path.read_bytes()) if path.is_file() else {}
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); run joulegraph finish again") from error
    good = (figures.get("all") or {}).get("goodput")
    return None if good is None else {"slo": figures["slo"], **good}
