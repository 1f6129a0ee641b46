"""What sensors and the engine's iteration stream recorded of a run, from journals to tables.

May not know: requests, how energy is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from energy.columns import int_column, journal_tables, label_column
from energy.tables import NONE, Series, StepTable
from traces.records import PowerEvent, SensorInfo, from_row
from traces.rundir import RunDir

_STEP = pa.schema(
    [("kind", pa.string())]
    + [
        (n, pa.int64())
        for n in (
            "t_ns", "num_ctx_requests", "num_ctx_tokens", "num_generation_requests", "num_generation_tokens",
            "running", "preempted", "engine",
        )
    ]
)  # fmt: skip
_SAMPLE = pa.schema(
    [("kind", pa.string()), ("source", pa.string()), *((n, pa.int64()) for n in ("t0_ns", "t1_ns", "value"))]
)


def load_steps(run: RunDir, notes: list[str]) -> StepTable | None:
    """The iteration stream of engine.*.jsonl, None when there is none."""
    parts = [t for path in run.journals("engine") for t in journal_tables(path, _STEP, "t_ns", notes)]
    if not parts:
        return None
    table = pa.concat_tables(parts)
    table = table.filter(pc.equal(table["kind"], "step")).sort_by("t_ns")
    if not table.num_rows:
        return None
    names = ("t_ns", "num_ctx_requests", "num_ctx_tokens", "num_generation_requests", "num_generation_tokens")
    columns = [int_column(table, n) for n in (*names, "running", "preempted", "engine")]
    silent = (0, len(names) + 1)  # t_ns, and preempted: an engine that does not say may have preempted
    columns = [c if k in silent else np.where(c == NONE, 0, c) for k, c in enumerate(columns)]
    return StepTable(*columns)


def load_power(run: RunDir, notes: list[str]) -> tuple[dict[str, Series], list[PowerEvent], list[dict[str, Any]]]:
    """Sensor series, the sampler's events, and rows about processes, of all power journals."""
    infos: dict[str, SensorInfo] = {}
    events: list[PowerEvent] = []
    processes: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    for path in run.journals("power"):
        for table in journal_tables(path, _SAMPLE, "kind", notes):
            tables.append(table.filter(pc.equal(table["kind"], "sample")))
        for row in _other_rows(path):
            match row.get("kind"):
                case "sensor":
                    info = from_row(SensorInfo, row)
                    infos.setdefault(info.source, info)
                case "heartbeat" | "gap" | "reset" | "lost" | "anchor":
                    events.append(from_row(PowerEvent, row))
                case _:
                    processes.append(row)
    if not tables:
        notes.append("no power journal: nothing was measured")
        return {}, events, processes
    return _series(pa.concat_tables(tables), infos, notes), events, processes


def _other_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows that are no samples; samples are told apart by text, so that the many are not parsed twice."""
    with path.open("rb") as file:
        for line in file:
            if b'"kind":"sample"' in line or b'"journal"' in line:
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # counted by the table reader
            if isinstance(row, dict) and row.get("kind") != "sample":
                yield row


def _series(table: pa.Table, infos: dict[str, SensorInfo], notes: list[str]) -> dict[str, Series]:
    source = label_column(table, "source")
    t0, t1, value = (int_column(table, n) for n in ("t0_ns", "t1_ns", "value"))
    out: dict[str, Series] = {}
    for code, name in enumerate(source.names):
        rows = np.flatnonzero(source.codes == code)
        if name not in infos:
            notes.append(f"sensor {name}: samples without a description are left out")
            continue
        rows = rows[np.argsort(t0[rows], kind="stable")]
        good = rows[value[rows] != NONE]
        out[name] = Series(infos[name], t0[good], t1[good], value[good], failed=len(rows) - len(good))
    return out
