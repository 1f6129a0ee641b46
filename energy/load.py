"""From a run directory to tables: requests as the proxy saw them (else as the generator did), steps, sensor series.

Journals are parsed in chunks of whole lines by pyarrow, so that a million requests fit in time and memory; a chunk with
a damaged line is read line by line and the damage is counted and noted. May not know: how energy is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from energy.calls import Seen, join_calls
from energy.columns import Pool, int_column, journal_tables, label_column
from energy.groups import groups_of
from energy.preempted import preemptions
from energy.read_tokens import GUESSED, MOST_READS, with_read_tokens
from energy.sensed import load_power, load_steps
from energy.spans import with_spans
from energy.speculation import unsaid
from energy.tables import NONE, Ints, Labels, RequestTable, RunData
from traces.errors import UserError
from traces.exact import facts, link
from traces.journal import JournalReader
from traces.records import is_call
from traces.rundir import RunDir

_DEP = pa.struct([("on", pa.string()), ("kind", pa.string()), ("blocking", pa.bool_()), ("anchor", pa.string())])
_STRINGS = ("request_id", "workflow_id", "class_name", "agent_id", "outcome", "upstream")
_TIMES = ("t_first_token_ns", "t_last_token_ns", "t_end_ns")
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "draft_tokens", "accepted_tokens")
_ENGINE = ("engine_queue_ns", "engine_prefill_ns", "engine_decode_ns")
_READS = [("read_dt_ns", pa.list_(pa.int64())), ("read_tokens", pa.list_(pa.int32())), ("deps", pa.list_(_DEP))]
_SHARED = [*((n, pa.int64()) for n in (*_TIMES, *_COUNTS, *_ENGINE)), *_READS]
_REQUEST = pa.schema(
    [
        *((n, pa.string()) for n in (*_STRINGS, "node_id")),
        ("t_arrival_ns", pa.int64()),
        ("t_upstream_ns", pa.int64()),
        *((n, pa.string()) for n in ("method", "path", "api")),
        *_SHARED,
    ]
)
_DISPATCH = pa.schema(
    [*((n, pa.string()) for n in (*_STRINGS, "wire_id")), ("due_ns", pa.int64()), ("t_sent_ns", pa.int64()), *_SHARED]
)


def load_run(run: RunDir) -> RunData:
    """Everything attribution needs of a run. UserError when neither requests nor dispatch were recorded."""
    notes: list[str] = []
    requests = with_spans(load_requests(run, notes), _engine_rows(run, "spans"), notes)
    if run.info.get("read_tokens") == GUESSED:
        if len(requests.read_ns) > MOST_READS:
            notes.append(f"{len(requests.read_ns)} reads, more than {MOST_READS}: tokens in each are not looked for")
        else:
            requests = with_read_tokens(requests)
    series, events, processes = load_power(run, notes)
    roles = {int(row["pid"]): str(row["role"]) for row in processes if row.get("role")}
    roles |= {int(pid): str(role) for pid, role in (run.info.get("processes") or {}).items()}
    steps = load_steps(run, notes)
    scrapes = list(_engine_rows(run, "metrics"))
    preempted = preemptions(steps, scrapes)
    notes += unsaid(requests, scrapes)
    groups = groups_of(run.info.get("engines"), str(run.file("run.json")))
    return RunData(requests, steps, series, events, processes, notes, roles, preempted, groups)


def _engine_rows(run: RunDir, writer: str) -> Iterator[dict[str, Any]]:
    path = run.journal("engine", writer)
    yield from JournalReader(path) if path.is_file() else ()


def load_requests(run: RunDir, notes: list[str]) -> RequestTable:
    """The request table: requests.* where present, filled from dispatch.* (identity, due time); else dispatch.*."""
    seen = _gather(run, "requests", _REQUEST, "request_id", "t_arrival_ns", notes)
    sent = _gather(run, "dispatch", _DISPATCH, "wire_id", "t_sent_ns", notes)
    if seen is None and sent is None:
        empty = [path.name for name in ("requests", "dispatch") for path in run.journals(name)]
        why = f"no request in {', '.join(empty)}" if empty else "holds neither requests.*.jsonl nor dispatch.*.jsonl"
        raise UserError(f"{run.path}: {why}; nothing to attribute to")
    dispatch = _from_dispatch(sent) if sent is not None else None
    if seen is None:
        notes.append("no proxy journal: times are the load generator's")
        assert dispatch is not None
        return _with_bridge(run, dispatch, notes)
    requests = _from_requests(seen)
    known = _joined(requests, dispatch) if dispatch is not None else _linked(run, requests)
    return _with_bridge(run, known, notes)


def _with_bridge(run: RunDir, above: RequestTable, notes: list[str]) -> RequestTable:
    """The requests of a Parrot as the engine below served them: times and tokens are its, identity stays."""
    below = _gather(run, "bridge", _REQUEST, "request_id", "t_arrival_ns", notes)
    if below is None:
        return above
    calls = [s for row in run.rows("requests") if (s := Seen.of(row)) is not None]
    tasks = [s for row in run.rows("bridge") if (s := Seen.of(row)) is not None]
    found, by_time = join_calls(calls, tasks)
    served = _from_requests(below)
    ids = [found.get(i, i) for i in served.ids]
    known_ids = set(above.ids)
    lost = sum(i not in known_ids for i in ids)
    if by_time:
        notes.append(f"{by_time} calls of the bridge joined by session, length and time (they carried no request id)")
    if lost:
        notes.append(f"{lost} calls of the bridge belong to no request seen here; they stand by themselves")
    return _joined(replace(served, ids=ids), above)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """One kind of journal: the scalar columns as a table, the reads as flat arrays."""

    table: pa.Table
    read_start: Ints
    read_ns: Ints
    read_tokens: Any


def _gather(run: RunDir, name: str, schema: pa.Schema, key: str, base: str, notes: list[str]) -> _Gathered | None:
    """All writers' journals; reads leave Arrow chunk by chunk, so that a hundred million of them fit in memory."""
    tables, counts = [], []
    times, tokens = Pool(np.int64), Pool(np.int16)
    for path in run.journals(name):
        for whole in journal_tables(path, schema, key, notes):
            chunk = _calls(whole) if schema is _REQUEST else whole
            count, t_ns, token = _reads(chunk, int_column(chunk, base))
            tables.append(chunk.drop_columns(["read_dt_ns", "read_tokens"]))
            counts.append(count)
            times.add(t_ns)
            tokens.add(np.minimum(token, np.iinfo(np.int16).max))
    if not tables:
        return None
    start = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return _Gathered(pa.concat_tables(tables), start, times.array(), tokens.array())


