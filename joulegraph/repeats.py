"""Repeated runs as one result: mean and 95 % interval (Student's t) of every figure, in OUT/repeat.json.

May not know: how a run is made. Runs are OUT/1, OUT/2 ...; only complete ones count, the others are named.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson

from loadgen.summary import repeat_intervals
from traces.errors import UserError

SUMMED = ("attributed_uj", "idle_uj", "tail_uj", "measured_uj", "requests", "errors", "rejected", "workflows")
SHOWN = (  # name, path into the intervals, divided by, unit
    ("TTFT p50 from due", ("figures", "all", "ttft_ms", "due", "p50"), 1.0, "ms"),
    ("TTFT p99 from due", ("figures", "all", "ttft_ms", "due", "p99"), 1.0, "ms"),
    ("E2E p50 from due", ("figures", "all", "e2e_ms", "due", "p50"), 1.0, "ms"),
    ("TPOT p50", ("figures", "all", "tpot_ms", "p50"), 1.0, "ms"),
    ("makespan p50", ("figures", "all", "workflows", "makespan_ms", "p50"), 1e3, "s"),
    ("output tokens", ("figures", "all", "throughput", "tokens_per_s_whole"), 1.0, "/s"),
    ("good requests", ("figures", "all", "goodput", "requests_per_s"), 1.0, "/s"),
    ("good workflows", ("figures", "all", "goodput", "workflows_per_s"), 1.0, "/s"),
    ("attributed", ("summary", "attributed_uj"), 1e6, "J"),
    ("per output token", ("figures", "joules", "per_output_token"), 1.0, "J"),
    ("per workflow", ("figures", "joules", "per_workflow"), 1.0, "J"),
    ("per good workflow", ("figures", "joules", "per_good_workflow"), 1.0, "J"),
)


def write_repeats(out: Path) -> dict[str, Any]:
    """Read the runs under `out`, write out/repeat.json, give back what it says. UserError when no run is complete."""
    runs = sorted((p for p in out.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    kept: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    no_figures: dict[str, str] = {}
    for path in runs:
        summary = _json(path / "summary.json")
        if summary.get("state") != "complete":
            left_out[path.name] = f"{summary.get('state', 'unfinished')}: {summary.get('why') or 'no summary'}"
            continue
        found = _json(path / "figures.json")
        if "why" in found:  # warm-up and cool-down left nothing
            no_figures[path.name] = found["why"]
        figures = {k: v for k, v in found.items() if k in ("all", "classes", "joules")}
        kept.append({"summary": {k: summary.get(k) for k in SUMMED}, "figures": figures})
    if not kept:
        raise UserError(f"{out}: none of {len(runs)} runs is complete: {left_out}; nothing to average")
    said = {
        "runs": len(runs),
        "averaged": len(kept),
        "left_out": left_out,
        "no_figures": no_figures,
        "intervals": repeat_intervals(kept),
    }
    (out / "repeat.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))
    return {"out": str(out), **said}


def show_repeats(said: dict[str, Any], *, as_json: bool) -> None:
    """One JSON line on stdout, or the figures that matter on stderr."""
    if as_json:
        sys.stdout.write(orjson.dumps(said).decode() + "\n")
        return
    sys.stderr.write(f"{said['averaged']} of {said['runs']} runs, mean and 95 % interval:\n")
    for name, path, scale, unit in SHOWN:
        found = _at(said["intervals"], path)
        if found is not None:
            sys.stderr.write(f"  {name:20} {_interval(found, scale)} {unit}\n")
    for name, why in said["left_out"].items():
        sys.stderr.write(f"  run {name} left out: {why}\n")
    for name, why in said["no_figures"].items():
        sys.stderr.write(f"  run {name} has joules alone: {why}\n")
    sys.stderr.write(f"all of them: {Path(said['out']) / 'repeat.json'}\n")


def _interval(found: dict[str, Any], scale: float) -> str:
    mean = f"{found['mean'] / scale:,.4g}"
    if found["low"] is None:
        return f"{mean} (one run: no interval)"
    return f"{mean} [{found['low'] / scale:,.4g}, {found['high'] / scale:,.4g}]"


def _at(value: Any, path: tuple[str, ...]) -> dict[str, Any] | None:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) and "mean" in value else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
