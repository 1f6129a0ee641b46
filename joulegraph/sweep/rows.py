"""A run directory as tidy rows: one per workflow class and one for all, every figure with its unit in its name.

Both throughput denominators are here side by side and never mixed: output tokens over the time in which some workflow
was in flight, and over the time in which some request was generating. Missing is None. May not know: other runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from joulegraph.sweep.stats import covered_ns

ALL = "all"
COMPONENTS = ("gpu", "hbm", "cpu", "dram")
FIGURES = (
    "workflows", "requests", "failed", "input_tokens_mean", "output_tokens_mean", "makespan_s_mean", "makespan_s_p50",
    "makespan_s_p95", "ttft_s_p50", "ttft_s_p95", "e2e_s_p50", "e2e_s_p95", "tpot_s_mean", "queue_s_mean",
    "tokens_per_s_in_flight", "tokens_per_s_generating", "active_j", "active_lo_j", "active_hi_j", "full_j",
    "gpu_j", "hbm_j", "cpu_j", "dram_j", "j_per_output_token", "j_per_request", "j_per_workflow", "edp_js_mean",
    "cached_share", "gpu_measured_j", "gpu_idle_j", "gpu_tail_j", "gpu_foreign_j", "gpu_unmeasured_j",
    "kv_usage_mean", "kv_usage_max", "preemptions", "batch_mean", "batch_max", "tasks_peak", "latency_cap",
    "truth_error_median",
)  # fmt: skip
"""every figure a row may hold; hbm is inside gpu, never added to it"""


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Figures of a finished run, by class and for all."""
    summary = orjson.loads((run / "summary.json").read_bytes())
    workflows = _table(run, "workflows")
    dispatch = _table(run, "dispatch")
    sent = _sent(dispatch)
    out = []
    for name in [ALL, *sorted(set(workflows["class"].tolist()))]:
        some = np.ones(len(workflows["class"]), bool) if name == ALL else workflows["class"] == name
        mine = sent if name == ALL else sent & (dispatch["class_name"] == name)
        row = {"class": name, **_latency(dispatch, mine), **_workflows(workflows, some)}
        if np.isnan(_floats(dispatch["cached_tokens"][mine])).all():
            row["cached_share"] = None  # nobody told (a Parrot does not)
        row |= _throughput(dispatch, mine, workflows, some)
        if name == ALL:
            row |= _whole(summary) | _residency(run) | _serve_layer(run)
        out.append({key: row.get(key) for key in ("class", *FIGURES)} | {"level": summary.get("level")})
    return out


def _table(run: Path, name: str) -> dict[str, Any]:
    table = pq.read_table(run / f"{name}.parquet")
    return {c: table[c].to_numpy(zero_copy_only=False) for c in table.column_names if c not in _NESTED}


_NESTED = ("deps", "read_dt_ns", "read_tokens")


def _sent(dispatch: dict[str, Any]) -> Any:
    return (dispatch["kind"] == "llm") & ~np.isin(dispatch["outcome"], ["skipped"])


def _floats(values: Any) -> Any:
    return np.array([np.nan if v is None else v for v in values], float)


def _stat(values: Any, what: str) -> float | None:
    good = values[~np.isnan(values)]
    if not len(good):
        return None
    return float(good.mean() if what == "mean" else np.quantile(good, {"p50": 0.5, "p95": 0.95}[what]))


