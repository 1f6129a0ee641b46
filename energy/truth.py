"""The attribution of a run against the joules that its engine knows it drew: only embedded engines know.

May not know: how the figures came about; no estimator may read what is read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow.parquet as pq

from traces.errors import UserError
from traces.rundir import RunDir

if TYPE_CHECKING:
    from energy.attribute import Attribution


def score_truth(run: RunDir, result: Attribution | None = None) -> dict[str, float] | None:
    """Absolute error of active GPU joules per request against truth.jsonl: {median, p95}; None where there is none,
    or where prefixes are amortised: truth says who computed a block, not who shall pay for it."""
    if _amortised(run, result):
        return None
    truth = {
        r["request_id"]: int(r["active_uj"])
        for r in run.rows("truth")
        if r.get("component") == "gpu" and "request_id" in r
    }
    if not truth:
        return None
    mine = _active_by_id(run, result)
    errors = [abs(mine.get(k, 0) - v) / v for k, v in truth.items() if v > 0]
    if not errors:
        return None
    return {"median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95)), "requests": float(len(errors))}


def _amortised(run: RunDir, result: Attribution | None) -> bool:
    if result is not None:
        return result.totals.get("prefixes") == "amortised"
    ledger = run.file("ledger.json")
    return ledger.is_file() and orjson.loads(ledger.read_bytes()).get("prefixes") == "amortised"


def _active_by_id(run: RunDir, result: Attribution | None) -> dict[str, int]:
    if result is not None:
        gpu = [f for f in result.figures if f.component == "gpu"]
        return dict(zip(result.requests.ids, gpu[0].active.sum(1).tolist(), strict=True)) if gpu else {}
    path = run.file("attribution.parquet")
    if not path.is_file():
        raise UserError(f"{path}: missing; run joulegraph attribute on the run first")
    table = pq.read_table(path, columns=["request_id", "component", "active_uj"])
    out: dict[str, int] = {}
    for row in table.to_pylist():
        if row["component"] == "gpu":
            out[row["request_id"]] = out.get(row["request_id"], 0) + row["active_uj"]
    return out
