"""A chip and a model: seconds and joules of a step from rooflines per kernel class, and each sequence's Shapley value.

A step is matrix products (FLOPs against weights read, tile and graph padding), attention of prefills (FLOPs), attention
of decodes (KV bytes), the output head and sampling, a launch floor, and the host's part. Each class takes a smooth
maximum of its compute and memory time; energy is power while the step lasts plus picojoules per FLOP and byte at the
clock's voltage. What is drawn by seed stands in boards.py. May not know: requests' stamps, sensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from joulegraph.validation.roofline.boards import F64, Chip, Shape

ORDERS = 6
"""random orders of arrival per step, each with its reverse, that the Shapley value is averaged over"""
ONE_TOKEN, ONE_PREFILL = np.array([1.0, 0.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0, 1.0])
GRAPHS = np.array([1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)])


@dataclass(frozen=True, slots=True)
class Step:
    """Per sequence of one step: tokens computed, FLOPs of its prefill attention, KV bytes its decode reads, whether it
    samples a token, whether it prefills."""

    tokens: F64
    attention_flops: F64
    kv_bytes: F64
    samples: F64
    prefills: F64

    @property
    def columns(self) -> F64:
        """(sequences, 5)."""
        return np.stack([self.tokens, self.attention_flops, self.kv_bytes, self.samples, self.prefills], 1)


def prefill_flops(shape: Shape, chunk: float, before: float) -> float:
    """FLOPs of causal attention of a chunk after `before` tokens: scores and values."""
    return 4.0 * shape.layers * shape.width * chunk * (before + chunk / 2)


@dataclass(frozen=True, slots=True)
class Coalitions:
    """Sums of Step.columns over sets of sequences (n, 5), how many are in each, and what no clock changes: seconds of
    each kernel class's compute at full clock and of its memory (3, n), joules of FLOPs and of bytes (2, n)."""

    sums: F64
    sequences: F64
    compute: F64
    memory: F64
    joules: F64

    def where(self, rows: slice) -> Coalitions:
        """Some of them."""
        parts = (self.compute[:, rows], self.memory[:, rows], self.joules[:, rows])
        return Coalitions(self.sums[rows], self.sequences[rows], *parts)


def coalitions(chip: Chip, sums: F64, sequences: F64) -> Coalitions:
    """Rows of sums; nothing at all costs nothing."""
    tokens, attention, kv, samples, prefills = sums.T
    some = tokens > 0
    graph = GRAPHS[np.minimum(np.searchsorted(GRAPHS, tokens), len(GRAPHS) - 1)]
    tiled = np.ceil(tokens / chip.tile) * chip.tile
    rows = np.where((prefills <= 0) & (tokens <= GRAPHS[-1]), graph, 0.5 * tokens + 0.5 * tiled) * some
    s = chip.shape
    gemm_bytes = (s.weight_bytes * s.streamed(tokens) + 24.0 * s.layers * s.width * rows) * some
    head_bytes = 2.0 * s.width * s.vocabulary * (samples > 0) + 6.0 * s.vocabulary * samples
    products = 2.0 * s.computed * rows + 2.0 * s.width * s.vocabulary * samples
    weights, written = gemm_bytes + head_bytes, kv + tokens * s.kv_bytes
    compute = np.stack([products / chip.gemm_flops, attention / chip.prefill_attention_flops, 0.02 * kv / 3e12])
    memory = np.stack(
        [weights / chip.bytes_per_s, 0.05 * attention / chip.peak_flops, written / chip.decode_attention_bytes]
    )
    joules = np.stack([chip.pj_flop * (products + 1.3 * attention), chip.pj_byte * (weights + written)])
    return Coalitions(sums, sequences, compute, memory, joules)


def seconds(chip: Chip, c: Coalitions, clock: float) -> F64:
    """Duration of coalitions at a clock: each class at its roofline, launches and the host's part."""
    p = chip.sharpness
    gpu: F64 = (((c.compute / clock) ** p + c.memory**p) ** (1 / p)).sum(0)
    gpu = gpu + chip.sampling_s * c.sums[:, 3] + chip.eager_s * (c.sums[:, 4] > 0)
    gpu = gpu + (chip.link_s + chip.link_token_s * c.sums[:, 0])
    host = chip.host_s + chip.host_sequence_s * c.sequences
    return np.where(c.sequences > 0, np.maximum(gpu, host) if chip.overlapped else gpu + host, 0.0)


def joules(chip: Chip, c: Coalitions, took: F64, clock: float, kelvin: float) -> F64:
    """Joules of coalitions whose duration is known."""
    volts2 = (chip.voltage_floor + (1 - chip.voltage_floor) * clock) ** 2
    static = chip.static_w * (1 + chip.leak_per_k * kelvin) * (0.5 + 0.5 * clock * volts2)
    drawn: F64 = volts2 * c.joules[0] + c.joules[1]
    if chip.bow:
        load = drawn / np.maximum(took, 1e-9) / (chip.limit_w - chip.static_w)
        drawn = drawn * (1 + chip.bow * np.maximum(1 - load, 0.0))
    return static * took + drawn


def clock_of(chip: Chip, one: Coalitions, kelvin: float) -> float:
    """The clock at which a step fits under the limit, after droop in proportion to power; bisection over power."""

    def power(clock: float) -> float:
        took = seconds(chip, one, clock)
        return float((joules(chip, one, took, clock, kelvin) / took)[0])

    top = 1.0 - chip.droop * min(power(1.0) / chip.limit_w, 1.0)
    if power(top) <= chip.limit_w:
        return top
    low, high = 0.3, top
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) <= chip.limit_w else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step took and drew, and which joules each sequence caused."""

    seconds: float
    joules: float
    shares: F64


def drawn(chip: Chip, step: Step, kelvin: float, rng: np.random.Generator, clock: float | None = None) -> Drawn:
    """A step at a temperature (and clock, None: what the limit leaves). Shares: each sequence's Shapley value in the
    game "what would this step have drawn with only these in it", at this step's clock and temperature, averaged over
    random orders and their reverses (sums are exact in each)."""
    n = len(step.tokens)
    columns = step.columns
    order = np.argsort(rng.random((ORDERS, n)), axis=1) if n > 1 else np.zeros((1, 1), int)
    order = np.concatenate([order, order[:, ::-1]])
    sums = np.cumsum(columns[order], axis=1).reshape(-1, 5)
    count = np.tile(np.arange(1.0, n + 1), len(order))
    all_sums = np.concatenate([sums, [ONE_TOKEN, ONE_PREFILL, columns.sum(0)]])
    every = coalitions(chip, all_sums, np.concatenate([count, [1.0, 1.0, n]]))
    whole = every.where(slice(-1, None))
    clock = clock_of(chip, whole, kelvin) if clock is None else clock
    took = seconds(chip, every, clock)
    worth = joules(chip, every, took, clock, kelvin)
    # what any one sequence brings about, and any one prefill, is split equally: exact, and what is left is smooth
    any_one = float(worth[-3])
    any_prefill = max(float(worth[-2]) - any_one, 0.0)
    smooth = (worth[:-3] - any_one - any_prefill * (sums[:, 4] > 0)).reshape(order.shape)
    out = np.bincount(order.ravel(), np.diff(smooth, axis=1, prepend=0.0).ravel(), n) / len(order)
    shares = out + any_one / n + any_prefill * step.prefills / max(step.prefills.sum(), 1)
    return Drawn(float(took[-1]), float(worth[-1]), shares)
