"""The board's sensors over a served run: a power trace, the energy counter on its grid, instantaneous and mean power.

Kinds of sensor: `counter`, continuous; `duty-cycled`, a counter that sees 25 of every 100 ms (as the power reading of
A100 and H100 does); `instant` and `average`, no counter at all, the power of such windows or of the last second alone.
Drawn per seed: gain 0.95-1.05 (boards of one kind differ by up to 5 %), counter period 20-100 ms with 20-80 ms of lag,
calls of 3-5 ms with a tail (recorded: median 2.8-5.3 ms, p99 17 ms), missing stretches. May not know: requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from joulegraph.validation.roofline.boards import F64, Chip
from joulegraph.validation.roofline.serving import Served

LEAD_S, AFTER_S, POLL_S = 6.0, 5.0, 0.02


@dataclass(frozen=True, slots=True)
class Power:
    """Cumulative joules at instants (s), linear between them."""

    t: F64
    joules: F64

    def at(self, t: F64) -> F64:
        """Joules since the start of the trace."""
        return np.asarray(np.interp(t, self.t, self.joules))


@dataclass(frozen=True, slots=True)
class Readings:
    """What a poller wrote down: t0, t1 (s) around the counter call, energy (mJ), instant and 1 s mean power (mW)."""

    t0: F64
    t1: F64
    energy_mj: F64
    instant_mw: F64
    average_mw: F64
    gain: float


def power_of(chip: Chip, served: Served) -> Power:
    """Steps at their mean power, between them idle power that decays from static power."""
    t, joules, total, at = [-LEAD_S], [0.0], 0.0, -LEAD_S
    for step, kelvin in zip(served.steps, served.kelvin, strict=True):
        gap = step.start_s - at
        if gap > 1e-9:
            for x in np.unique(np.concatenate([np.arange(0.0, min(gap, 8 * chip.cool_s), 0.02)[1:], [gap]])):
                drawn = _idle(chip, float(x), kelvin, at > -LEAD_S)
                t.append(at + float(x))
                joules.append(total + drawn)
            total = joules[-1]
        total += step.joules
        t.append(step.end_s)
        joules.append(total)
        at = step.end_s
    for x in np.arange(0.02, AFTER_S, 0.02):
        t.append(at + float(x))
        joules.append(total + _idle(chip, float(x), served.kelvin[-1], True))
    return Power(np.array(t), np.array(joules))


def _idle(chip: Chip, seconds: float, kelvin: float, worked: bool) -> float:
    """Joules of the first seconds after work."""
    warm = chip.idle_w * (1 + chip.leak_per_k * kelvin * 0.5) if worked else chip.idle_w
    spare = (chip.static_w - chip.idle_w) * chip.cool_s * (1 - np.exp(-seconds / chip.cool_s)) if worked else 0.0
    return float(warm * seconds + spare)


KINDS = ("counter", "duty-cycled", "instant", "average")


def read(power: Power, seed: int, missing: int = 2, kind: str = "counter", gpu: int = 0) -> Readings:
    """Poll every 20 ms. missing: stretches of 0.3-2 s without a reading; gpu: of several, each with a gain and a grid
    of its own."""
    rng = np.random.default_rng([seed, 73, gpu] if gpu else [seed, 73])
    gain = float(rng.uniform(0.95, 1.05))
    period, lag = float(rng.choice([0.02, 0.05, 0.1, 0.1, 0.1])), float(rng.uniform(0.02, 0.08))
    begin, end = power.t[0] + 0.5, power.t[-1]
    t0 = np.arange(begin, end, POLL_S) + rng.exponential(2e-4, len(np.arange(begin, end, POLL_S)))
    call = 0.003 + rng.exponential(0.001, len(t0)) + (rng.random(len(t0)) < 0.01) * 0.012
    keep = np.ones(len(t0), bool)
    for start in rng.uniform(begin, end, missing):
        keep &= (t0 < start) | (t0 > start + rng.uniform(0.3, 2.0))
    t0, call = t0[keep], call[keep]
    taken = t0 + rng.uniform(0.2, 0.8, len(t0)) * call
    grid = begin + rng.uniform(0, period)
    shown = np.floor((taken - grid) / period) * period + grid - lag
    energy = np.floor(gain * (_seen_in_part if kind == "duty-cycled" else Power.at)(power, shown) * 1e3) + 7_654_321
    update = np.floor((taken - grid) / 0.1) * 0.1 + grid - 0.02
    instant = 1e3 * gain * (power.at(update) - power.at(update - 0.025)) / 0.025
    average = 1e3 * gain * (power.at(update) - power.at(update - 1.0)) / 1.0
    return Readings(t0, t0 + call, energy, np.rint(instant), np.rint(average), gain)


def _seen_in_part(power: Power, shown: F64) -> F64:
    """Joules that a counter adds up from the last 25 ms of every 100 ms alone."""
    ends = np.arange(power.t[0], power.t[-1] + 0.2, 0.1)
    added = np.cumsum(4.0 * (power.at(ends) - power.at(ends - 0.025)))
    return np.asarray(np.interp(shown, ends, added))
