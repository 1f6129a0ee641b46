"""A chip and a model: seconds and joules of a step from rooflines per kernel class, and each sequence's Shapley value.

A step is matrix products (FLOPs against weights read, tile and graph padding), attention of prefills (FLOPs), attention
of decodes (KV bytes), the output head and sampling, a launch floor, and the host's part. Each class takes a smooth
maximum of its compute and memory time; energy is power while the step lasts plus picojoules per FLOP and byte at the
clock's voltage. Ranges that a seed draws from, fixed before any estimator met them:

- 989 TFLOP/s bf16 and 3.35 TB/s (H100 SXM data sheet); reached: 0.55-0.8 of the FLOPs in large matrix products and
  0.7-0.9 of the bandwidth (a solo decode step of 16 GB of weights takes 6.6 ms on the recorded card: 0.72).
- attention of prefills 0.3-0.6 of the FLOPs (FlashAttention 3 reports 0.35-0.75), decode attention 0.5-0.8 of the
  bandwidth (grouped-query kernels on short contexts).
- 0.35-0.75 pJ/FLOP and 50-110 pJ/byte at board level: recorded plateaus are 674 W at about 650-750 TFLOP/s and 499 W
  at about 2.8-3.0 TB/s of copies, over 125 W idle; HBM3 itself is quoted at 4-7 pJ/bit.
- static power 1.2-1.8 x idle while clocks are up; idle 60-140 W (recorded boards 120-129 W), decaying with 0.3-2 s.
- clock: the power limit 0.85-1.05 x 700 W by clock and voltage (floor 0.5-0.9), 0-6 % of droop below it.
- leakage 0.2-0.6 %/K of static power, 0.03-0.07 K/W, time constant 4-40 s (recorded: 36 -> 59 C under 550 W more).
- host: 0.4-4 ms per step plus 2-15 us per sequence, overlapped or not (asynchronous scheduling is an option of vLLM),
  eager launches (no graph) when a prefill is in the step: 0.5-3 ms more.
May not know: requests' stamps, sensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
PEAK_FLOPS, PEAK_BYTES, LIMIT_W = 989e12, 3.35e12, 700.0
ORDERS = 6
"""random orders of arrival per step, each with its reverse, that the Shapley value is averaged over"""
ONE_TOKEN, ONE_PREFILL = np.array([1.0, 0.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0, 1.0])
GRAPHS = np.array([1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)])


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder with grouped-query attention: parameters outside embedding and head, layers, width, KV width,
    vocabulary; 2 bytes each."""

    dense: float
    layers: int
    width: int
    kv_width: int
    vocabulary: int

    @property
    def kv_bytes(self) -> float:
        """KV bytes per token of context."""
        return 4.0 * self.layers * self.kv_width


SHAPES = (
    Shape(6.98e9, 32, 4096, 1024, 128_256),
    Shape(13.2e9, 40, 5120, 1024, 152_064),
    Shape(2.8e9, 28, 3072, 1024, 128_256),
)


@dataclass(frozen=True, slots=True)
class Chip:
    """Everything a seed draws."""

    shape: Shape
    gemm_flops: float
    bytes_per_s: float
    prefill_attention_flops: float
    decode_attention_bytes: float
    sharpness: float
    pj_flop: float
    pj_byte: float
    static_w: float
    idle_w: float
    cool_s: float
    limit_w: float
    droop: float
    voltage_floor: float
    leak_per_k: float
    kelvin_per_w: float
    thermal_s: float
    host_s: float
    host_sequence_s: float
    eager_s: float
    sampling_s: float
    overlapped: bool
    tile: int


def chip(seed: int) -> Chip:
    """A board and model drawn from the ranges above."""
    rng = np.random.default_rng([seed, 71])
    u = rng.uniform
    idle = u(60, 140)
    return Chip(
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        gemm_flops=PEAK_FLOPS * u(0.55, 0.8),
        bytes_per_s=PEAK_BYTES * u(0.7, 0.9),
        prefill_attention_flops=PEAK_FLOPS * u(0.3, 0.6),
        decode_attention_bytes=PEAK_BYTES * u(0.5, 0.8),
        sharpness=u(3, 8),
        pj_flop=u(0.35, 0.75) * 1e-12,
        pj_byte=u(50, 110) * 1e-12,
        static_w=idle * u(1.2, 1.8),
        idle_w=idle,
        cool_s=u(0.3, 2.0),
        limit_w=LIMIT_W * u(0.85, 1.05),
        droop=u(0, 0.06),
        voltage_floor=u(0.5, 0.9),
        leak_per_k=u(0.002, 0.006),
        kelvin_per_w=u(0.03, 0.07),
        thermal_s=u(4, 40),
        host_s=u(0.4e-3, 4e-3),
        host_sequence_s=u(2e-6, 15e-6),
        eager_s=u(0.5e-3, 3e-3),
        sampling_s=u(1e-6, 8e-6),
        overlapped=bool(rng.random() < 0.6),
        tile=int(rng.choice([32, 64, 128])),
    )


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