def _calls(table: pa.Table) -> pa.Table:
    """Rows that asked the model for something: scrapes and lists of models draw no joules."""
    other = table.select(["method", "path", "api"]).filter(pc.is_null(table["api"]))
    if not other.num_rows:
        return table
    keep = np.ones(len(table), bool)
    keep[pc.is_null(table["api"]).to_numpy()] = [is_call(row) for row in other.to_pylist()]
    return table.filter(pa.array(keep))


def _reads(table: pa.Table, base_ns: Ints) -> tuple[Ints, Ints, Any]:
    """(reads per row, absolute ns, tokens) from delta lists; a row without its base time has no reads."""
    lists = table["read_dt_ns"]
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    total = np.cumsum(_flat(lists, np.int64))
    tokens = _flat(table["read_tokens"], np.int32)
    if len(tokens) != len(total):  # a writer that left read_tokens out: one token a read
        tokens = np.ones(len(total), np.int32)
    begin = np.cumsum(counts) - counts
    before = np.where(begin > 0, total[np.maximum(begin - 1, 0)], 0) if len(total) else begin
    total += np.repeat(np.where(base_ns == NONE, 0, base_ns) - before, counts)
    if np.any((base_ns == NONE) & (counts > 0)):
        keep = np.repeat(base_ns != NONE, counts)
        total, tokens = total[keep], tokens[keep]
        counts = np.where(base_ns == NONE, 0, counts)
    return counts, total, tokens


def _flat(column: Any, dtype: Any) -> Any:
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)


def _from_requests(seen: _Gathered) -> RequestTable:
    upstream, arrival = int_column(seen.table, "t_upstream_ns"), int_column(seen.table, "t_arrival_ns")
    return _build(seen, "request_id", "node_id", np.where(upstream == NONE, arrival, upstream), arrival)


def _linked(run: RunDir, requests: RequestTable) -> RequestTable:
    """With the exact edges between requests that different workers of a proxy recorded."""
    if len(run.journals("requests")) < 2:
        return requests
    rows = [facts(row) for row in run.rows("requests") if is_call(row)]
    more = {r["request_id"]: deps for r, deps in zip(rows, link(rows), strict=True) if len(deps) > len(r["deps"] or ())}
    if not more:
        return requests
    deps = [more.get(i, known) for i, known in zip(requests.ids, requests.deps.to_pylist(), strict=True)]
    return replace(requests, deps=pa.chunked_array([pa.array(deps, requests.deps.type)]))


def _from_dispatch(seen: _Gathered) -> RequestTable:
    sent, due = int_column(seen.table, "t_sent_ns"), int_column(seen.table, "due_ns")
    return _build(seen, "wire_id", "request_id", sent, due)


