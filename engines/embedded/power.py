"""Time, clock and energy of one step, and the temperature between steps.

The cost of a batch is a sum of shared parts (overhead, weight streaming, matrix products under the roof of the weight
stream) and parts of each sequence (its tokens, its context). The clock is the highest whose step power fits under the
cap; it and the temperature are frozen at the start of the step.
May not know: requests, the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp
from operator import mul

import numpy as np
from numpy.typing import NDArray

from engines.embedded.profiles import COMPONENTS, Profile, Thermal
from engines.embedded.shapley import TokenGame

F64 = NDArray[np.float64]
ENERGIES = (
    "weights_j",
    "prefill_token_j",
    "decode_token_j",
    "context_j",
    "context2_j",
    "attention_j",
    "padding_j",
)
GPU, HBM = 0, 1
"""indices in per-component arrays"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step computes, in numbers: `decodes` sequences of `width` tokens (one, and its drafts) that read
    decode_context tokens in all, and prefill chunks of (tokens, context present before them)."""

    decodes: int
    decode_context: int
    chunks: tuple[tuple[int, int], ...]
    width: int = 1

    @property
    def tokens(self) -> int:
        return self.decodes * self.width + sum(n for n, _ in self.chunks)

    @property
    def context(self) -> int:
        """Context tokens read from memory."""
        return self.decode_context + sum(c for _, c in self.chunks)

    @property
    def sequences(self) -> int:
        return self.decodes + len(self.chunks)

    @property
    def attention(self) -> float:
        """Prefill token x context pairs."""
        return sum(n * (c + n / 2) for n, c in self.chunks)


@dataclass(frozen=True, slots=True)
class Rates:
    """Every constant at one clock."""

    clock: float
    static_w: F64
    """power while busy that only time costs, at the reference temperature, shape (components,)"""
    joules: F64
    """energies in the order of ENERGIES, shape (energies, components)"""
    gpu_joules: tuple[float, ...]
    """its gpu column, as plain floats"""
    by_component: tuple[tuple[float, ...], ...]
    """all its columns, as plain floats"""
    fixed_s: float
    token_s: float
    sequence_s: float
    context_s: float
    attention_s: float
    game: TokenGame
    """row 0: tokens that the time behaves as more than there are; row 1: tokens of padding"""


@dataclass(frozen=True, slots=True)
class Cost:
    """A step's modelled duration, its static power and its energies above that; frozen for the step."""

    rates: Rates
    seconds: float
    static_w: F64
    dynamic_j: F64
    throttled: bool


