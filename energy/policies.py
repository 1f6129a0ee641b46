"""How a block's energy is shared among the requests in it: functions in one dict, so that they can be compared.

Each takes the rows (request, phase, block), the block totals and the fit, and gives the uJ it would put on each row and
on idle and tail of each block before they are scaled to the counter. Only `fitted` and `shapley` know the model; the
others are what published tools do. May not know: sensors, files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from energy.fit import Fit
from energy.model import PREFILL, Blocks, Shares
from energy.tables import Floats


@dataclass(frozen=True, slots=True)
class Split:
    """uJ before scaling: per row (active and its own part), per block (idle, tail)."""

    active: Floats
    own: Floats
    idle: Floats
    tail: Floats


def caused(rows: Shares, blocks: Blocks, seconds: Floats) -> Floats:
    """Busy seconds of each block shared by the time each row's work takes: prompt tokens to prefills, steps equally to
    the sequences scheduled. Sums to the block's busy seconds wherever any row is."""
    weight = rows.work @ seconds
    weight = np.where(weight > 0, weight, 0) + 1e-9 * rows.seconds
    total = np.bincount(rows.block, weight, len(blocks))
    share: Floats = weight / np.where(total > 0, total, 1.0)[rows.block] * blocks.busy[rows.block]
    return share


def fitted(rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """Own work at its fitted cost, steps equally among scheduled sequences, static power by time caused."""
    base = caused(rows, blocks, fit.seconds)
    own = rows.work[:, 1:] @ fit.joules[4:]
    active = own + fit.joules[2] * base + fit.joules[3] * rows.work[:, 0]
    return Split(1e6 * active, 1e6 * own, 1e6 * fit.joules[0] * blocks.idle, 1e6 * fit.joules[1] * blocks.tail)


def shapley(rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """Shapley value of the fitted model: what only one causes is its own, every shared cost (steps, and busy time that
    no work explains) is split equally among those present. Differs from `fitted` in the unexplained time alone."""
    took = rows.work @ fit.seconds
    explained = np.bincount(rows.block, took, len(blocks))
    fits = np.minimum(1.0, blocks.busy / np.where(explained > 0, explained, 1.0))
    spare = np.maximum(blocks.busy - explained * fits, 0.0)
    present = np.bincount(rows.block, rows.seconds, len(blocks))
    base = took * fits[rows.block] + rows.seconds / np.where(present > 0, present, 1.0)[rows.block] * spare[rows.block]
    own = rows.work[:, 1:] @ fit.joules[4:]
    active = own + fit.joules[2] * base + fit.joules[3] * rows.work[:, 0]
    return Split(1e6 * active, 1e6 * own, 1e6 * fit.joules[0] * blocks.idle, 1e6 * fit.joules[1] * blocks.tail)


def _naive(weight: Floats, rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """Everything above idle by one weight."""
    idle, tail = 1e6 * fit.joules[0] * blocks.idle, 1e6 * fit.joules[1] * blocks.tail
    rest = np.maximum(blocks.uj - idle - tail, 0.0)
    weight = weight + 1e-12 * (rows.seconds + rows.waiting)
    total = np.bincount(rows.block, weight, len(blocks))
    active = weight / np.where(total > 0, total, 1.0)[rows.block] * rest[rows.block]
    return Split(active, np.zeros(len(active)), idle, tail)


def equal(rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """Equal share per request in flight, by time, waiting included."""
    return _naive(rows.seconds + rows.waiting, rows, blocks, fit)


def time(rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """By seconds scheduled."""
    return _naive(rows.seconds, rows, blocks, fit)


def tokens(rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """By tokens computed, prompt and output alike."""
    return _naive(rows.work[:, 1] + rows.work[:, 3], rows, blocks, fit)


def output_tokens(rows: Shares, blocks: Blocks, fit: Fit) -> Split:
    """By output tokens (the first one counts when prefill ends)."""
    return _naive(rows.work[:, 3] + (rows.phase == PREFILL) * 1e-3, rows, blocks, fit)


CHARGE_WAITING = frozenset({"equal"})
"""Policies that put joules on a request that waits to be scheduled."""
KNOW_OWN = ("fitted", "shapley")
"""Policies that tell a request's own joules from its shares."""
Policy = Callable[[Shares, Blocks, Fit], Split]
POLICIES: dict[str, Policy] = {
    "fitted": fitted,
    "shapley": shapley,
    "equal": equal,
    "time": time,
    "tokens": tokens,
    "output_tokens": output_tokens,
}