def _build(seen: _Gathered, id_name: str, node: str, sent: Ints, due: Ints) -> RequestTable:
    table = seen.table
    return RequestTable(
        ids=table[id_name].to_pylist(),
        nodes=table[node].to_pylist(),
        workflow=label_column(table, "workflow_id"),
        classes=label_column(table, "class_name"),
        agent=label_column(table, "agent_id"),
        outcome=label_column(table, "outcome"),
        upstream=label_column(table, "upstream"),
        due_ns=due,
        sent_ns=sent,
        first_ns=int_column(table, "t_first_token_ns"),
        last_ns=int_column(table, "t_last_token_ns"),
        end_ns=int_column(table, "t_end_ns"),
        prompt=int_column(table, "prompt_tokens"),
        cached=int_column(table, "cached_tokens"),
        completion=int_column(table, "completion_tokens"),
        queue_ns=int_column(table, "engine_queue_ns"),
        prefill_ns=int_column(table, "engine_prefill_ns"),
        decode_ns=int_column(table, "engine_decode_ns"),
        drafted=int_column(table, "draft_tokens"),
        accepted=int_column(table, "accepted_tokens"),
        read_start=seen.read_start,
        read_ns=seen.read_ns,
        read_tokens=seen.read_tokens,
        deps=table["deps"],
    )


def _joined(requests: RequestTable, dispatch: RequestTable) -> RequestTable:
    """Proxy rows with the generator's identity and due time; generator rows the proxy never saw are appended."""
    at = {wire: i for i, wire in enumerate(dispatch.ids)}
    match = np.fromiter((at.get(r, -1) for r in requests.ids), np.int64, len(requests))
    alone = np.setdiff1d(np.arange(len(dispatch)), match[match >= 0])
    counts = np.concatenate([np.diff(requests.read_start), np.diff(dispatch.read_start)[alone]])
    keep = np.zeros(len(dispatch.read_ns), bool)
    for i in alone:
        keep[dispatch.read_start[i] : dispatch.read_start[i + 1]] = True
    due = np.where(match >= 0, dispatch.due_ns[match], requests.due_ns)

    def both(name: str) -> Ints:
        return np.concatenate([getattr(requests, name), getattr(dispatch, name)[alone]])

    def told(name: str) -> Ints:
        """A count the proxy could not see (a Parrot tells none) as the generator has it."""
        mine, theirs = getattr(requests, name), getattr(dispatch, name)
        if len(theirs):
            mine = np.where((mine == NONE) & (match >= 0), theirs[match], mine)
        return np.concatenate([mine, theirs[alone]])

    nobody = np.full(len(match), -1, np.int64)
    named = [dispatch.nodes[m] if m >= 0 else n for m, n in zip(match, requests.nodes, strict=True)]
    theirs = dispatch.deps.take(pa.array(alone)).combine_chunks()
    mine = dispatch.deps.take(pa.array(match)) if np.all(match >= 0) else requests.deps
    return RequestTable(
        ids=requests.ids + [dispatch.ids[i] for i in alone],
        nodes=named + [dispatch.nodes[i] for i in alone],
        workflow=_fill(requests.workflow, dispatch.workflow, match, alone),
        classes=_fill(requests.classes, dispatch.classes, match, alone),
        agent=_fill(requests.agent, dispatch.agent, match, alone),
        outcome=_fill(requests.outcome, dispatch.outcome, nobody, alone),
        upstream=_fill(requests.upstream, dispatch.upstream, nobody, alone),
        due_ns=np.concatenate([due, dispatch.due_ns[alone]]),
        sent_ns=both("sent_ns"),
        first_ns=both("first_ns"),
        last_ns=both("last_ns"),
        end_ns=both("end_ns"),
        prompt=told("prompt"),
        cached=told("cached"),
        completion=told("completion"),
        queue_ns=both("queue_ns"),
        prefill_ns=both("prefill_ns"),
        decode_ns=both("decode_ns"),
        drafted=told("drafted"),
        accepted=told("accepted"),
        read_start=np.concatenate([[0], np.cumsum(counts)]),
        read_ns=np.concatenate([requests.read_ns, dispatch.read_ns[keep]]),
        read_tokens=np.concatenate([requests.read_tokens, dispatch.read_tokens[keep]]),
        deps=pa.chunked_array([mine.combine_chunks(), theirs]),
    )


def _fill(mine: Labels, theirs: Labels, match: Ints, alone: Ints) -> Labels:
    """The generator's label where it has the row, else the proxy's; then the rows only the generator has. Names that no
    row has any more are left out."""
    names = list(dict.fromkeys([*mine.names, *theirs.names]))
    index = {n: i for i, n in enumerate(names)}
    own = np.array([*(index[n] for n in mine.names), -1], np.int32)[mine.codes]
    other = np.array([*(index[n] for n in theirs.names), -1], np.int32)[theirs.codes]
    joined = np.where(match >= 0, other[match], -1)
    codes = np.concatenate([np.where(joined >= 0, joined, own), other[alone]]).astype(np.int32)
    used = np.unique(codes[codes >= 0])
    compact = np.full(len(names) + 1, -1, np.int32)
    compact[used] = np.arange(len(used))
    return Labels(compact[codes], [names[i] for i in used])
