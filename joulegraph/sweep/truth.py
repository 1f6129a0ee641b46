"""Figures of a virtual run from the engine's own truth: no sensor, no estimate, and a tenth of the time.

For sweeps that ask what the embedded engine's assumptions imply (policy = "truth"). The files are those of an
attribution, so whatever reads runs reads these; own, active, full and the interval are one figure, the true one.
May not know: sensors, fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from energy.load import load_requests
from energy.rollup import Figures, workflow_table
from energy.tables import RequestTable
from joulegraph.finish import count
from joulegraph.sweep.config import TRUTH
from joulegraph.tables import write_tables
from traces.errors import UserError
from traces.rundir import RunDir


def complete_from_truth(run: RunDir) -> dict[str, Any]:
    """Tables, workflows.parquet and summary.json of a virtual run. UserError when the engine left no truth."""
    requests = load_requests(run, [])
    figures, totals = _figures(run, requests)
    if not figures:
        raise UserError(f"{run.path}: holds no truth.jsonl; only the embedded engine knows true joules")
    tables = write_tables(run)
    pq.write_table(pa.table(workflow_table(requests, figures).columns), run.file("workflows.parquet"))
    info = run.info
    summary = {
        "run": str(run.path),
        "state": info.get("state"),
        "why": info.get("why"),
        **count(run),
        "level": TRUTH,
        "policy": TRUTH,
        "components": {name: _books(row) for name, row in totals.items()},
        "wall_s": info.get("wall_s"),
        "tables": tables,
    }
    run.write_json("summary.json", summary)
    return summary


def _figures(run: RunDir, requests: RequestTable) -> tuple[list[Figures], dict[str, dict[str, Any]]]:
    """True joules per component, rows as in requests, columns prefill and decode; the engine's totals."""
    row_of = {name: k for k, name in enumerate(requests.ids)}
    joules: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
    totals: dict[str, dict[str, Any]] = {}
    for row in run.rows("truth"):
        if row.get("kind") == "totals":
            totals[row["component"]] = row
        elif (k := row_of.get(row["request_id"])) is not None:
            table = joules.setdefault(row["component"], np.zeros((len(row_of), 2), np.int64))
            table[k] += (row["prefill_uj"], row["decode_uj"])
    return [Figures(name, t, t, t, t, t) for name, t in joules.items()], totals


def _books(row: dict[str, Any]) -> dict[str, Any]:
    """An engine's totals under the names of a ledger; nothing is foreign or unmeasured here, idle has no tail apart."""
    return {
        "measured_uj": row["total_uj"],
        "attributed_uj": row["active_uj"],
        "idle_uj": row["idle_uj"],
        "tail_uj": 0,
        "foreign_uj": 0,
        "unmeasured_uj": 0,
    }
