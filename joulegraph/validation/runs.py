"""One synthetic run: a mix on an engine of truth, seen as a proxy, an engine's metrics and its iteration stream see it.

The engine's core is driven without HTTP; token stamps get the jitter of a network and a proxy, steps the delay of a
frontend. Result: tables for the estimator and, apart from them, the truth. May not know: how the estimator works.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energy.tables import Floats, RunData, Series, StepTable, request_table
from engines.embedded import drive
from engines.embedded.core import EngineCore
from engines.embedded.profiles import Profile
from engines.embedded.sensors import Mode, SimulatedSensors
from joulegraph.validation.mixes import Mix
from traces.records import SensorInfo

LEAD_NS = 6_000_000_000
TAIL_NS = 4_000_000_000
JITTER_S = 0.0005
"""scale of the delay between a step's end and the proxy's stamp of its tokens"""


@dataclass(frozen=True, slots=True)
class Synthetic:
    """data: all levels' tables (steps included). truth: active uJ of the GPU per request row (n, 2) by phase."""

    mix: str
    data: RunData
    truth: Floats


def synthesise(
    mix: Mix, profile: Profile, seed: int, *, mode: Mode = "counter", lag_ns: int | None = None
) -> Synthetic:
    """Drive the mix and read the sensors every 20 ms (the GPU counter alone, to save time)."""
    core = EngineCore(profile, mix.limits)
    sensors = SimulatedSensors(profile, seed, mode=mode, lag_ns=lag_ns)
    keep = sensors.names.index("sim.gpu0.energy")
    _only(sensors, keep)
    result = drive.run(
        core,
        [(p.t_ns, p.request) for p in mix.plan],
        sensors=sensors,
        poll_ns=20_000_000,
        lead_ns=LEAD_NS,
        tail_ns=TAIL_NS,
    )
    rng = np.random.default_rng([seed, 21])
    rows, truth = [], []
    for planned in mix.plan:
        served = result.served.get(planned.request.request_id)
        if served is None:
            continue
        rows.append(_row(planned.request.request_id, planned.workflow, planned.class_name, served, rng))
        gpu = next(t for t in served.truth if t.component == "gpu")
        truth.append((gpu.prefill_uj, gpu.decode_uj))
    spec = sensors.specs[0]
    info = SensorInfo(spec.name, "gpu", "gpu0", "counter", "uJ", spec.period_ns, spec.resolution, simulated=True)
    shown = result.sensors[spec.name]
    series = {spec.name: Series(info, shown.t_ns, shown.t_ns, shown.values)}
    data = RunData(request_table(rows), _steps(result.steps, rng), series, [])
    return Synthetic(mix.name, data, np.array(truth, float))


def _only(sensors: SimulatedSensors, keep: int) -> None:
    sensors.specs, sensors._states = [sensors.specs[keep]], [sensors._states[keep]]
    sensors.names = [sensors.names[keep]]


def _row(name: str, workflow: str, class_name: str, served: drive.Served, rng: np.random.Generator) -> dict[str, Any]:
    stats = served.stats
    delay = rng.exponential(JITTER_S, len(served.token_ns)) * 1e9
    seen = np.maximum.accumulate(served.token_ns + delay.astype(np.int64) + 200_000)
    arrival, scheduled, first = stats.t_arrival_ns, stats.t_scheduled_ns, stats.t_first_token_ns
    told = first is not None and scheduled is not None
    return {
        "id": name,
        "workflow": workflow,
        "class": class_name,
        "sent_ns": arrival - 300_000,
        "due_ns": arrival - 300_000,
        "first_ns": int(seen[0]) if len(seen) else None,
        "last_ns": int(seen[-1]) if len(seen) else None,
        "end_ns": (int(seen[-1]) if len(seen) else arrival) + 200_000,
        "prompt": stats.prompt_tokens,
        "cached": stats.cached_tokens,
        "completion": stats.output_tokens,
        "drafted": stats.draft_tokens,
        "accepted": stats.accepted_tokens,
        "queue_ns": scheduled - arrival if scheduled is not None else None,
        "prefill_ns": first - scheduled if told and first is not None and scheduled is not None else None,
        "decode_ns": stats.t_last_token_ns - first if first is not None and stats.t_last_token_ns is not None else None,
        "reads": list(zip(seen.tolist(), [1] * len(seen), strict=True)),
    }


def _steps(steps: list[Any], rng: np.random.Generator) -> StepTable:
    stamps = np.array([s.t_ns for s in steps], np.int64) + (rng.exponential(JITTER_S, len(steps)) * 1e9).astype(
        np.int64
    )

    def column(name: str) -> Any:
        return np.array([getattr(s, name) for s in steps], np.int64)

    names = ("num_ctx_requests", "num_ctx_tokens", "num_generation_requests", "num_generation_tokens")
    rest = ("running", "preempted", "engine")
    return StepTable(np.maximum.accumulate(stamps), *(column(n) for n in (*names, *rest)))


def at_level(data: RunData, level: str) -> RunData:
    """What a level sees: L1 and L2 without the stream, L1 without engine metrics."""
    if level == "L3":
        return data
    none = np.full(len(data.requests), np.iinfo(np.int64).min)
    requests = data.requests
    if level == "L1":
        requests = replace(requests, queue_ns=none, prefill_ns=none, decode_ns=none)
    return replace(data, requests=requests, steps=None)
