"""Boards and models that a seed draws: the H100 of the `independent` truth, other cards with other models for `world`.

Ranges, fixed before any estimator or interval met them. Of the H100:

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

Of the others:

- dense 16-bit FLOPs, bandwidth, memory and power limit from the makers' data sheets (CARDS); what of them is reached,
  and how the limit divides into static power, FLOPs and bytes, in the same proportions as on the H100, a tenth wider.
- idle 0.09-0.2 of the limit with HBM (the H100's); 0.1-0.37 with GDDR (an A40 draws 30 W of 300 bare and about 110
  with a model loaded, NVIDIA/open-gpu-kernel-modules issue 874).
- power is up to 0.4 concave in load: data centre power is 2u - u^1.4 of its dynamic range (Fan, Weber, Barroso 2007).
- models as published: Llama 3 8B and 3B, Qwen 2.5 14B and 1.5B, Llama 2 7B (full attention), Mistral 24B, and with
  experts Qwen3 30B-A3B (128, 8 chosen) and Mixtral 8x7B (8, 2 chosen): of experts those weights are read that some
  token hit. Weights of 16, 8 or 4.25 bits, computed at 16 bits.
- two GPUs one time in five: twice everything; two all-reduces a layer, 8-20 us
  each and a bandwidth of 450 GB/s (NVLink 4 data sheet) or 25 (PCIe 4).
May not know: steps, requests, sensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: parameters outside embedding and head, layers, width, KV width, vocabulary; bytes per weight; share of
    parameters that lies in experts, how many there are per layer, how many a token takes."""

    dense: float
    layers: int
    width: int
    kv_width: int
    vocabulary: int
    weight_bytes: float = 2.0
    expert_share: float = 0.0
    experts: int = 1
    chosen: int = 1

    @property
    def kv_bytes(self) -> float:
        """KV bytes per token of context."""
        return 4.0 * self.layers * self.kv_width

    @property
    def computed(self) -> float:
        """Parameters that a token is computed with."""
        return self.dense * (1 - self.expert_share * (1 - self.chosen / self.experts))

    def streamed(self, tokens: F64) -> F64:
        """Parameters read for a step of these tokens: of the experts those that any token hit."""
        hit = 1 - (1 - self.chosen / self.experts) ** np.maximum(tokens, 1.0)
        out: F64 = self.dense * (1 - self.expert_share + self.expert_share * hit)
        return out


SHAPES = (
    Shape(6.98e9, 32, 4096, 1024, 128_256),
    Shape(13.2e9, 40, 5120, 1024, 152_064),
    Shape(2.8e9, 28, 3072, 1024, 128_256),
)
"""of the independent truth"""
MODELS = (
    *SHAPES,
    Shape(6.48e9, 32, 4096, 4096, 32_000),
    Shape(1.31e9, 28, 1536, 256, 151_936),
    Shape(22.2e9, 40, 5120, 1024, 131_072),
    Shape(29.9e9, 48, 2048, 512, 151_936, expert_share=0.94, experts=128, chosen=8),
    Shape(46.4e9, 32, 4096, 1024, 32_000, expert_share=0.97, experts=8, chosen=2),
)
WEIGHT_BYTES = (2.0, 2.0, 1.0, 0.53)


@dataclass(frozen=True, slots=True)
class Card:
    """Data sheet: dense 16-bit FLOP/s, bytes/s, memory (bytes), power limit (W), lowest and highest idle as shares of
    the limit, bytes/s between two of them."""

    flops: float
    bytes_per_s: float
    memory: float
    limit_w: float
    idle: tuple[float, float]
    link: float


