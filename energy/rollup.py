"""From requests to workflows, agents, classes and the run: sums along the identity columns, and joules along the path.

Pure column work over the request table and the per-request figures. May not know: sensors, blocks, policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from energy.tables import NONE, Floats, Ints, Labels, RequestTable, known

OUTSIDE = ("hbm",)
"""components inside another one: shown beside, never added"""


@dataclass(frozen=True, slots=True)
class Figures:
    """uJ of one component per request row and phase (n, 2): own, active, full and the interval of active."""

    component: str
    own: Ints
    active: Ints
    full: Ints
    low: Ints
    high: Ints


@dataclass(frozen=True, slots=True)
class WorkflowTable:
    """One row per workflow as columns, ready for Parquet."""

    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["workflow_id"])


def identity(requests: RequestTable) -> tuple[Ints, list[str]]:
    """(workflow index per row, workflow ids); a request of no workflow is its own."""
    alone = requests.workflow.codes < 0
    names = list(requests.workflow.names) + [requests.ids[i] for i in np.flatnonzero(alone)]
    index = requests.workflow.codes.astype(np.int64)
    index[alone] = len(requests.workflow.names) + np.arange(int(alone.sum()))
    return index, names


def added(figures: list[Figures]) -> tuple[Ints, Ints, Ints]:
    """(own, active, full) uJ per row over the components that are not inside another."""
    parts = [f for f in figures if f.component not in OUTSIDE]
    if not parts:
        raise ValueError("no component to add")
    return tuple(
        sum((getattr(f, k).sum(1) for f in parts[1:]), getattr(parts[0], k).sum(1)) for k in ("own", "active", "full")
    )


def workflow_table(requests: RequestTable, figures: list[Figures]) -> WorkflowTable:
    """Times and joules per workflow. Times of a workflow run from its first due (else arrival) to its last end."""
    index, names = identity(requests)
    n = len(names)
    ok = np.isin(requests.outcome.codes, [i for i, o in enumerate(requests.outcome.names) if o == "ok"])
    begin = np.where(known(requests.due_ns), requests.due_ns, requests.sent_ns)
    start, end = _extreme(index, begin, n, np.minimum), _extreme(index, requests.end_ns, n, np.maximum)
    first = np.where(known(requests.first_ns) & known(begin), requests.first_ns - begin, NONE)
    root = _root(index, begin, n)
    count = np.bincount(index, minlength=n)
    out: dict[str, Any] = {
        "workflow_id": names,
        "class": _class_of(requests.classes, index, n, requests.workflow),
        "requests": count,
        "failed": count - np.bincount(index, ok, n).astype(np.int64),
        "t_start_ns": _nullable(start),
        "t_end_ns": _nullable(end),
        "makespan_ns": _nullable(np.where(known(start) & known(end), end - start, NONE)),
        "ttft_ns": _nullable(np.where(root >= 0, first[root], NONE)),
        "prompt_tokens": _sum(index, requests.prompt, n),
        "cached_tokens": _sum(index, requests.cached, n),
        "output_tokens": _sum(index, requests.completion, n),
    }
    for f in figures:
        for k in ("own", "active", "full"):
            out[f"{f.component}_{k}_uj"] = _sum(index, getattr(f, k).sum(1), n)
    if figures:
        own, active, full = added(figures)
        out |= {"own_uj": _sum(index, own, n), "active_uj": _sum(index, active, n), "full_uj": _sum(index, full, n)}
        half = np.sqrt(
            np.bincount(
                index, sum(((f.high - f.low).sum(1) / 2.0) ** 2 for f in figures if f.component not in OUTSIDE), n
            )
        )
        # errors of requests of one workflow are alike (same coefficients): bounded by the plain sum
        plain = np.bincount(index, sum((f.high - f.low).sum(1) / 2.0 for f in figures if f.component not in OUTSIDE), n)
        width = np.rint((half + plain) / 2).astype(np.int64)
        out |= {"lo_uj": np.maximum(out["active_uj"] - width, 0), "hi_uj": out["active_uj"] + width}
        out["critical_path_uj"] = _critical(requests, index, n, active)
        seconds = np.where(known(start) & known(end), end - start, 0) / 1e9
        out["edp_js"] = out["active_uj"] / 1e6 * seconds
    return WorkflowTable(out)


def _sum(index: Ints, values: Ints, n: int) -> Ints:
    total = np.zeros(n, np.int64)
    np.add.at(total, index, np.where(values == NONE, 0, values))
    return total


def _extreme(index: Ints, values: Ints, n: int, pick: Any) -> Ints:
    start = np.full(n, np.iinfo(np.int64).max if pick is np.minimum else NONE, np.int64)
    here = known(values)
    pick.at(start, index[here], values[here])
    return np.where(start == np.iinfo(np.int64).max, NONE, start)


def _root(index: Ints, begin: Ints, n: int) -> Ints:
    """Row of the earliest request of each workflow, -1 where none."""
    order = np.lexsort((np.where(known(begin), begin, np.iinfo(np.int64).max), index))
    out = np.full(n, -1, np.int64)
    out[index[order][::-1]] = order[::-1]
    return out


def _class_of(classes: Labels, index: Ints, n: int, workflow: Labels) -> list[str]:
    code = np.full(n, -1, np.int64)
    code[index] = classes.codes
    return [
        classes.names[c] if c >= 0 else ("workflow" if i < len(workflow.names) else "untagged")
        for i, c in enumerate(code)
    ]


def _nullable(values: Ints) -> Any:
    import pyarrow as pa

    return pa.array(values, mask=~known(values))


def _critical(requests: RequestTable, index: Ints, n: int, active: Ints) -> Ints:
    """Active uJ along each workflow's critical path: from the request that ended last back over the dependency that
    ended last."""
    deps = requests.deps
    rows = deps.to_pylist() if hasattr(deps, "to_pylist") else (deps or [])
    order = np.argsort(index, kind="stable")
    cut = np.searchsorted(index[order], np.arange(n + 1))
    total = np.zeros(n, np.int64)
    for w in range(n):
        members = order[cut[w] : cut[w + 1]]
        if len(members) == 1:
            total[w] = active[members[0]]
            continue
        at = {requests.nodes[i]: int(i) for i in members}
        here: int | None = int(members[np.argmax(requests.end_ns[members])])
        seen: set[int] = set()
        while here is not None and here not in seen:
            seen.add(here)
            total[w] += active[here]
            before = [at[d["on"]] for d in (rows[here] or []) if d.get("blocking") is not False and d["on"] in at]
            here = max(before, key=lambda i: int(requests.end_ns[i])) if before else None
    return total


def by_label(labels: Labels, values: Floats | Ints) -> dict[str, int]:
    """Sum of a row column per label; rows without a label under "none"."""
    sums = np.bincount(labels.codes + 1, values, len(labels.names) + 1)
    out = {name: round(float(sums[i + 1])) for i, name in enumerate(labels.names)}
    if np.any(labels.codes < 0):
        out["none"] = round(float(sums[0]))
    return out


def class_report(table: WorkflowTable) -> dict[str, dict[str, Any]]:
    """Per class: workflows, requests, makespan and TTFT percentiles (ms; TTFT of a workflow's first
    request from its due time, else arrival), half width of the interval (share), J per workflow, per output token, per
    successful workflow (failed ones' joules included), joules along the critical paths, energy-delay product of a
    workflow (mean of active J x makespan s), and gCO2e where a grid was given."""
    columns = table.columns
    names = np.array(columns["class"])
    out: dict[str, dict[str, Any]] = {}
    for name in sorted(set(columns["class"])):
        here = names == name
        makespan, ttft = (_quantiles(columns[k], here) for k in ("makespan_ns", "ttft_ns"))
        row: dict[str, Any] = {
            "workflows": int(here.sum()),
            "requests": int(columns["requests"][here].sum()),
            "makespan_ms": makespan,
            "ttft_ms": ttft,
        }
        if "active_uj" in columns:
            active = int(columns["active_uj"][here].sum())
            tokens = int(columns["output_tokens"][here].sum())
            good = int((here & (columns["failed"] == 0)).sum())
            row |= {
                "own_uj": int(columns["own_uj"][here].sum()),
                "active_uj": active,
                "full_uj": int(columns["full_uj"][here].sum()),
                "half_width": _half_width(columns, here),
                "j_per_workflow": active / 1e6 / int(here.sum()),
                "j_per_output_token": active / 1e6 / tokens if tokens else None,
                "j_per_successful_workflow": active / 1e6 / good if good else None,
                "critical_path_uj": int(columns["critical_path_uj"][here].sum()),
                "edp_js": float(columns["edp_js"][here].mean()),
                "gco2e": float(columns["gco2e"][here].sum()) if "gco2e" in columns else None,
            }
        out[name] = row
    return out


def _half_width(columns: dict[str, Any], here: npt.NDArray[np.bool_]) -> float | None:
    """Median over workflows of half the interval per joule; None where none drew anything."""
    active, high = columns["active_uj"][here], columns["hi_uj"][here]
    some = active > 0
    return float(np.median((high - active)[some] / active[some])) if np.any(some) else None


def _quantiles(column: Any, here: npt.NDArray[np.bool_]) -> dict[str, float] | None:
    values = column.to_numpy(zero_copy_only=False).astype(float)[here]
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return {f"p{q}": float(np.quantile(values, q / 100)) / 1e6 for q in (50, 95)}
