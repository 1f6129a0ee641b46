"""Foreign recordings as runs: a folder of request timings and sensor samples becomes a run directory.

Layout (all but requests optional; what is missing is said): requests.jsonl[.gz], power.csv[.gz] (t0_ns, t1_ns,
energy_mj, instant_mw, average_mw, hbm_average_mw), ring20ms.csv[.gz] with sampler.json (anchors_monotonic_wall_ns),
steps.jsonl[.gz], phases.json. Reads of a stream are client stamps. May not know: attribution.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from traces.errors import UserError
from traces.records import PowerSample, RequestRecord, SensorInfo, StepRecord
from traces.rundir import RunDir
from traces.speculation import speculated

COUNTER = SensorInfo("nvml0.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000, limits="updates every 100 ms")
INSTANT = SensorInfo(
    "nvml0.power", "gpu", "gpu0", "gauge", "mW", 100_000_000, 1, limits="a 25 ms window of each 100 ms; shape only"
)
AVERAGE = SensorInfo("nvml0.average", "gpu", "gpu0", "gauge", "mW", 100_000_000, 1, limits="1 s average; never a phase")
HBM = SensorInfo(
    "nvml0.hbm", "hbm", "gpu0", "gauge", "mW", 100_000_000, 1, scope="memory", limits="1 s average of the memory scope"
)
RING = SensorInfo("nvml0.ring", "gpu", "gpu0", "gauge", "mW", 20_000_000, 1, limits="the driver's 20 ms samples")
_POWER = {
    "energy_mj": (COUNTER, 1000),
    "instant_mw": (INSTANT, 1),
    "average_mw": (AVERAGE, 1),
    "hbm_average_mw": (HBM, 1),
}


def import_run(source: Path, out: Path) -> dict[str, Any]:
    """Write a run directory from a recording. Returns counts and what was missing. UserError where requests lack."""
    requests = _find(source, "requests.jsonl")
    if requests is None:
        raise UserError(
            f"{source}: no requests.jsonl or requests.jsonl.gz; a recording needs at least the request timings"
        )
    run = RunDir.create(out)
    missing = [n for n in ("power.csv", "ring20ms.csv", "steps.jsonl", "phases.json") if _find(source, n) is None]
    done: dict[str, Any] = {"requests": _requests(run, requests)}
    phases = _find(source, "phases.json")
    done["phases"] = _phases(run, phases, requests) if phases else 0
    done |= _power(run, source)
    steps = _find(source, "steps.jsonl")
    done["steps"] = _steps(run, steps) if steps else 0
    run.write_info({"state": "complete", "source": f"imported from {source.name}", "missing": missing, **done})
    return {"run": str(out), "missing": missing, **done}


def _find(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines. A last line cut short is left out (a writer was killed); any other damage is an error."""
    with _open(path) as file:
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


def _whole(text: str) -> int:
    """A whole number, also where a tool wrote it as 12.0 or 1.2e6."""
    try:
        return int(text)
    except ValueError:
        return int(Decimal(text))


def _requests(run: RunDir, path: Path) -> int:
    writer = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    count = 0
    try:
        for number, row in enumerate(_rows(path), 1):
            try:
                writer.write(_request(row))
            except (KeyError, TypeError) as error:
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


def _request(row: dict[str, Any]) -> RequestRecord:
    """One foreign row. Latency metrics are in ms; time_to_first_token_ms counts from scheduling."""
    usage = row.get("usage") or {}
    metrics = row.get("metrics") or {}
    first, gaps = row.get("t_first_ns"), row.get("token_dt_us") or []
    ok = row.get("error") is None and row.get("status", 200) in (None, 200)
    times = np.cumsum([0, *gaps]) * 1000
    last = None if first is None or not gaps else min(int(first + times[-1]), int(row["t_end_ns"]))
    sent = int(row["t_send_ns"])
    completion = usage.get("completion_tokens", row.get("n_out"))
    drafted, accepted = speculated(metrics.get("speculative_decoding"))
    reads = () if first is None else (int(first) - sent, *(int(g) * 1000 for g in gaps))
    return RequestRecord(
        request_id=str(row["id"]),
        workflow_id=row.get("workflow"),
        node_id=row.get("node"),
        outcome="ok" if ok else "error",
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
        read_tokens=_spread(len(reads), completion),
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


def _power(run: RunDir, source: Path) -> dict[str, int]:
    power = _find(source, "power.csv")
    if power is None:
        return {"samples": 0, "ring": 0}
    writer = run.writer("power", "imported", mono_ns=0, wall_ns=0)
    try:
        done = {"samples": _samples(writer, power), "ring": 0}
        ring, sampler = _find(source, "ring20ms.csv"), _find(source, "sampler.json")
        if ring is not None and sampler is not None:
            done["ring"] = _ring(writer, ring, orjson.loads(sampler.read_bytes()))
    finally:
        writer.close()
    return done


def _samples(writer: Any, path: Path) -> int:
    count = 0
    with _open(path) as file:
        reader = csv.DictReader(file)
        there = set(reader.fieldnames or ())
        columns = [c for c in _POWER if c in there]
        if "t0_ns" not in there or not there & {"energy_mj", "instant_mw", "average_mw"}:
            raise UserError(
                f"{path}: needs t0_ns and one of energy_mj, instant_mw, average_mw in its head line, found"
                f" {', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for name in columns:
            writer.write(_POWER[name][0])
        for number, row in enumerate(reader, 2):
            try:
                t0 = _whole(row["t0_ns"])
                t1 = _whole(row["t1_ns"]) if row.get("t1_ns") else t0
                for name in columns:
                    info, factor = _POWER[name]
                    value = round(Decimal(row[name]) * factor) if row[name] else None
                    writer.write(PowerSample(info.source, t0, t1, value, None if value is not None else "empty"))
            except (ValueError, TypeError, InvalidOperation) as error:
                raise UserError(f"{path}: line {number}: not a number in {row}; fix or remove the line") from error
            count += 1
    return count


def _ring(writer: Any, path: Path, sampler: dict[str, Any]) -> int:
    """The driver's wall-stamped ring on the monotonic axis, through the anchors recorded beside it."""
    anchors = sampler.get("anchors_monotonic_wall_ns") or []
    if not anchors:
        return 0
    mono, wall = np.array(anchors, np.float64).T - np.array(anchors[0], np.float64)[:, None]
    writer.write(RING)
    count = 0
    with _open(path) as file:
        for row in csv.DictReader(file):
            t = int(np.interp(int(row["wall_us"]) * 1000 - anchors[0][1], wall, mono)) + anchors[0][0]
            writer.write(PowerSample(RING.source, t, t, int(row["power_mw"])))
            count += 1
    return count


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
                row.get("cached", 0), row.get("preempted") or 0,
            )  # fmt: skip
            said = asdict(record)
            if row.get("preempted") is None:
                del said["preempted"]  # not said is not none
            writer.write(said)
            count += 1
    finally:
        writer.close()
    return count
