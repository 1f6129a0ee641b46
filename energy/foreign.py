"""Foreign recordings as runs: a folder of request timings and sensor samples becomes a run directory.

Layout (all but requests optional; what is missing is said): requests.jsonl[.gz], power.csv[.gz] (t0_ns, t1_ns,
energy_mj, instant_mw, average_mw, hbm_average_mw), ring20ms.csv[.gz] with sampler.json (anchors_monotonic_wall_ns),
steps.jsonl[.gz], phases.json, engines.json (which engine's requests which GPUs served). A column `gpu` in the CSV files
tells several GPUs apart. Reads of a stream are client stamps. May not know: attribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from energy.foreign_power import find, opened, write_power
from energy.groups import groups_of
from traces.errors import UserError
from traces.records import Outcome, RequestRecord, StepRecord
from traces.rundir import RunDir
from traces.speculation import speculated

ENGINES = "engines.json"
FEWEST_READS = 8
"""of a stream that says how many tokens a read holds"""
REFUSED = (*range(400, 500), 503)
"""statuses with which a request was turned away before any work"""


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


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines. A last line cut short is left out (a writer was killed); any other damage is an error."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if not line.endswith("\n"):
                    return
                raise UserError(f"{path}: line {number}: not JSON ({error}); fix or remove the line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number}: not an object; docs/attribution.md has the layout")
            yield row


def _requests(run: RunDir, path: Path) -> int:
    each = _tokens_per_read(path)
    writer = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    count = 0
    try:
        for number, row in enumerate(_rows(path), 1):
            try:
                writer.write(_request(row, each))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
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


def _tokens_per_read(path: Path) -> float:
    """Tokens in a read after the first, the median of finished streams that say both; 1 where none does."""
    found = []
    for row in _rows(path):
        gaps, usage = row.get("token_dt_us"), row.get("usage")
        said = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if row.get("error") is None and isinstance(gaps, list) and isinstance(said, int) and len(gaps) >= FEWEST_READS:
            found.append((said - 1) / len(gaps))
    return max(float(np.median(found)), 1.0) if found else 1.0


def _outcome(row: dict[str, Any], first: int | None) -> Outcome:
    """A status that says no, and no token: the engine did nothing for it."""
    status = row.get("status")
    if first is None and isinstance(status, int) and status in REFUSED:
        return "rejected"
    return "ok" if row.get("error") is None and row.get("status", 200) in (None, 200) else "error"


def _request(row: dict[str, Any], each: float) -> RequestRecord:
    """One foreign row. Latency metrics are in ms; time_to_first_token_ms counts from scheduling. `n_out` is what was
    asked for: it stands for what was given only where the request ended well. Else its reads say, `each` tokens in
    one."""
    usage = row.get("usage") or {}
    metrics = row.get("metrics") or {}
    first, gaps = row.get("t_first_ns"), row.get("token_dt_us") or []
    outcome = _outcome(row, first)
    times = np.cumsum([0, *gaps]) * 1000
    last = None if first is None or not gaps else min(int(first + times[-1]), int(row["t_end_ns"]))
    sent = int(row["t_send_ns"])
    completion = usage.get("completion_tokens", row.get("n_out") if outcome == "ok" else None)
    seen = completion if completion is not None else 1 + round(each * len(gaps))
    drafted, accepted = speculated(metrics.get("speculative_decoding"))
    reads = () if first is None else (int(first) - sent, *(int(g) * 1000 for g in gaps))
    return RequestRecord(
        request_id=str(row["id"]),
        workflow_id=row.get("workflow"),
        node_id=row.get("node"),
        outcome=outcome,
        t_arrival_ns=sent,
        t_end_ns=int(row["t_end_ns"]),
        agent_id=row.get("agent"),
        class_name=row.get("kind") or row.get("phase"),
        deps=tuple({"on": d} if isinstance(d, str) else d for d in row.get("deps") or ()),
        t_upstream_ns=sent,
        t_first_token_ns=first,
        t_last_token_ns=last,
        status=row.get("status"),
        error=row.get("error"),
        upstream=row.get("engine"),
        stream=True,
        prompt_tokens=usage.get("prompt_tokens", row.get("n_in")),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        completion_tokens=completion,
        engine_queue_ns=_ms(metrics.get("queue_time_ms")),
        engine_prefill_ns=_ms(metrics.get("time_to_first_token_ms")),
        engine_decode_ns=_ms(metrics.get("generation_time_ms")),
        draft_tokens=drafted,
        accepted_tokens=accepted,
        read_dt_ns=reads,
        read_tokens=_spread(len(reads), seen),
    )


def _ms(value: float | None) -> int | None:
    return None if value is None else round(value * 1e6)


def _spread(reads: int, tokens: int | None) -> tuple[int, ...]:
    """Tokens per read: one, with the rest (chunks that carried several) laid evenly over the later reads."""
    if not reads:
        return ()
    extra = max(0, (tokens or reads) - reads)
    marks = np.floor(np.linspace(0, extra, reads)).astype(int) if reads > 1 else np.array([extra])
    return tuple(int(1 + x) for x in np.diff(marks, prepend=0))


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
    last = max(int(r["t_end_ns"]) for r in _rows(requests))
    for this, following in zip(phases, [*phases[1:], None], strict=True):
        this["end_ns"] = following["t_ns"] if following else max(last, this["t_ns"])
    run.write_json("phases.json", {"phases": phases})
    return len(phases)


def _steps(run: RunDir, path: Path) -> int:
    """The iteration stream of a stat-logger plugin (num_ctx_*, num_generation_*)."""
    writer = run.writer("engine", None, mono_ns=0, wall_ns=0)
    count = 0
    try:
        for row in _rows(path):
            it = row.get("it") or row
            if "num_ctx_tokens" not in it:
                continue
            record = StepRecord(
                int(row["t_ns"]), row.get("run", 0), row.get("wait", 0), row.get("kv", 0.0), it["num_ctx_requests"],
                it["num_ctx_tokens"], it["num_generation_requests"], it["num_generation_tokens"], row.get("prompt", 0),
                row.get("cached", 0), row.get("preempted") or 0, row.get("engine") or 0,
            )  # fmt: skip
            said = asdict(record)
            if row.get("preempted") is None:
                del said["preempted"]  # not said is not none
            writer.write(said)
            count += 1
    finally:
        writer.close()
    return count