def work(chip: Chip, sums: F64) -> tuple[F64, F64, F64]:
    """(compute seconds at full clock, memory and host seconds, joules of FLOPs and bytes apart) of coalitions.

    sums: (..., 5) sums of Step.columns over a coalition; nothing at all costs nothing. Returns seconds (..., 3) of the
    classes' compute, seconds (..., 3) of their memory, joules (..., 2)."""
    tokens, attention, kv, samples, prefills = np.moveaxis(sums, -1, 0)
    some = tokens > 0
    graph = GRAPHS[np.minimum(np.searchsorted(GRAPHS, tokens), len(GRAPHS) - 1)]
    tiled = np.ceil(tokens / chip.tile) * chip.tile
    rows = np.where((prefills <= 0) & (tokens <= GRAPHS[-1]), graph, 0.5 * tokens + 0.5 * tiled) * some
    s = chip.shape
    gemm_flops, gemm_bytes = 2.0 * s.dense * rows, (2.0 * s.dense + 24.0 * s.layers * s.width * rows) * some
    head_flops = 2.0 * s.width * s.vocabulary * samples
    head_bytes = 2.0 * s.width * s.vocabulary * (samples > 0) + 6.0 * s.vocabulary * samples
    compute = np.stack(
        [(gemm_flops + head_flops) / chip.gemm_flops, attention / chip.prefill_attention_flops, 0.02 * kv / 3e12], -1
    )
    kv_write = tokens * s.kv_bytes
    kv_s = (kv + kv_write) / chip.decode_attention_bytes
    memory = np.stack([(gemm_bytes + head_bytes) / chip.bytes_per_s, 0.05 * attention / PEAK_FLOPS, kv_s], -1)
    flops = gemm_flops + head_flops + 1.3 * attention
    moved = gemm_bytes + head_bytes + kv + kv_write
    joules = np.stack([chip.pj_flop * flops, chip.pj_byte * moved], -1)
    return compute, memory, joules


def seconds(chip: Chip, sums: F64, sequences: F64, clock: float) -> F64:
    """Duration of coalitions at a clock: each class at its roofline, launches and the host's part."""
    compute, memory, _ = work(chip, sums)
    p = chip.sharpness
    gpu = (((compute / clock) ** p + memory**p) ** (1 / p)).sum(-1)
    prefills = sums[..., 4]
    gpu = gpu + chip.sampling_s * sums[..., 3] + chip.eager_s * (prefills > 0)
    host = chip.host_s + chip.host_sequence_s * sequences
    return np.where(sequences > 0, np.maximum(gpu, host) if chip.overlapped else gpu + host, 0.0)


def joules(chip: Chip, sums: F64, took: F64, clock: float, kelvin: float) -> F64:
    """Joules of coalitions whose duration is known."""
    _, _, dynamic = work(chip, sums)
    volts2 = (chip.voltage_floor + (1 - chip.voltage_floor) * clock) ** 2
    static = chip.static_w * (1 + chip.leak_per_k * kelvin) * (0.5 + 0.5 * clock * volts2)
    return static * took + volts2 * dynamic[..., 0] + dynamic[..., 1]


def clock_of(chip: Chip, sums: F64, sequences: F64, kelvin: float) -> float:
    """The clock at which a step fits under the limit, after droop in proportion to power; bisection over power."""

    def power(clock: float) -> float:
        took = seconds(chip, sums, sequences, clock)
        return float(joules(chip, sums, took, clock, kelvin) / took)

    top = 1.0 - chip.droop * min(power(1.0) / chip.limit_w, 1.0)
    if power(top) <= chip.limit_w:
        return top
    low, high = 0.3, top
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) <= chip.limit_w else (low, middle)
    return low


def caused(chip: Chip, step: Step, clock: float, kelvin: float, rng: np.random.Generator) -> F64:
    """Joules of each sequence: its Shapley value in the game "what would this step have drawn with only these in it",
    at this step's clock and temperature, averaged over random orders and their reverses (sums are exact in each)."""
    n = len(step.tokens)
    columns = step.columns
    if n == 1:
        one = np.ones(1)
        return joules(chip, columns, seconds(chip, columns, one, clock), clock, kelvin)

    def worth(sums: F64, present: F64) -> F64:
        return joules(chip, sums, seconds(chip, sums, present, clock), clock, kelvin)

    # what any one sequence brings about, and any one prefill, is split equally: exact, and what is left is smooth
    any_one = float(worth(ONE_TOKEN, np.ones(())))
    any_prefill = max(float(worth(ONE_PREFILL, np.ones(()))) - any_one, 0.0)
    order = np.argsort(rng.random((ORDERS, n)), axis=1)
    order = np.concatenate([order, order[:, ::-1]])
    sums = np.cumsum(columns[order], axis=1)
    present = np.broadcast_to(np.arange(1.0, n + 1), order.shape)
    smooth = worth(sums, present) - any_one - any_prefill * (sums[..., 4] > 0)
    out = np.bincount(order.ravel(), np.diff(smooth, axis=1, prepend=0.0).ravel(), n) / len(order)
    shared: F64 = out + any_one / n + any_prefill * step.prefills / max(step.prefills.sum(), 1)
    return shared
