"""Two arms of runs, compared: ratios of run figures with intervals from resampling runs. Pure but for reading a run.

On one board the sensor's gain multiplies both arms and cancels in a ratio; offsets do not, so idle is left out (active
joules). Requests of one run share its conditions: runs, not requests, are resampled.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import UserError
from traces.rundir import RunDir

FEWEST = 5
"""repeats per arm below which no verdict is given"""
FIGURES = ("j_per_workflow", "j_per_output_token", "j_per_request", "makespan_s", "edp_js")
DRAWS = 4000


def read_run(path: Path) -> dict[str, Any]:
    """Figures of one attributed run. UserError when it was not attributed."""
    import orjson
    import pyarrow.parquet as pq

    run = RunDir.open(path)
    for name in ("workflows.parquet", "ledger.json"):
        if not run.file(name).is_file():
            raise UserError(f"{run.file(name)}: missing; run joulegraph attribute {path} first")
    table = pq.read_table(run.file("workflows.parquet"))
    ledger = orjson.loads(run.file("ledger.json").read_bytes())
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    out: dict[str, Any] = {
        "run": str(path),
        "devices": sorted(f"{d['domain']}/{d['device']}/{d['source']}" for d in ledger["devices"]),
    }
    out["host"] = run.info.get("host")
    out["accounting"] = (
        f"level {ledger.get('level')}, policy {ledger.get('policy')}, prefixes {ledger.get('prefixes', 'creator')}"
    )
    out["virtual"] = run.info.get("time") == "virtual"
    out["t_start_ns"] = float(np.nanmin(columns["t_start_ns"].astype(float))) if len(table) else None
    makespan = columns["makespan_ns"].astype(float)
    out["makespan_s"] = float(np.nanmean(makespan)) / 1e9 if len(table) and not np.all(np.isnan(makespan)) else None
    if "active_uj" in columns and len(table):
        joules = float(columns["active_uj"].sum()) / 1e6
        tokens = int(columns["output_tokens"].sum())
        out |= {
            "j_per_workflow": joules / len(table),
            "j_per_output_token": joules / tokens if tokens else None,
            "j_per_request": joules / max(1, int(columns["requests"].sum())),
            "edp_js": float(np.mean(columns["edp_js"])),
        }
    return out


def compare(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratio b / a of each figure with a 90 % interval over runs and a verdict (None below five repeats an arm,
    across boards, where runs were attributed differently, or where the arms did not take turns)."""
    notes = []
    if twice := sorted(run for run, n in Counter(r["run"] for r in a + b).items() if n > 1):
        raise UserError(f"{', '.join(twice)}: named more than once; a run is one repeat of one arm, name each once")
    enough = min(len(a), len(b)) >= FEWEST
    if not enough:
        notes.append(
            f"{len(a)} and {len(b)} runs: at least {FEWEST} interleaved repeats per arm are needed for a verdict"
        )
    if {tuple(r["devices"]) for r in a} != {tuple(r["devices"]) for r in b} or len({str(r["host"]) for r in a + b}) > 1:
        notes.append("the arms were not measured by the same sensors of one host: the board's gain does not cancel")
        enough = False
    if len(kinds := sorted({str(r["accounting"]) for r in a + b})) > 1:
        notes.append(f"the runs were attributed differently ({'; '.join(kinds)}): attribute them alike for a verdict")
        enough = False
    if not _interleaved(a, b):
        notes.append(
            "the arms are not interleaved in time (A A ... B B), so that drift of temperature counts as difference: no"
            " verdict; run them in turns (A B A B ...)"
        )
        enough = False
    figures = {name: _figure([r.get(name) for r in a], [r.get(name) for r in b], enough) for name in FIGURES}
    return {"a": [r["run"] for r in a], "b": [r["run"] for r in b], "figures": figures, "notes": notes}


def _interleaved(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether the arms took turns often enough that no drift can side with one: the order changes arms at least as
    often as the smaller arm has runs (A B B A A B B A does, A A B B A A does not). A run without a time cannot
    tell; runs in virtual time have no order, nor anything that drifts."""
    if all(r["virtual"] for r in a + b):
        return True
    if any(r["t_start_ns"] is None for r in a + b):
        return False
    times = [(r["t_start_ns"], arm) for arm, runs in (("a", a), ("b", b)) for r in runs]
    order = [arm for _, arm in sorted(times)]
    return sum(x != y for x, y in pairwise(order)) >= min(len(a), len(b))


def _figure(a: list[float | None], b: list[float | None], enough: bool) -> dict[str, Any]:
    if any(x is None for x in a + b) or not a or not b:
        return {"ratio": None, "interval90": None, "verdict": None}
    x, y = np.array(a, float), np.array(b, float)
    ratio = float(y.mean() / x.mean())
    if min(len(x), len(y)) < 2:
        return {"ratio": ratio, "interval90": None, "verdict": None}
    rng = np.random.default_rng(5)
    draws = y[rng.integers(0, len(y), (DRAWS, len(y)))].mean(1) / x[rng.integers(0, len(x), (DRAWS, len(x)))].mean(1)
    # the bootstrap of few runs is too narrow: widen by sqrt(n / (n - 1))
    n = min(len(x), len(y))
    low, high = (ratio + (float(np.quantile(draws, q)) - ratio) * np.sqrt(n / (n - 1)) for q in (0.05, 0.95))
    verdict = None
    if enough:
        verdict = "b is lower" if high < 1 else "b is higher" if low > 1 else "no difference shown"
    return {"ratio": ratio, "interval90": [float(low), float(high)], "verdict": verdict}
