"""The files an attribution leaves: attribution.parquet, workflows.parquet, ledger.json. Shapes only."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from energy.carbon import Grid
from energy.fit import TERMS, Fit
from energy.ledger import book
from energy.rollup import class_report, workflow_table
from energy.work import FEATURES
from traces.errors import UserError
from traces.rundir import RunDir

if TYPE_CHECKING:
    from energy.attribute import Attribution


def write(run: RunDir, result: Attribution, grid: Grid | None = None) -> None:
    """The three files of an attribution; with a grid gCO2e beside the joules of each workflow and class."""
    requests = result.requests
    n = len(requests)
    tables = []
    for f in result.figures:
        keep = (f.active > 0) | (f.full > 0)
        row, phase = np.nonzero(keep)
        tables.append(
            pa.table(
                {
                    "request_id": pa.array(requests.ids).take(pa.array(row)),
                    "component": pa.array([f.component] * len(row)).dictionary_encode().cast(pa.string()),
                    "phase": pa.array(np.array(["prefill", "decode"])[phase]),
                    **{
                        f"{k}_uj": getattr(f, v)[row, phase]
                        for k, v in (
                            ("own", "own"),
                            ("active", "active"),
                            ("full", "full"),
                            ("lo", "low"),
                            ("hi", "high"),
                        )
                    },
                    "level": pa.array(np.full(len(row), result.level)),
                }
            )
        )
    table = pa.concat_tables(tables) if tables else _empty()
    workflows = workflow_table(requests, result.figures)
    if grid is not None and "active_uj" in workflows.columns:
        workflows.columns["gco2e"] = grid.gco2e(1.0) * workflows.columns["active_uj"]
        result.totals["carbon"] = grid.report(result.totals["class_uj"])
    result.totals["workflow_classes"] = class_report(workflows)
    try:
        pq.write_table(table, run.file("attribution.parquet"))
        pq.write_table(pa.table(workflows.columns), run.file("workflows.parquet"))
    except OSError as error:
        raise UserError(
            f"{run.path}: cannot write the attribution ({error}); free space or copy the run elsewhere"
        ) from error
    run.write_json("ledger.json", ledger_json(result, n))


def _empty() -> Any:
    text, number = pa.string(), pa.int64()
    names = {"request_id": text, "component": text, "phase": text}
    return pa.schema(
        [*names.items(), *((f"{k}_uj", number) for k in ("own", "active", "full", "lo", "hi")), ("level", text)]
    ).empty_table()


def ledger_json(result: Attribution, requests: int) -> dict[str, Any]:
    """The books per device with what they rest on: lag, fit, condition, blocks."""
    devices = []
    for d in result.devices:
        devices.append(
            {
                "device": d.curve.device,
                "domain": d.curve.domain,
                "source": d.curve.source,
                "integrated_power": d.curve.integrated,
                "simulated": d.curve.simulated,
                "resets": d.curve.resets,
                "lag_s": d.lag.lag_s,
                "lag_spread_s": d.lag.spread_s,
                "lag_known": d.lag.known,
                "fades_s": d.work.tail_s,
                "fit": fit_json(d.fit),
                **(book([d.ledger]) or {}),
                "blocks": {
                    "t_ns": [round(t * 1e9) for t in d.blocks.t],
                    **{
                        k: getattr(d.ledger, k)
                        for k in ("delta", "attributed", "idle", "tail", "foreign", "unmeasured")
                    },
                    "ratio": [None if np.isnan(r) else float(r) for r in d.ledger.ratio],
                },
            }
        )
    summary = {k: v for k, v in result.totals.items() if k not in ("notes",)}
    return {"version": 1, "requests": requests, **summary, "devices": devices, "notes": result.notes}


def fit_json(fit: Fit) -> dict[str, Any]:
    """A fit for people and for the ledger: joules per unit with 90 % intervals, seconds per unit, quality."""
    return {
        "joules": {k: float(v) for k, v in zip(TERMS, fit.joules, strict=True)},
        "interval90": {
            k: [max(0.0, float(v - 1.645 * s)), float(v + 1.645 * s)]
            for k, v, s in zip(TERMS, fit.joules, fit.sd, strict=True)
        },
        "seconds": {k: float(v) for k, v in zip(FEATURES, fit.seconds, strict=True)},
        "power_limit_w": fit.cap_w if isfinite(fit.cap_w) else None,
        "condition": fit.condition,
        "residual_w": fit.residual_w,
        "blocks": fit.blocks,
        "prior": fit.prior,
    }
