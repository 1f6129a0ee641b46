"""A recording of a real engine, and the time of its steps: part of scripts/fit_profile.py.

Reads the folders of ../shared/data/power and fits the step model of engines.embedded.profiles.StepTimes to step times
and to the gaps between streamed tokens. May not know: power.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

F64 = NDArray[np.float64]
SPREAD_NS = 4e6
WINDOW = 24
BUDGET = 8192
MAX_MHZ = 1980.0


@dataclass
class Run:
    """One recording; times in ns on its own monotonic clock."""

    name: str
    requests: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    iterations: tuple[F64, F64]
    """instants and cumulative engine steps"""
    t_ns: F64
    joules: F64
    hbm_w: F64
    mhz: F64
    celsius: F64


def load(folder: Path) -> Run:
    """Read one recording."""

    def lines(name: str) -> list[dict[str, Any]]:
        with gzip.open(folder / name, "rt") as file:
            return [json.loads(line) for line in file]

    with gzip.open(folder / "power.csv.gz", "rt") as file:
        power = np.genfromtxt(file, delimiter=",", names=True)
    phases = json.loads((folder / "phases.json").read_text())
    steps = [s for s in lines("steps.jsonl.gz") if s.get("it")] if (folder / "steps.jsonl.gz").exists() else []
    if steps:
        iterations = np.array([s["t_ns"] for s in steps], float), np.arange(1, len(steps) + 1, dtype=float)
    else:
        scraped = phases["metrics"]
        iterations = (
            np.array([m["t_ns"] for m in scraped], float),
            np.array([m["iteration_tokens_total_count"] for m in scraped], float),
        )
    requests = [r for r in lines("requests.jsonl.gz") if not r.get("error")]
    return Run(
        folder.name, requests, phases["phases"], steps, iterations,
        power["t1_ns"], power["energy_mj"] / 1e3, power["hbm_average_mw"] / 1e3, power["sm_mhz"], power["temp_c"],
    )  # fmt: skip


def cached(request: dict[str, Any]) -> int:
    """Prompt tokens that came from the prefix cache."""
    return int((request["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def token_times(request: dict[str, Any]) -> F64:
    """Arrival of each output token, the first included."""
    gaps = np.array([0, *(request.get("token_dt_us") or [])], float) * 1e3
    return request["t_first_ns"] + np.cumsum(gaps)


def step_rows(run: Run) -> F64:
    """Rows (tokens, sequences, context read, attention pairs, clock, seconds, window), one per step of a busy time.

    A step's own instants are known to some ms only, so the fit compares sums over windows of WINDOW steps.
    """
    bounds = _stream_bounds(run) if run.steps else _gap_bounds(run)
    decode_t = np.concatenate([token_times(r)[1:] for r in run.requests])
    context = np.concatenate([r["n_in"] + np.arange(1, len(token_times(r))) for r in run.requests])
    order = np.argsort(decode_t)
    decode_t, sums = decode_t[order], np.concatenate(([0.0], np.cumsum(context[order])))
    parts = chunks(run)
    rows = np.zeros((len(bounds), 7))
    starts, ends = bounds[:, 0], bounds[:, 1]
    a, b = np.searchsorted(decode_t, starts + SPREAD_NS), np.searchsorted(decode_t, ends + SPREAD_NS)
    rows[:, 0] = rows[:, 1] = b - a
    rows[:, 2] = sums[b] - sums[a]
    for t, steps_before, tokens, ctx in parts:
        i = int(np.searchsorted(ends + SPREAD_NS, t)) - steps_before
        if 0 <= i < len(rows) and starts[i] - 1e9 < t:
            rows[i, :4] += (tokens, 1, ctx, tokens * (ctx + tokens / 2))
    if run.steps:  # the stream knows what each step held
        rows[:, 0], rows[:, 1] = bounds[:, 3], bounds[:, 4]
    mhz = np.concatenate(([0.0], np.cumsum(run.mhz)))
    lo, hi = np.searchsorted(run.t_ns, starts), np.searchsorted(run.t_ns, ends + 2e7)
    at = np.interp((starts + ends) / 2, run.t_ns, run.mhz)
    rows[:, 4] = np.where(hi > lo, (mhz[hi] - mhz[lo]) / np.maximum(hi - lo, 1), at) / MAX_MHZ
    rows[:, 5] = (ends - starts) / 1e9
    rows[:, 6] = bounds[:, 2]
    return rows


def chunks(run: Run) -> list[tuple[float, int, float, float]]:
    """(instant of the first token, steps before it, tokens, context) of every prefill chunk."""
    out = []
    for r in run.requests:
        done, left = cached(r), r["n_in"] - cached(r)
        parts = [min(BUDGET, left - i) for i in range(0, left, BUDGET)]
        for i, tokens in enumerate(parts):
            out.append((float(r["t_first_ns"]), len(parts) - 1 - i, float(tokens), float(done)))
            done += tokens
    return out


def _stream_bounds(run: Run) -> F64:
    """(start, end, window, tokens, sequences) of each step that followed another without a pause."""
    t = np.array([s["t_ns"] for s in run.steps], float)
    it = [s["it"] for s in run.steps]
    tokens = np.array([i["num_ctx_tokens"] + i["num_generation_tokens"] for i in it], float)
    seqs = np.array([i["num_ctx_requests"] + i["num_generation_requests"] for i in it], float)
    running = np.array([s["run"] for s in run.steps])
    # After a step that left nothing running the next one starts with an arrival, not with its predecessor's end.
    busy = np.flatnonzero((running[:-1] > 0) & (np.diff(t) < 5e8)) + 1
    rows = np.stack((t[busy - 1], t[busy], np.zeros(len(busy)), tokens[busy], seqs[busy]), axis=1)
    breaks = np.concatenate(([0], np.cumsum(np.diff(busy) > 1)))
    rows[:, 2] = breaks * 1000 + (np.arange(len(busy)) - np.searchsorted(breaks, breaks)) // WINDOW
    return rows


def _gap_bounds(run: Run) -> F64:
    """The same from the token gaps of one request at a time, each gap being a step; and from bursts of first tokens."""
    out: list[tuple[float, float, float]] = []
    until, window = 0.0, 0
    for request in sorted(run.requests, key=lambda r: r["t_first_ns"]):
        times = token_times(request)
        times = times[times > until]
        if len(times) < 16:
            continue
        for i in range(len(times) - 1):
            out.append((times[i], times[i + 1], window + i // WINDOW))
        window += 1000
        until = times[-1]
    for phase, nxt in zip(run.phases, run.phases[1:]):
        if phase["phase"] == "prefill" and phase["n"] >= 4:
            first = np.sort([r["t_first_ns"] for r in run.requests if phase["t_ns"] < r["t_first_ns"] < nxt["t_ns"]])
            edges = first[np.flatnonzero(np.diff(first, append=np.inf) > 2e7)].astype(float)
            out += [(a + 1, b, window + i // 5) for i, (a, b) in enumerate(pairwise(edges[1:]))]
            window += 1000
    return np.array(sorted(out))


def seconds_of(p: F64, rows: F64, shared: float | F64 = 0.0) -> F64:
    """The step model of engines.embedded.profiles.StepTimes; p in ms, ms, us, us, ns, ps.

    shared: share of p[6] in the context term: where sequences share a prefix, its keys and values come from L2.
    """
    overhead, weights, token, sequence, context, attention, context_shared = p
    n, seqs, ctx, pairs, clock = rows.T[:5]
    work = np.maximum(weights * 1e-3, token * 1e-6 * n / clock)
    context = context + shared * (context_shared - context)
    return overhead * 1e-3 + work + sequence * 1e-6 * seqs + context * 1e-9 * ctx + attention * 1e-12 * pairs / clock


def windows(rows: F64, modelled: F64) -> tuple[F64, F64]:
    """Modelled and real seconds by window."""
    _, window = np.unique(rows[:, 6], return_inverse=True)
    return np.bincount(window, modelled), np.bincount(window, rows[:, 5])


def fit_times(rows: F64, shared: F64) -> F64:
    """Robust fit of relative residuals of windows."""

    def residual(p: F64) -> F64:
        modelled, real = windows(rows, seconds_of(p, rows, shared))
        return (modelled / real - 1) * np.sqrt(real)

    start = np.array([1.0, 5.4, 17.0, 5.0, 40.0, 300.0, 25.0])
    fit = least_squares(residual, start, bounds=(0, np.inf), loss="soft_l1", f_scale=0.02, x_scale=start)
    return np.asarray(fit.x)
