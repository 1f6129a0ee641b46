"""The two engines of truth are what they say: one linear, one not, each drawn by seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from engines.embedded.power import Batch, StepModel
from engines.embedded.profiles import load_profile, profile_names
from engines.embedded.variants import GRAPH_SIZES, independent, linear

BASE = load_profile("h100-llama8b")
BATCHES = [
    Batch(d, d * c, tuple([(n, c)] * k)) for d in (0, 3, 40, 200) for c in (10, 3000) for n, k in ((300, 1), (4000, 2))
]


def energy(model: StepModel, batch: Batch, celsius: float = 35.0) -> float:
    cost = model.cost(batch, celsius)
    return float(cost.static_w[0] * cost.seconds + cost.dynamic_j[0])


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_linear_is_linear_in_time_steps_tokens_and_contexts(seed: int | None) -> None:
    model = StepModel(linear(BASE, seed))
    rows = []
    for b in BATCHES:
        rows.append((model.cost(b, 35.0).seconds, 1, b.tokens - b.decodes, b.decodes, b.context, b.attention))
    x, y = np.array(rows, float), np.array([energy(model, b) for b in BATCHES])
    coefficients, *_ = np.linalg.lstsq(x / x.max(axis=0), y, rcond=None)
    assert (x / x.max(axis=0)) @ coefficients == pytest.approx(y, rel=1e-9)
    assert all(model.cost(b, 35.0).rates.clock == 1.0 for b in BATCHES)
    assert energy(model, BATCHES[0], 70.0) == energy(model, BATCHES[0], 30.0)


def test_linear_prefill_is_as_slow_and_as_dear_as_the_limited_one() -> None:
    chunk = Batch(0, 0, ((8192, 0),))
    limited, free = StepModel(BASE), StepModel(linear(BASE))
    assert free.cost(chunk, 35.0).seconds == pytest.approx(limited.cost(chunk, 35.0).seconds, rel=0.01)
    assert energy(free, chunk) == pytest.approx(energy(limited, chunk), rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_independent_bends(seed: int) -> None:
    profile = independent(BASE, seed)
    model = StepModel(profile)
    assert profile == independent(BASE, seed) != independent(BASE, seed + 1)
    assert profile.graph_sizes == GRAPH_SIZES
    prefill, decode = Batch(0, 0, ((8192, 0),)), Batch(4, 400, ())
    assert model.cost(prefill, 35.0).rates.clock < model.cost(decode, 35.0).rates.clock
    assert energy(model, decode, 60.0) > energy(model, decode, 35.0)
    padded, full = Batch(17, 1700, ()), Batch(24, 1700, ())
    waste = model.cost(padded, 35.0).dynamic_j[0] - 17 * model.cost(full, 35.0).dynamic_j[0] / 24
    assert waste > 0
    near = energy(model, Batch(32, 100_000, ())) - energy(model, Batch(32, 0, ()))
    far = energy(model, Batch(32, 1_000_000, ())) - energy(model, Batch(32, 900_000, ()))
    assert far >= near


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_say_where_their_constants_come_from(name: str) -> None:
    profile = load_profile(name)
    assert {"times", "power.gpu", "power.cpu", "power.dram", "max_power_w", "sensing"} <= set(profile.provenance)
    assert profile.kv_blocks(16, 1) > 100
    hbm, gpu = profile.power["hbm"], profile.power["gpu"]
    assert hbm.idle_w < gpu.idle_w
    assert hbm.weights_j <= gpu.weights_j and hbm.context_j <= gpu.context_j
