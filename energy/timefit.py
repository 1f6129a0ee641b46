"""Seconds per unit of work, from the run alone: what each step, token and context takes of busy time.

Where the engine told its steps, each step's duration is regressed on what was in it: thousands of exact rows. Else busy
seconds of cells on the work that lies in them. Seconds decide how shared power is split, so they come from time, which
thousands of rows resolve, never from energy. May not know: energy, requests, files.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from energy.tables import Floats
from energy.work import FEATURES, WorkCurve

Tie = tuple[int, float, float]
STEPS, PREFILL = FEATURES.index("steps"), FEATURES.index("prefill")
LEAST_TOKEN = 1e-3
"""of a step's time, what ties take a prompt token to cost at least: weights are read in 1/200 to 1/300 of the time that
as many FLOPs take (T4 to B200), and half or more of a step may be the host's; a run with hardly a prompt in it may find
next to nothing, and would tie all the rest to it"""
STEPS_PER_CELL = 100
CELL_S, SHORTEST_CELL_S, LONGEST_CELL_S, FEWEST_CELLS = 1.0, 0.25, 4.0, 60
FEWEST_STEPS = 200
"""told steps below which cells are used"""
TIES = ((FEATURES.index("decode"), 1.0, 2.0), (FEATURES.index("prefill_context"), 4e-5, 8e-5))
"""(feature, its cost as a multiple of a prompt token's, sd): where a run cannot tell it from the steps it came in (one
request at a time: as many tokens as steps), a decoded token takes the matrix work of a prompt token and attention its
share of it: 4 x layers x width FLOPs against 2 x parameters, 2e-5 to 6e-5 of models from 1 to 70 billion"""
LOOSE_TIES = ((FEATURES.index("decode"), 1.0, 20.0), TIES[1], (FEATURES.index("context"), 2.5e-3, 1e-2))
"""for cells, whose misfit says how much a tie weighs: experts make a decoded token cost tens of prompt tokens; a token
of context is 4 x layers x KV width bytes against 2 x parameters FLOPs, 5e-4 to 1e-2 of a prompt token on cards from T4
to B200, and grows with the tokens decoded: nothing else tells the two apart"""
RIDGE, LEAST_RIDGE, MOST_RIDGE = 0.02, 0.003, 0.15
WORTH = 0.85
"""ties are dropped where the squared misfit falls below this share of what it is with them"""
ODD, STALL_S = 3.0, 0.1
"""a step that lasts this many times what its work takes, and this much more, was stalled: no cost of work"""


def fit_time(curve: WorkCurve) -> Floats:
    """Seconds per unit of work in FEATURES order: from the engine's steps where it told them, else from cells."""
    steps = curve.told
    if steps is not None and len(steps.seconds) >= FEWEST_STEPS:
        return _robust(steps.work, steps.seconds)
    return from_cells(curve)


def _robust(x: Floats, y: Floats) -> Floats:
    """Non-negative least squares of relative errors, once more without the rows that no cost explains. What steps take
    beyond their work (clocks near a power limit) goes with their length: in seconds a few long steps with prompts would
    decide what the many short ones without show exactly. Relative to the modelled time, at least a typical step:
    a step whose stamps came too close together would outweigh all others by its short time."""
    modelled = x @ _solve(x, y, ridge=0.001)
    keep = y <= ODD * modelled + STALL_S
    weight = 1 / np.maximum(modelled, np.median(y))[keep]
    return _solve(x[keep] * weight[:, None], y[keep] * weight, ridge=0.001)


def _solve(x: Floats, y: Floats, ridge: float, ties: tuple[Tie, ...] = TIES) -> Floats:
    """Twice: what a prompt token takes, then all with what is tied to it. ridge: how far, as a share of the mean, a row
    may miss before the ties give way."""
    scale = np.maximum(x.mean(0), 1e-30)
    small = ridge * np.sqrt(len(y)) * float(y.mean())
    rows, aims = [x / scale, small * np.eye(x.shape[1]) / x.shape[1]], [y, np.zeros(x.shape[1])]
    out: Floats = nnls(np.vstack(rows), np.concatenate(aims))[0] / scale * (x.mean(0) > 0)
    token = max(float(out[PREFILL]), LEAST_TOKEN * float(out[STEPS]))
    if token <= 0:
        return out
    for feature, ratio, sd in ties:
        row = np.zeros(x.shape[1])
        row[feature] = small / (sd * token) / scale[feature]
        rows.append(row[None, :])
        aims.append(np.array([small * ratio / sd]))
    tied: Floats = nnls(np.vstack(rows), np.concatenate(aims))[0] / scale * (x.mean(0) > 0)
    return tied


def cell_seconds(curve: WorkCurve) -> float:
    """Length of the cells that from_cells takes: a second, or as much as STEPS_PER_CELL engine steps take, less in a
    run that would hold fewer than FEWEST_CELLS.

    A cell must hold many steps: what lies across its ends is not known by a step or so, which the regression would
    take for cheaper contexts and dearer steps; with steps of 0.2 s (long prompts, a full engine) every short cell is
    fully busy and its work comes in lumps of one step, so that it would see lumps instead of costs."""
    steps, busy_s = float(curve.features[-1, 0] - curve.features[0, 0]), float(curve.busy[-1] - curve.busy[0])
    wanted = max(CELL_S, STEPS_PER_CELL * busy_s / steps) if steps > 0 else CELL_S
    return min(wanted, max(busy_s / FEWEST_CELLS, SHORTEST_CELL_S), LONGEST_CELL_S)


def from_cells(curve: WorkCurve, cell_s: float | None = None) -> Floats:
    """Seconds per unit of work in FEATURES order, from cells of cell_s in which something ran."""
    x, y = _cells(curve, cell_s or cell_seconds(curve))
    return _weighed(x, y) if len(y) else np.zeros(len(FEATURES))


def misfit(curve: WorkCurve) -> tuple[float, int]:
    """(rms miss of the busy seconds of cells as a share of their mean, cells) of the costs that from_cells finds."""
    x, y = _cells(curve, cell_seconds(curve))
    return (_miss(x, y, _weighed(x, y)), len(y)) if len(y) else (0.0, 0)


def _cells(curve: WorkCurve, cell_s: float) -> tuple[Floats, Floats]:
    """(work, busy seconds) of the cells in which something ran."""
    t = np.arange(curve.t[0], curve.t[-1] + 1e-9, max(cell_s, float(curve.t[1] - curve.t[0])))
    features, busy, _ = curve.at(t)
    x, y = np.diff(features, axis=0), np.diff(busy)
    keep = (y > 1e-6) & (len(t) > 2)
    return x[keep], y[keep]


def _miss(x: Floats, y: Floats, found: Floats) -> float:
    return float(np.sqrt(np.mean((y - x @ found) ** 2)) / y.mean())


def _weighed(x: Floats, y: Floats) -> Floats:
    """Ties as strong as this run's cells are poor (stamps and sensors blur them), or as good as none where they alone
    stand in the way of a much better fit."""
    tied, free = (_solve(x, y, RIDGE, ties) for ties in (TIES, LOOSE_TIES))
    miss, less = (_miss(x, y, found) for found in (tied, free))
    if less**2 < WORTH * miss**2:
        return free
    return _solve(x, y, float(np.clip(miss, LEAST_RIDGE, MOST_RIDGE)), LOOSE_TIES)
