"""Engines of truth for validation, made from a profile: one in the family of linear estimators, one that is not.

linear: no power limit, droop, padding, leakage or quadratic terms, so that energy is a sum of busy time, steps,
tokens and contexts. independent: the real board's mechanisms, each with parameters drawn per seed from the ranges
below, which were fixed from measurements before any estimator was tuned on them.

- power limit: on, at 0.9-1.1 of the profile's, and 0-8 % of clock lost besides, linear in power. Recorded H100:
  1,980 MHz in decode below 580 W, 93-100 % of it at 580-650 W, 1,260-1,560 MHz in prefill at the 700 W limit (reason
  SW_POWER_CAP).
- voltage at clock 0: 0.5-0.9 of that at full clock; fits of the recorded power under throttled clocks are equally
  good (18-19 W rms) from 0.5 to 0.9.
- graph padding: decode batches padded up to 1, 2, 4, 8, 16, ... 256 (step 8), vLLM's captured sizes
  (vllm/config/compilation.py, PR #28315); a padded token costs 30-100 % of a decode token's energy, since its rows
  run through the same matrix products.
- leakage: 0.2-0.6 % of static power per C. Recorded idle H100: 0.45 W/C on two boards at 120-130 W (0.35 %/C).
- warm-up: 0.03-0.06 C/W with a time constant of 3-15 s. Recorded H100: 36 -> 59 C under 550 W more, most of it in 4
  s.
- attention: 3e-10-1e-9 s and 2e-7-5e-7 J per prefill token x context; separate fits of the two recordings and of both
  give 2.8e-10-7.1e-10 s and 2.8e-7-5.2e-7 J.
- memory: reads of 500k context tokens in a step cost 0-20 % more than linear; fits by recording give 4.6-10.4 uJ a
  token.
- constants: energies +-20 %, times +-15 %. Two boards of one kind idle at 119.8 and 128.5 W; separate fits put 13.7
  and 28 mJ on a decode token.
May not know: the estimator.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.embedded.power import Batch, StepModel
from engines.embedded.profiles import Profile

GRAPH_SIZES = (1, 2, 4, *range(8, 257, 8))
_FULL_CHUNK = Batch(0, 0, ((8192, 0),))


def linear(base: Profile, seed: int | None = None) -> Profile:
    """The profile in the linear family; with a seed, its constants vary within 20 % (times 15 %)."""
    flat = unlimited(base)
    gpu = replace(flat.power["gpu"], padding_j=0.0, context2_j=0.0)
    thermal = replace(flat.thermal, leak_per_c=0.0)
    flat = replace(flat, name="linear", power={**flat.power, "gpu": gpu}, thermal=thermal, droop=0.0, graph_sizes=())
    return flat if seed is None else varied(flat, np.random.default_rng([seed, 11]))


def independent(base: Profile, seed: int) -> Profile:
    """A board with every non-linearity of the table above, drawn by seed."""
    rng = np.random.default_rng([seed, 12])
    own = varied(base, rng)
    gpu = own.power["gpu"]
    bent = replace(
        gpu,
        padding_j=gpu.decode_token_j * rng.uniform(0.3, 1.0),
        attention_j=rng.uniform(2e-7, 5e-7),
        context2_j=gpu.context_j * rng.uniform(0, 0.2) / 5e5,
    )
    thermal = replace(
        own.thermal,
        leak_per_c=rng.uniform(0.002, 0.006),
        c_per_w=rng.uniform(0.03, 0.06),
        tau_s=rng.uniform(3, 15),
    )
    return replace(
        own,
        name=f"independent-{seed}",
        max_power_w=own.max_power_w * rng.uniform(0.9, 1.1),
        voltage_floor=rng.uniform(0.5, 0.9),
        droop=rng.uniform(0, 0.08),
        graph_sizes=GRAPH_SIZES,
        power={**own.power, "gpu": bent},
        times=replace(own.times, attention_s=rng.uniform(3e-10, 1e-9)),
        thermal=thermal,
    )


def unlimited(profile: Profile) -> Profile:
    """The same board without a power limit, with prefill as slow and as dear as it is under the limit."""
    cost = StepModel(profile).cost(_FULL_CHUNK, profile.thermal.ref_c)
    clock = cost.rates.clock
    volts2 = (profile.voltage_floor + (1 - profile.voltage_floor) * clock) ** 2
    times, gpu = profile.times, profile.power["gpu"]
    token_s = times.token_s / clock
    # Under the limit busy power is lower, too; without it the token term takes the difference.
    saved_j = gpu.busy_w * (1 - clock * volts2) * token_s
    flat = replace(
        gpu,
        prefill_token_j=max(0.0, gpu.prefill_token_j * volts2 - saved_j),
        attention_j=gpu.attention_j * volts2,
    )
    return replace(
        profile,
        max_power_w=1e6,
        times=replace(times, token_s=token_s, attention_s=times.attention_s / clock),
        power={**profile.power, "gpu": flat},
    )


def varied(base: Profile, rng: np.random.Generator) -> Profile:
    """Constants as another board or model of the kind would have them."""
    gpu, times = base.power["gpu"], base.times
    joules = ("idle_w", "busy_w", "weights_j", "prefill_token_j", "decode_token_j", "context_j", "attention_j")
    seconds = ("overhead_s", "weights_s", "token_s", "context_s")
    power = replace(gpu, **{n: getattr(gpu, n) * float(rng.uniform(0.8, 1.2)) for n in joules})
    slow = replace(times, **{n: getattr(times, n) * float(rng.uniform(0.85, 1.15)) for n in seconds})
    return replace(base, power={**base.power, "gpu": power}, times=slow)