class StepModel:
    """Costs of steps on one tensor-parallel group under a power cap (W per GPU; the board's own limit at most)."""

    def __init__(
        self, profile: Profile, *, tensor_parallel: int = 1, replicas: int = 1, power_cap_w: int | None = None
    ) -> None:
        self.profile = profile
        self.gpus = tensor_parallel
        cap = profile.max_power_w if power_cap_w is None else min(float(power_cap_w), profile.max_power_w)
        self._cap_w = cap * tensor_parallel
        low, high, step = profile.min_sm_mhz, profile.max_sm_mhz, profile.sm_step_mhz
        self._clocks = [mhz / high for mhz in range(low, high, step)] + [1.0]
        # GPUs of the group all draw; a host's CPU and DRAM are shared by its replicas.
        share = np.array([tensor_parallel, tensor_parallel, 1 / replicas, 1 / replicas])
        power = [profile.power[c] for c in COMPONENTS]
        self.idle_w: F64 = share * np.array([p.idle_w for p in power])
        """idle power at the reference temperature, shape (components,)"""
        self._busy_w = share * np.array([p.busy_w for p in power])
        self._j = {name: np.array([getattr(p, name) for p in power]) for name in ENERGIES}
        self._at_clock = lru_cache(maxsize=256)(self._at_clock_uncached)

    def leak(self, celsius: float) -> float:
        """Factor on the GPU's static power at a temperature."""
        thermal = self.profile.thermal
        return max(0.5, 1.0 + thermal.leak_per_c * (celsius - thermal.ref_c))

    def cost(self, batch: Batch, celsius: float) -> Cost:
        """The step at the highest clock that the droop and the cap allow."""
        clocks = self._clocks
        top = len(clocks) - 1
        leak = self.leak(celsius)
        watts = self._power(batch, clocks[top], leak)
        if self.profile.droop:
            share = watts / (self.profile.max_power_w * self.gpus)
            top = self._level(1.0 - self.profile.droop * min(share, 1.0))
            watts = self._power(batch, clocks[top], leak)
        if watts <= self._cap_w:
            return self.cost_at(batch, clocks[top], celsius)
        low, high = 0, top  # invariant: level high draws too much; level low is the answer of last resort
        while high - low > 1:
            middle = (low + high) // 2
            if self._power(batch, clocks[middle], leak) <= self._cap_w:
                low = middle
            else:
                high = middle
        return self.cost_at(batch, clocks[low], celsius, throttled=True)

    def _level(self, clock: float) -> int:
        below = [i for i, c in enumerate(self._clocks) if c <= clock + 1e-12]
        return below[-1] if below else 0

    def cost_at(self, batch: Batch, clock: float, celsius: float, *, throttled: bool = False) -> Cost:
        """The step at a given clock: with fewer sequences in the batch, the v(S) of truth.py."""
        r = self._at_clock(clock)
        seconds, counts = _counts(r, batch)
        static = r.static_w.copy()
        static[GPU] *= self.leak(celsius)
        return Cost(r, seconds, static, np.dot(counts, r.joules), throttled)

    def _power(self, batch: Batch, clock: float, leak: float) -> float:
        """Mean power of the GPU group, W: what follows from cost_at(...), cheaper."""
        r = self._at_clock(clock)
        seconds, counts = _counts(r, batch)
        dynamic: float = sum(map(mul, counts, r.gpu_joules))
        return float(r.static_w[GPU]) * leak + dynamic / seconds

    def _at_clock_uncached(self, clock: float) -> Rates:
        profile, times, j, gpus = self.profile, self.profile.times, self._j, self.gpus
        volts2 = (profile.voltage_floor + (1 - profile.voltage_floor) * clock) ** 2
        # Dynamic energy of the cores goes with V^2, of the memory not; the CPU and DRAM of the host do not follow.
        core = np.array([volts2, 1.0, 1.0, 1.0])
        joules = np.stack([j[name] * core for name in ENERGIES])
        for name in ("weights_j", "context_j"):
            joules[ENERGIES.index(name), GPU] += j[name][HBM] * (1 - volts2)
        joules[ENERGIES.index("context2_j")] = j["context2_j"]
        reduce = profile.tensor_parallel_s if gpus > 1 else 0.0
        token_s = times.token_s / clock / gpus + reduce * times.token_s
        return Rates(
            clock=clock,
            static_w=self.idle_w + self._busy_w * np.array([clock * volts2, 1.0, 1.0, 1.0]),
            joules=joules,
            gpu_joules=tuple(joules[:, GPU].tolist()),
            by_component=tuple(tuple(column) for column in joules.T.tolist()),
            fixed_s=times.overhead_s,
            token_s=token_s,
            sequence_s=times.sequence_s,
            context_s=times.context_s / gpus,
            attention_s=times.attention_s / clock / gpus,
            game=self._game(times.weights_s / gpus / token_s),
        )

    def _game(self, roof_tokens: float) -> TokenGame:
        """h rows for the weight roof (max(roof, padded N) - N) and for padding (padded N - N)."""
        sizes = self.profile.graph_sizes
        cap = max(ceil(roof_tokens), sizes[-1] if sizes else 0, 1) + 1
        x = np.arange(cap + 1)
        padded = x.astype(np.float64)
        for low, size in zip((0, *sizes), sizes):
            padded[(x > low) & (x <= size)] = size
        h: F64 = np.stack((np.maximum(roof_tokens, padded) - x, padded - x)).astype(np.float64)
        h[:, 0] = 0.0
        return TokenGame(h)


def _counts(r: Rates, batch: Batch) -> tuple[float, tuple[float, ...]]:
    """Duration of the batch, and how often each of ENERGIES is spent in it."""
    chunks = batch.chunks
    prefill = context = 0
    pairs = 0.0
    for n, c in chunks:
        prefill += n
        context += c
        pairs += n * (c + n / 2)
    context += batch.decode_context
    decodes = batch.decodes
    decoded = decodes * batch.width
    tokens = prefill + decoded
    extra, padding = r.game.pair(tokens)
    seconds = (
        r.fixed_s
        + r.token_s * (tokens + extra)
        + r.sequence_s * (decodes + len(chunks))
        + r.context_s * context
        + r.attention_s * pairs
    )
    return seconds, (1.0, prefill, decoded, context, float(context) * context, pairs, padding)


class Temperature:
    """GPU temperature: exponential approach to what the power in force would reach."""

    def __init__(self, thermal: Thermal, celsius: float) -> None:
        self._thermal = thermal
        self.celsius = celsius

    def target(self, watts: float) -> float:
        """Steady-state temperature at a power per GPU."""
        return self._thermal.ambient_c + self._thermal.c_per_w * watts

    def after(self, watts: float, seconds: float) -> None:
        """Let `seconds` pass at constant power."""
        goal = self.target(watts)
        self.celsius = goal + (self.celsius - goal) * exp(-seconds / self._thermal.tau_s)


def steps_of(seconds: float, longest: float) -> Sequence[float]:
    """An idle period cut into parts short enough for the leakage to be constant in each."""
    parts = min(64, max(1, ceil(seconds / longest)))
    return [seconds / parts] * parts
