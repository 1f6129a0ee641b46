"""The results of a sweep as files: results (a row per point, repeat and class) and means (with intervals over repeats).

Parquet and CSV hold the same rows. Runs that failed or are invalid have a row with the reason and no part in any mean.
May not know: how runs were made, plots.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from joulegraph.sweep.config import Point, Sweep
from joulegraph.sweep.drive import outcomes
from joulegraph.sweep.plan import order
from joulegraph.sweep.rows import ALL, FIGURES, rows_of
from joulegraph.sweep.stats import interval
from traces.rundir import RunDir

Row = dict[str, Any]


def results(sweep: Sweep, out: Path) -> list[Row]:
    """A row per point, repeat and class, in the order in which they were to run."""
    ended = outcomes(out)
    names = factor_names(sweep.points)
    found: list[Row] = []
    for place, slot in enumerate(order(sweep.points, sweep.repeats, sweep.seed)):
        factors = slot.point.factors()
        head = {
            "point": slot.point.key(),
            "repeat": slot.repeat,
            "place": place,
            "run": f"runs/{slot.name}",
            **{name: factors.get(name) for name in names},
        }
        path = out / "runs" / slot.name
        if (path / "summary.json").is_file():
            info = RunDir.open(path).info
            rows = rows_of(path)
            state = {"state": info.get("state"), "why": info.get("why")}
            if rows[0]["requests"] == rows[0]["failed"]:
                state = {"state": "invalid", "why": f"no request was answered: {_outcomes(path)}"}
            found += [{**head, **state, **row} for row in rows]
        elif slot.name in ended:
            found.append({**head, "state": "failed", "why": ended[slot.name].get("why"), **_empty()})
        else:
            found.append({**head, "state": "left", "why": "not run yet", **_empty()})
    return found


def _outcomes(path: Path) -> str:
    """Outcomes of a run's requests, in words."""
    counts = orjson.loads((path / "summary.json").read_bytes()).get("outcomes") or {}
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items())


def _empty() -> Row:
    return {"class": ALL, **dict.fromkeys(FIGURES), "level": None}


def factor_names(points: Sequence[Point]) -> list[str]:
    """Every factor that some point sets, in the order of the fields."""
    return list(dict.fromkeys(name for point in points for name in point.factors()))


def varying(points: Sequence[Point]) -> list[str]:
    """Factors that take more than one value."""
    rows = [point.factors() for point in points]
    return [name for name in factor_names(points) if len({str(row.get(name)) for row in rows}) > 1]


def means(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Long form: a row per point, class and figure, over its complete repeats."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["state"] == "complete":
            groups.setdefault((row["point"], row["class"]), []).append(row)
    out: list[Row] = []
    for (point, class_name), members in groups.items():
        for figure in FIGURES:
            values = [float(row[figure]) for row in members if row[figure] is not None]
            if values:
                found = interval(values)
                out.append(
                    {
                        "point": point,
                        **{name: members[0][name] for name in names},
                        "class": class_name,
                        "figure": figure,
                        "n": found.n,
                        "mean": found.mean,
                        "low95": found.low,
                        "high95": found.high,
                    }
                )
    return out


def write(rows: Sequence[Row], path: Path) -> None:
    """path.parquet and path.csv. A factor of several types (a preset and its absence, 4 and "4-8") becomes text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        return
    columns = {name: _column([row.get(name) for row in rows]) for name in rows[0]}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float}:
        return [float(v) if v is not None and float in kinds else v for v in values]
    return values if len(kinds) <= 1 else [None if v is None else str(v) for v in values]
