"""Foreign recordings as runs: a folder of request timings and sensor samples becomes a run directory.

Layout (all but requests optional; what is missing is said): requests.jsonl[.gz], power.csv[.gz] (t0_ns, t1_ns,
energy_mj, instant_mw, average_mw, hbm_average_mw), ring20ms.csv[.gz] with sampler.json (anchors_monotonic_wall_ns),
steps.jsonl[.gz], phases.json, engines.json (which engine's requests which GPUs served). A column `gpu` in the CSV files
tells several GPUs apart. Reads of a stream are client stamps. May not know: attribution.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from energy.foreign_power import find, write_power
from energy.foreign_requests import end_of, record_of, rows_of, tokens_per_read
from energy.groups import groups_of
from traces.errors import UserError
from traces.records import StepRecord
from traces.rundir import RunDir

ENGINES = "engines.json"
COUNTS = ("num_ctx_requests", "num_ctx_tokens", "num_generation_requests", "num_generation_tokens")


def import_run(source: Path, out: Path) -> dict[str, Any]:
    """Write a run directory from a recording. Returns counts and what was missing. UserError where requests lack."""
    requests = find(source, "requests.jsonl")
    if requests is None:
        raise UserError(
            f"{source}: no requests.jsonl or requests.jsonl.gz; a recording needs at least the request timings"
        )
    run = RunDir.create(out)
    missing = [n for n in ("power.csv", "ring20ms.csv", "steps.jsonl", "phases.json") if find(source, n) is None]
    done: dict[str, Any] = {"requests": _requests(run, requests)}
    phases = find(source, "phases.json")
    done["phases"] = _phases(run, phases, requests) if phases else 0
    done |= write_power(run, source)
    steps = find(source, "steps.jsonl")
    done["steps"] = _steps(run, steps) if steps else 0
    about: dict[str, Any] = {"state": "complete", "source": f"imported from {source.name}", "missing": missing, **done}
    if (source / ENGINES).is_file():
        about["engines"] = _engines(source / ENGINES)
    run.write_info(about)
    return {"run": str(out), "missing": missing, **done}


def _engines(path: Path) -> list[dict[str, Any]]:
    """`engines` as run.json has them, checked."""
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); fix or remove the file") from error
    said = document.get("engines") if isinstance(document, dict) else document
    if not groups_of(said, str(path)) or said is None:
        raise UserError(f"{path}: names no engine; docs/attribution.md has its layout")
    return list(said)


def _requests(run: RunDir, path: Path) -> int:
    each = tokens_per_read(path)
    writer = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    count = 0
    try:
        for number, row in enumerate(rows_of(path), 1):
            try:
                writer.write(record_of(row, each))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}: line {number}: field {error} is missing or of the wrong type;"
                    " docs/attribution.md has the layout"
                ) from error
            count += 1
    finally:
        writer.close()
    if not count:
        raise UserError(f"{path}: no request in it; a recording needs at least one")
    return count


def _phases(run: RunDir, path: Path, requests: Path) -> int:
    """Phases as they are, with the end of each: the start of the next, or the last answer."""
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); fix or remove the file") from error
    phases = document.get("phases") if isinstance(document, dict) else document
    if not isinstance(phases, list) or not all(isinstance(p, dict) and isinstance(p.get("t_ns"), int) for p in phases):
        raise UserError(f"{path}: needs a list `phases` of objects with `phase` and `t_ns` (whole ns)")
    phases.sort(key=lambda p: int(p["t_ns"]))
    last = max(end_of(r) for r in rows_of(requests))
    for this, following in zip(phases, [*phases[1:], None], strict=True):
        this["end_ns"] = following["t_ns"] if following else max(last, this["t_ns"])
    run.write_json("phases.json", {"phases": phases})
    return len(phases)


def _steps(run: RunDir, path: Path) -> int:
    """The iteration stream of a stat-logger plugin (num_ctx_*, num_generation_*)."""
    writer = run.writer("engine", None, mono_ns=0, wall_ns=0)
    count = 0
    try:
        for number, row in enumerate(rows_of(path), 1):
            it = row.get("it") or row
            if "num_ctx_tokens" not in it:
                continue
            try:
                requests, tokens, decodes, made = (int(it[name]) for name in COUNTS)
                record = StepRecord(
                    round(row["t_ns"]), row.get("run", 0), row.get("wait", 0), row.get("kv", 0.0), requests, tokens,
                    decodes, made, row.get("prompt", 0), row.get("cached", 0), row.get("preempted") or 0,
                    row.get("engine") or 0,
                )  # fmt: skip
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}: line {number}: field {error} is missing or of the wrong type; a step needs t_ns,"
                    f" {', '.join(COUNTS)}"
                ) from error
            said = asdict(record)
            if row.get("preempted") is None:
                del said["preempted"]  # not said is not none
            writer.write(said)
            count += 1
    finally:
        writer.close()
    return count