def _latency(dispatch: dict[str, Any], mine: Any) -> dict[str, Any]:
    """Seconds from due, so that a wait before sending counts."""
    ok = mine & (dispatch["outcome"] == "ok")
    due, first, last, end, out, queue = (
        _floats(dispatch[name][ok])
        for name in (
            "due_ns",
            "t_first_token_ns",
            "t_last_token_ns",
            "t_end_ns",
            "completion_tokens",
            "engine_queue_ns",
        )
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(out > 1, (last - first) / 1e9 / (out - 1), np.nan)
    ttft, e2e = (first - due) / 1e9, (end - due) / 1e9
    return {
        "requests": int(mine.sum()),
        "failed": int(mine.sum() - ok.sum()),
        "input_tokens_mean": _stat(_floats(dispatch["prompt_tokens"][ok]), "mean"),
        "output_tokens_mean": _stat(out, "mean"),
        "ttft_s_p50": _stat(ttft, "p50"),
        "ttft_s_p95": _stat(ttft, "p95"),
        "e2e_s_p50": _stat(e2e, "p50"),
        "e2e_s_p95": _stat(e2e, "p95"),
        "tpot_s_mean": _stat(tpot, "mean"),
        "queue_s_mean": _stat(queue / 1e9, "mean"),
    }


def _workflows(table: dict[str, Any], some: Any) -> dict[str, Any]:
    makespan = _floats(table["makespan_ns"][some]) / 1e9
    out: dict[str, Any] = {"workflows": int(some.sum())}
    out |= {f"makespan_s_{what}": _stat(makespan, what) for what in ("mean", "p50", "p95")}
    prompt, cached, made, requests = (
        _sum(table, name, some) for name in ("prompt_tokens", "cached_tokens", "output_tokens", "requests")
    )
    out["cached_share"] = cached / prompt if prompt and cached is not None else None
    for name in COMPONENTS:
        joules = _sum(table, f"{name}_active_uj", some)
        out[f"{name}_j"] = None if joules is None else joules / 1e6
    for name, column in (("active_j", "active_uj"), ("active_lo_j", "lo_uj"), ("active_hi_j", "hi_uj"),
                         ("full_j", "full_uj")):  # fmt: skip
        joules = _sum(table, column, some)
        out[name] = None if joules is None else joules / 1e6
    active = out["active_j"]
    for name, count in (("token", made), ("request", requests), ("workflow", float(some.sum()))):
        key = "j_per_output_token" if name == "token" else f"j_per_{name}"
        out[key] = active / count if active is not None and count else None
    out["edp_js_mean"] = _stat(_floats(table["edp_js"][some]), "mean") if "edp_js" in table else None
    return out


def _sum(table: dict[str, Any], name: str, some: Any) -> float | None:
    if name not in table:
        return None
    values = _floats(table[name][some])
    return None if np.isnan(values).all() else float(np.nansum(values))


def _throughput(dispatch: dict[str, Any], mine: Any, workflows: dict[str, Any], some: Any) -> dict[str, Any]:
    ok = mine & (dispatch["outcome"] == "ok")
    first, last = _floats(dispatch["t_first_token_ns"][ok]), _floats(dispatch["t_last_token_ns"][ok])
    known = ~np.isnan(first) & ~np.isnan(last)
    tokens = float(np.nansum(_floats(dispatch["completion_tokens"][ok]))) if ok.any() else 0.0
    start, end = _floats(workflows["t_start_ns"][some]), _floats(workflows["t_end_ns"][some])
    whole = ~np.isnan(start) & ~np.isnan(end)
    flight_ns = covered_ns(start[whole].tolist(), end[whole].tolist())
    making_ns = covered_ns(first[known].tolist(), last[known].tolist())
    return {
        "tokens_per_s_in_flight": tokens * 1e9 / flight_ns if tokens and flight_ns else None,
        "tokens_per_s_generating": tokens * 1e9 / making_ns if tokens and making_ns else None,
    }


def _whole(summary: dict[str, Any]) -> dict[str, Any]:
    """Books of the GPU (the counter's own joules) for the whole run, idle before and after included."""
    gpu = (summary.get("components") or {}).get("gpu") or {}
    out: dict[str, Any] = {
        f"gpu_{name}_j": None if gpu.get(f"{name}_uj") is None else gpu[f"{name}_uj"] / 1e6
        for name in ("measured", "idle", "tail", "foreign", "unmeasured")
    }
    out["truth_error_median"] = (summary.get("truth_error") or {}).get("median")
    return out


def _serve_layer(run: Path) -> dict[str, Any]:
    """Of a Parrot: most calls an engine held, and the cap that a latency call puts on it."""
    info = orjson.loads((run / "run.json").read_bytes()).get("parrot") or {}
    return {name: info.get(name) for name in ("tasks_peak", "latency_cap")}


def _residency(run: Path) -> dict[str, Any]:
    """KV use, preemptions and batch from the engine's own stream, so that residency is told apart from batching."""
    if not (run / "steps.parquet").is_file():
        return {}
    steps = _table(run, "steps")
    busy = _floats(steps["running"]) > 0
    if not busy.any():
        return {}
    t = _floats(steps["t_ns"])
    held = np.clip(np.diff(t, prepend=t[0]), 0, None) * busy
    weight = held if held.sum() > 0 else busy.astype(float)
    kv, running = _floats(steps["kv_usage"]), _floats(steps["running"])
    return {
        "kv_usage_mean": float((kv * weight).sum() / weight.sum()),
        "kv_usage_max": float(kv.max()),
        "preemptions": int(np.nansum(_floats(steps["preempted"]))),
        "batch_mean": float((running * weight).sum() / weight.sum()),
        "batch_max": int(running.max()),
        **_prefix_hits(steps),
    }


def _prefix_hits(steps: dict[str, Any]) -> dict[str, float]:
    """Share of the prompt tokens found in the prefix cache, as the engine counts it."""
    prompt, cached = (float(np.nansum(_floats(steps[name]))) for name in ("prompt_tokens", "cached_tokens"))
    return {"cached_share": cached / prompt} if prompt else {}