CARDS = {
    "a100": Card(312e12, 2.039e12, 80e9, 400, (0.09, 0.2), 300e9),
    "h100": Card(989e12, 3.35e12, 80e9, 700, (0.09, 0.2), 450e9),
    "h200": Card(989e12, 4.8e12, 141e9, 700, (0.09, 0.2), 450e9),
    "l40s": Card(362e12, 0.864e12, 48e9, 350, (0.1, 0.37), 25e9),
    "a10g": Card(70e12, 0.6e12, 24e9, 300, (0.1, 0.37), 25e9),
    "mi300x": Card(1307e12, 5.3e12, 192e9, 750, (0.09, 0.2), 450e9),
}
"""A100 SXM 80 GB, H100 SXM, H200 SXM, L40S, A10G, Instinct MI300X: dense figures where a data sheet gives both"""


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
    peak_flops: float = CARDS["h100"].flops
    bow: float = 0.0
    """what dynamic power gains at no load over full load, as a share"""
    gpus: int = 1
    link_s: float = 0.0
    link_token_s: float = 0.0
    """seconds between two GPUs, per step and per token of it"""


def chip(seed: int) -> Chip:
    """The H100 of the independent truth."""
    rng = np.random.default_rng([seed, 71])
    u, card = rng.uniform, CARDS["h100"]
    idle = u(60, 140)
    return Chip(
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        gemm_flops=card.flops * u(0.55, 0.8),
        bytes_per_s=card.bytes_per_s * u(0.7, 0.9),
        prefill_attention_flops=card.flops * u(0.3, 0.6),
        decode_attention_bytes=card.bytes_per_s * u(0.5, 0.8),
        sharpness=u(3, 8),
        pj_flop=u(0.35, 0.75) * 1e-12,
        pj_byte=u(50, 110) * 1e-12,
        static_w=idle * u(1.2, 1.8),
        idle_w=idle,
        cool_s=u(0.3, 2.0),
        limit_w=card.limit_w * u(0.85, 1.05),
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


def board(name: str, seed: int) -> Chip:
    """One or two of a card with one of the models that fit."""
    rng = np.random.default_rng([seed, 77, sorted(CARDS).index(name)])
    u, card = rng.uniform, CARDS[name]
    gpus = 2 if rng.random() < 0.2 else 1
    shape = _model(card, gpus, rng)
    idle = card.limit_w * u(*card.idle)
    static = min(idle * u(1.1, 1.9), 0.45 * card.limit_w)
    spare = card.limit_w - static
    reached = u(0.45, 0.85)
    base = chip(int(rng.integers(1 << 30)))
    return replace(
        base,
        shape=shape,
        gemm_flops=gpus * card.flops * reached,
        bytes_per_s=gpus * card.bytes_per_s * u(0.6, 0.92),
        prefill_attention_flops=gpus * card.flops * u(0.25, 0.65),
        decode_attention_bytes=gpus * card.bytes_per_s * u(0.4, 0.85),
        sharpness=u(2, 10),
        pj_flop=u(0.4, 1.1) * spare / (0.75 * card.flops),
        pj_byte=u(0.25, 0.65) * spare / (0.85 * card.bytes_per_s),
        static_w=gpus * static,
        idle_w=gpus * idle,
        limit_w=gpus * card.limit_w * u(0.8, 1.05),
        kelvin_per_w=base.kelvin_per_w / gpus,
        peak_flops=gpus * card.flops,
        bow=u(0.0, 0.4),
        gpus=gpus,
        link_s=(gpus - 1) * 2 * shape.layers * u(8e-6, 20e-6),
        link_token_s=(gpus - 1) * 2 * shape.layers * 2 * shape.width / card.link,
    )


def _model(card: Card, gpus: int, rng: np.random.Generator) -> Shape:
    while True:
        shape = MODELS[int(rng.integers(len(MODELS)))]
        shape = replace(shape, weight_bytes=float(rng.choice(WEIGHT_BYTES)))
        if shape.weight_bytes * shape.dense < 0.75 * gpus * card.memory:
            return shape


def kv_tokens(name: str, chip: Chip) -> int:
    """Tokens whose KV fits beside the weights."""
    free = 0.9 * chip.gpus * CARDS[name].memory - chip.shape.weight_bytes * chip.shape.dense
    return int(free / chip.shape.kv_bytes)
