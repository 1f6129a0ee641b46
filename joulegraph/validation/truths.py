"""Two engines of truth. linear: the estimator's family (no droop, no padding, no leakage, no quadratic terms).
independent: non-linearities drawn per seed from ranges that cited measurements give, fixed before any tuning.

Ranges of the independent engine, with their sources:
- clock droop with power 0-8 %: H100 SXM under load runs 1.98 -> ~1.8 GHz towards its power limit (recorded here:
  sm_mhz in the H100 recordings; vendor boost tables).
- graph padding: decode batches padded to captured sizes 1, 2, 4, 8, then multiples of 8 to 256 (vLLM's default list);
  a padded token computes like a real one (share of a decode token's energy 30-100 %).
- leakage 0.2-0.8 % of static power per K, 5-25 K/100 W warm-up, time constant 10-60 s (published GPU thermal studies:
  leakage 10-20 % over 40 K).
- attention: energy per prompt token x context 0-2.5e-7 J and 3e-10-1e-9 s (FlashAttention 3 at 300-700 TFLOP/s bf16).
- memory: energy per context token squared such that at 500k tokens read per step the read costs 0-20 % more.
- static and per-token constants vary by +-30 %, as boards and models do.
May not know: the estimator.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.embedded.profiles import Profile, load_profile

BASE = "h100-llama8b"
GRAPH_SIZES = (1, 2, 4, *range(8, 257, 8))


def linear(seed: int) -> Profile:
    """A GPU of the estimator's family; constants vary by seed within 20 %."""
    rng = np.random.default_rng([seed, 11])
    return _scaled(_plain(load_profile(BASE)), rng, 0.2)


def independent(seed: int) -> Profile:
    """A GPU with the non-linearities above."""
    rng = np.random.default_rng([seed, 12])
    plain = _scaled(_plain(load_profile(BASE)), rng, 0.3)
    gpu = plain.power["gpu"]
    bent = replace(
        gpu,
        padding_j=gpu.decode_token_j * rng.uniform(0.3, 1.0),
        attention_j=rng.uniform(0, 2.5e-7),
        context2_j=gpu.context_j * rng.uniform(0, 0.2) / 5e5,
    )
    return replace(
        plain,
        name=f"independent-{seed}",
        power={**plain.power, "gpu": bent},
        times=replace(plain.times, attention_s=rng.uniform(3e-10, 1e-9)),
        thermal=replace(
            plain.thermal,
            leak_per_c=rng.uniform(0.002, 0.008),
            c_per_w=rng.uniform(0.05, 0.09),
            tau_s=rng.uniform(10, 60),
        ),
        droop=rng.uniform(0, 0.08),
        graph_sizes=GRAPH_SIZES,
    )


def _plain(base: Profile) -> Profile:
    gpu = replace(base.power["gpu"], padding_j=0.0, context2_j=0.0)
    thermal = replace(base.thermal, leak_per_c=0.0)
    return replace(base, name="linear", power={**base.power, "gpu": gpu}, thermal=thermal, droop=0.0, graph_sizes=())


def _scaled(base: Profile, rng: np.random.Generator, by: float) -> Profile:
    gpu, times = base.power["gpu"], base.times

    def near(x: float) -> float:
        return x * float(rng.uniform(1 - by, 1 + by))

    names = ("idle_w", "busy_w", "weights_j", "prefill_token_j", "decode_token_j", "context_j", "attention_j")
    power = {**base.power, "gpu": replace(gpu, **{n: near(getattr(gpu, n)) for n in names})}
    slow = {n: near(getattr(times, n)) for n in ("overhead_s", "weights_s", "token_s", "context_s")}
    return replace(base, power=power, times=replace(times, **slow))


TRUTHS = {"linear": linear, "independent": independent}
