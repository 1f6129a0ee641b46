"""Power of a recording against its work: part of scripts/fit_profile.py.

Lays work and energy on one grid and fits board and memory coefficients of engines.embedded.profiles to blocks of one
second. May not know: how a fit is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fit_profile_times import F64, MAX_MHZ, SPREAD_NS, Run, chunks, seconds_of, token_times
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

LAG_NS = 60_000_000
GRID_NS = 10_000_000
BLOCK = 100
"""grid cells in a block of one second"""
REF_C = 35.0
LEAK_W_PER_C = 0.45
"""idle board, between work: 121.9 W at 36.3 C and 127 W at 43.5 C in the first run, 129.5 at 35.4 and 133 at 43 in the
second"""


@dataclass
class Grid:
    """What happened in each cell of GRID_NS; shape (cells,) each."""

    seconds: F64
    busy: F64
    steps: F64
    prefill: F64
    decode: F64
    context: F64
    pairs: F64
    clock: F64
    celsius: F64
    joules: F64
    hbm_w: F64
    """memory power at the end of the cell, averaged over the second before"""
    t0_ns: float


def grid_of(run: Run, times: F64) -> Grid:
    """Work and energy of a recording on a common axis (the counter shows what was LAG_NS ago)."""
    t0 = run.t_ns[0] + 1e9
    cells = int((run.t_ns[-1] - 5e8 - t0) // GRID_NS)
    edges = t0 + GRID_NS * np.arange(cells + 1.0)

    def histogram(t: F64, weight: F64) -> F64:
        return np.histogram(t, edges, weights=weight)[0]

    def cumulative(t: F64, value: F64) -> F64:
        return np.diff(np.interp(edges, t, value))

    decode_t = np.concatenate([token_times(r)[1:] for r in run.requests]) - SPREAD_NS
    context = np.concatenate([r["n_in"] + np.arange(1.0, len(token_times(r))) for r in run.requests])
    clock = np.interp((edges[1:] + edges[:-1]) / 2, run.t_ns, run.mhz) / MAX_MHZ
    prefill, pairs, read = np.zeros(cells), np.zeros(cells), np.zeros(cells)
    for t, before, tokens, ctx in chunks(run):
        seconds = seconds_of(times, np.array([[tokens, 1, ctx, tokens * (ctx + tokens / 2), 0.75]]))[0]
        end = t - SPREAD_NS - before * seconds * 1e9
        share = np.clip((edges - (end - seconds * 1e9)) / (seconds * 1e9), 0, 1)
        cover = np.diff(share)
        prefill += tokens * cover
        pairs += tokens * (ctx + tokens / 2) * cover
        read += ctx * cover
    busy = np.zeros(cells + 1)
    for r in run.requests:
        i, j = np.searchsorted(edges, (r["t_send_ns"] + 4e6, r["t_end_ns"]))
        busy[min(i, cells)] += 1
        busy[min(j, cells)] -= 1
    return Grid(
        seconds=np.full(cells, GRID_NS / 1e9),
        busy=np.minimum(np.cumsum(busy)[:-1], 1) * GRID_NS / 1e9,
        steps=cumulative(*run.iterations),
        prefill=prefill,
        decode=histogram(decode_t, np.ones(len(decode_t))),
        context=histogram(decode_t, context) + read,
        pairs=pairs,
        clock=clock,
        celsius=np.interp(edges[1:], run.t_ns, run.celsius),
        joules=cumulative(run.t_ns - LAG_NS, run.joules),
        hbm_w=np.interp(edges[1:] + LAG_NS, run.t_ns, run.hbm_w),
        t0_ns=t0,
    )


def blocks(x: F64) -> F64:
    """Sums over blocks of one second."""
    n = len(x) // BLOCK
    return x[: n * BLOCK].reshape(n, BLOCK).sum(axis=1)


COLUMNS = ("busy", "weights", "prefill", "decode", "context", "attention", "context_shared", "idle", "idle_second")


def columns(g: Grid, floor: float, second: bool) -> F64:
    """Shape (blocks, 9), in the order of COLUMNS; core energies scale with the square of the voltage.

    The second recording is from another board (own idle power) and shares prefixes (own context term)."""
    v2 = (floor + (1 - floor) * g.clock) ** 2
    none = np.zeros_like(g.seconds)
    context = (none, g.context) if second else (g.context, none)
    idle = (none, g.seconds) if second else (g.seconds, none)
    raw = (
        g.busy * g.clock * v2, g.steps, g.prefill * v2, g.decode * v2, context[0], g.pairs * v2, context[1], *idle,
    )  # fmt: skip
    return np.stack([blocks(x) for x in raw], axis=1)


def idle_power(run: Run) -> float:
    """Board power in the idle phase at the start, brought to REF_C, W."""
    phase, following = run.phases[0], run.phases[1]
    a, b = phase["t_ns"] + 1e9, following["t_ns"]
    joules = np.diff(np.interp([a, b], run.t_ns, run.joules))[0]
    here = (run.t_ns > a) & (run.t_ns < b)
    return float(joules / (b - a) * 1e9 - LEAK_W_PER_C * (run.celsius[here].mean() - REF_C))


def fit_hbm(grids: list[Grid], chosen: list[NDArray[np.bool_]]) -> tuple[F64, float]:
    """Memory power (a one-second average) against the second's work; columns as COLUMNS; and the rms error, W."""
    parts = [columns(g, 1.0, bool(i)) for i, g in enumerate(grids)]
    y = [g.hbm_w[BLOCK - 1 :: BLOCK][: len(x)] for g, x in zip(grids, parts)]
    a = np.concatenate([x[m] for x, m in zip(parts, chosen)])
    b = np.concatenate([v[m] for v, m in zip(y, chosen)])
    # Memory that works at a low rate is not clocked otherwise: no busy or decode-token term of its own.
    free = [COLUMNS.index(c) for c in ("weights", "prefill", "context", "context_shared", "idle", "idle_second")]
    fit = lsq_linear(a[:, free], b, bounds=(0, np.inf))
    out = np.zeros(len(COLUMNS))
    out[free] = fit.x
    return out, float(np.sqrt(np.mean((a @ out - b) ** 2)))


def fit_gpu(
    grids: list[Grid], chosen: list[NDArray[np.bool_]], hbm: F64, floor: float, idle: list[float]
) -> tuple[F64, float]:
    """Board energy of one-second blocks against their work, no term below the memory's part of it; rms error, W."""
    a = np.concatenate([columns(g, floor, bool(i))[m] for i, (g, m) in enumerate(zip(grids, chosen))])
    leak = [LEAK_W_PER_C * blocks(g.seconds * (g.celsius - REF_C)) for g in grids]
    b = np.concatenate([(blocks(g.joules) - w)[m] for g, w, m in zip(grids, leak, chosen)])
    low = np.where([c in ("weights", "context", "context_shared") for c in COLUMNS], hbm, 0.0)
    high = np.full(len(COLUMNS), np.inf)
    # Idle power is measured, not fitted: blocks in which work ends would pull it down.
    low[-2:], high[-2:] = idle, np.array(idle) + 1e-9
    fit = lsq_linear(a, b, bounds=(low - 1e-12, high))
    return np.asarray(fit.x), float(np.sqrt(np.mean((a @ fit.x - b) ** 2)))
