"""The folder that a foreign tool would have left of a served run: requests.jsonl, steps.jsonl, power.csv, phases.json.

Stamps are a client's: a frontend handles the tokens of a step one after another, delivers several at once where a seed
says so, and a network adds jitter; the engine's log is stamped when the frontend sees it. `truth` is apart from the
folder. May not know: the estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from joulegraph.validation.roofline.boards import F64, Chip, chip
from joulegraph.validation.roofline.meter import Power, Readings, power_of, read
from joulegraph.validation.roofline.serving import Asked, Run, Served, Serving, serve

EPOCH_S = 1000.0
"""where the run's zero lies on the monotonic axis"""


@dataclass(frozen=True, slots=True)
class Frontend:
    """Delays between a step's end and the client's stamp (s), tokens per delivery, share of deliveries that catch the
    next one up."""

    base_s: float
    each_s: float
    jitter_s: float
    interval: int
    joined: float


@dataclass(frozen=True, slots=True)
class Truth:
    """Joules of each request by phase (n, 2), as the sensor's gain shows them, in the order of ids."""

    ids: list[str]
    joules: F64
    gain: float


def frontend(seed: int) -> Frontend:
    """Base 0.3-4 ms, 10-60 us per token in a step, jitter 0.2-8 ms, deliveries of 1, 1, 1, 4 or 8 tokens."""
    rng = np.random.default_rng([seed, 74])
    return Frontend(
        float(rng.uniform(0.3e-3, 4e-3)), float(rng.uniform(10e-6, 60e-6)), float(np.exp(rng.uniform(-8.5, -4.8))),
        int(rng.choice([1, 1, 1, 4, 8])), float(rng.uniform(0, 0.2)),
    )  # fmt: skip


def record(
    folder: Path, asked: list[Asked], serving: Serving, seed: int, board: Chip | None = None, kind: str = "counter"
) -> Truth:
    """Serve the requests on a board (None: the seed's H100), write what a sensor of that kind and a client saw of it.
    Returns the truth."""
    board = board or chip(seed)
    served = serve(board, serving, asked, seed)
    power = power_of(board, served)
    each = Power(power.t, power.joules / board.gpus)
    shown = [read(each, seed, kind=kind, gpu=k) for k in range(board.gpus)]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 75])
    rows = [_request(r, served, frontend(seed), rng) for r in served.runs]
    _lines(folder / "requests.jsonl", sorted(rows, key=lambda r: int(r["t_end_ns"])))
    _lines(folder / "steps.jsonl", _steps(served, frontend(seed), rng))
    _power(folder / "power.csv", shown, kind)
    phases = [{"phase": "idle", "t_ns": _ns(-5.0)}, {"phase": "mix", "t_ns": _ns(0.0)}]
    (folder / "phases.json").write_bytes(orjson.dumps({"phases": phases}))
    gain = float(np.mean([s.gain for s in shown]))
    joules = np.array([(r.prefill_j, r.decode_j) for r in served.runs])
    return Truth([r.asked.name for r in served.runs], gain * joules, gain)


def _ns(t_s: float) -> int:
    return round((t_s + EPOCH_S) * 1e9)


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))


def _request(run: Run, served: Served, front: Frontend, rng: np.random.Generator) -> dict[str, Any]:
    asked = run.asked
    seen = _seen(np.array(run.token_s), front, rng)
    left = asked.leaves_s is not None and len(run.token_s) < asked.output
    ended = asked.leaves_s if left and asked.leaves_s is not None else (seen[-1] if len(seen) else run.ended_s or 0.0)
    seen = seen[seen <= ended] if left else seen
    first = run.token_s[0] if run.token_s else None
    row: dict[str, Any] = {
        "id": asked.name, "workflow": asked.workflow, "kind": asked.kind, "phase": "mix", "deps": list(asked.deps),
        "n_in": asked.prompt, "n_out": asked.output, "t_send_ns": _ns(run.arrived_s - 0.001),
        "t_first_ns": _ns(float(seen[0])) if len(seen) else None, "t_end_ns": _ns(ended + 0.0002),
        "token_dt_us": np.rint(np.diff(seen) * 1e6).astype(int).tolist(),
        "usage": None, "metrics": None, "error": "client left" if left else None,
    }  # fmt: skip
    if not left:
        total = asked.prompt + run.made
        details = {"cached_tokens": run.cached}
        row["usage"] = {
            "prompt_tokens": asked.prompt, "completion_tokens": run.made, "total_tokens": total,
            "prompt_tokens_details": details,
        }  # fmt: skip
    if not left and first is not None and run.scheduled_s is not None:
        row["metrics"] = {
            "queue_time_ms": 1e3 * (run.scheduled_s - run.arrived_s),
            "time_to_first_token_ms": 1e3 * (first - run.scheduled_s),
            "generation_time_ms": 1e3 * (run.token_s[-1] - first),
        }
    return row


def _seen(token_s: F64, front: Frontend, rng: np.random.Generator) -> F64:
    """Client stamps of deliveries: the first token alone, then every `interval`, some late enough to join the next."""
    n = len(token_s)
    if not n:
        return token_s
    late = front.base_s + front.each_s * rng.uniform(0, 40, n) + rng.exponential(front.jitter_s, n)
    stamps = np.maximum.accumulate(token_s + late)
    sent = np.zeros(n, bool)
    sent[:: front.interval] = True
    sent[-1] = True
    swallowed = rng.random(n) < front.joined
    sent &= ~swallowed | (np.arange(n) == 0) | (np.arange(n) == n - 1)
    out: F64 = stamps[sent]
    return out


def _steps(served: Served, front: Frontend, rng: np.random.Generator) -> list[dict[str, Any]]:
    late = front.base_s + rng.exponential(min(front.jitter_s, 1e-3), len(served.steps))
    stamps = np.maximum.accumulate(np.array([s.end_s for s in served.steps]) + late)
    return [
        {
            "t_ns": _ns(float(t)), "run": s.running, "wait": s.waiting, "kv": 0.0, "preempted": s.preempted,
            "gen": s.generation_requests, "prompt": s.ctx_tokens + s.cached, "cached": s.cached,
            "it": {
                "iteration_index": k, "num_ctx_requests": s.ctx_requests, "num_ctx_tokens": s.ctx_tokens,
                "num_generation_requests": s.generation_requests, "num_generation_tokens": s.generation_requests,
                "elapsed_ms": 0.1,
            },
        }
        for k, (s, t) in enumerate(zip(served.steps, stamps, strict=True))
    ]  # fmt: skip


COLUMNS = {"instant": ("instant_mw",), "average": ("average_mw",)}


def _power(path: Path, shown: list[Readings], kind: str) -> None:
    columns = COLUMNS.get(kind, ("energy_mj", "instant_mw", "average_mw"))
    with path.open("w") as file:
        file.write(",".join(("t0_ns", "t1_ns", *columns, "gpu")) + "\n")
        for gpu, one in enumerate(shown):
            for t0, t1, *values in zip(one.t0, one.t1, *(getattr(one, c) for c in columns), strict=True):
                file.write(f"{_ns(t0)},{_ns(t1)}," + ",".join(f"{v:.0f}" for v in values) + f",{gpu}\n")
