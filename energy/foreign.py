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

from energy.foreign_power import write_power
from energy.foreign_requests import record_of, rows_of, tokens_per_read
from energy.foreign_rows import COUNTS, ITERATION, REQUEST, STEP, checked
from energy.foreign_text import find, json_of
from energy.groups import groups_of
from energy.phases import load_phases
from energy.read_tokens import GUESSED
from traces.errors import UserError
from traces.records import StepRecord
from traces.rundir import RunDir

ENGINES = "engines.json"


def import_run(source: Path, out: Path) -> dict[str, Any]:
    """Write a run directory from a recording. Returns counts and what was missing. UserError where requests lack."""
    requests = find(source, "requests.jsonl")
    if requests is None:
        raise UserError(
            f"{source}: no requests.jsonl or requests.jsonl.gz; a recording needs at least the request timings"
        )
    run = RunDir.create(out)
    missing = [n for n in ("power.csv", "ring20ms.csv", "steps.jsonl", "phases.json") if find(source, n) is None]
    count, repeated, last_ns = _requests(run, requests)
    done: dict[str, Any] = {"requests": count, **({"repeated": repeated} if repeated else {})}
    phases = find(source, "phases.json")
    done["phases"] = _phases(run, phases, last_ns) if phases else 0
    done |= write_power(run, source)
    steps = find(source, "steps.jsonl")
    done["steps"] = _steps(run, steps) if steps else 0
    about: dict[str, Any] = {
        "state": "complete", "source": f"imported from {source.name}", "missing": missing,
        "read_tokens": GUESSED, **done,
    }  # fmt: skip
    if (source / ENGINES).is_file():
        about["engines"] = _engines(source / ENGINES)
    run.write_info(about)
    return {"run": str(out), "missing": missing, **done}


def _engines(path: Path) -> list[dict[str, Any]]:
    """`engines` as run.json has them, checked."""
    document = json_of(path)
    said = document.get("engines") if isinstance(document, dict) else document
    if not groups_of(said, str(path)) or said is None:
        raise UserError(f"{path}: names no engine; docs/attribution.md has its layout")
    return list(said)


def _requests(run: RunDir, path: Path) -> tuple[int, int, int]:
    """(requests written, rows left out: the same request once more, by id and times; end of the last, ns)."""
    each = tokens_per_read(path)
    writer = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    seen: set[tuple[str, int, int]] = set()
    number = last_ns = 0
    try:
        for number, raw in enumerate(rows_of(path), 1):
            record = record_of(checked(raw, REQUEST, f"{path}: line {number}"), each)
            end_ns = record.t_end_ns or 0
            key, last_ns = (record.request_id, record.t_arrival_ns, end_ns), max(last_ns, end_ns)
            if key not in seen:
                writer.write(record)
            seen.add(key)
    finally:
        writer.close()
    if not seen:
        raise UserError(f"{path}: no request in it; a recording needs at least one")
    return len(seen), number - len(seen), last_ns


def _phases(run: RunDir, path: Path, last_ns: int) -> int:
    """Phases as they are, with the end of each: what it says, the start of the next, or the last answer."""
    phases = load_phases(path)
    run.write_json(
        "phases.json",
        {"phases": [{**p, "end_ns": max(last_ns, p["t_ns"]) if p["end_ns"] is None else p["end_ns"]} for p in phases]},
    )
    return len(phases)


def _steps(run: RunDir, path: Path) -> int:
    """The iteration stream of a stat-logger plugin (num_ctx_*, num_generation_*)."""
    writer = run.writer("engine", None, mono_ns=0, wall_ns=0)
    count = 0
    try:
        for number, raw in enumerate(rows_of(path), 1):
            where = f"{path}: line {number}"
            inside = raw if raw.get("it") is None else raw["it"]
            if not isinstance(inside, dict) or not any(name in inside for name in COUNTS):
                continue
            row, it = checked(raw, STEP, where), checked(inside, ITERATION, where)
            record = StepRecord(
                row["t_ns"], row.get("run") or 0, row.get("wait") or 0, row.get("kv") or 0.0, it["num_ctx_requests"],
                it["num_ctx_tokens"], it["num_generation_requests"], it["num_generation_tokens"],
                row.get("prompt") or 0, row.get("cached") or 0, row.get("preempted") or 0, row.get("engine") or 0,
            )  # fmt: skip
            said = asdict(record)
            if row.get("preempted") is None:
                del said["preempted"]  # not said is not none
            writer.write(said)
            count += 1
    finally:
        writer.close()
    return count
