"""The truth of a step against the definition of the Shapley value, and its ledger in integers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.embedded.power import GPU, Batch, Cost, StepModel
from engines.embedded.profiles import COMPONENTS, Profile, load_profile
from engines.embedded.truth import Account, Truth

BASE = load_profile("h100-llama8b")


def bent(profile: Profile) -> Profile:
    """Every non-linearity on: padding, squared context, leakage, droop."""
    gpu = replace(profile.power["gpu"], padding_j=0.004, context2_j=1e-11)
    return replace(
        profile,
        graph_sizes=(1, 2, 4, 8),
        droop=0.2,
        power={**profile.power, "gpu": gpu},
        thermal=replace(profile.thermal, leak_per_c=0.004),
    )


Sequence = tuple[int, int]
"""(tokens, context); one token = a decode"""


def batch_of(players: list[Sequence], width: int = 1) -> Batch:
    """width: tokens that a decode computes, drafts included."""
    decodes = [c for n, c in players if n == 1]
    return Batch(len(decodes), sum(decodes), tuple(p for p in players if p[0] > 1), width)


def worth(
    model: StepModel, players: list[Sequence], clock: float, celsius: float, stretch: float, width: int = 1
) -> np.ndarray:
    if not players:
        return np.zeros(len(COMPONENTS))
    cost = model.cost_at(batch_of(players, width), clock, celsius)
    return cost.static_w * cost.seconds * stretch + cost.dynamic_j


def cost_seconds(model: StepModel, players: list[Sequence], clock: float, celsius: float, width: int = 1) -> float:
    return model.cost_at(batch_of(players, width), clock, celsius).seconds


def by_definition(
    model: StepModel, players: list[Sequence], clock: float, celsius: float, stretch: float, width: int = 1
) -> list[np.ndarray]:
    n = len(players)
    out = []
    for i in range(n):
        others = [p for k, p in enumerate(players) if k != i]
        share = np.zeros(len(COMPONENTS))
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for met in combinations(others, size):
                gain = worth(model, [*met, players[i]], clock, celsius, stretch, width)
                share += weight * (gain - worth(model, list(met), clock, celsius, stretch, width))
        out.append(share)
    return out


def settled(
    model: StepModel, players: list[Sequence], stretch: float, width: int = 1
) -> tuple[list[np.ndarray], Truth, float, float]:
    truth = Truth(model)
    truth.idle_until(0)
    accounts = [truth.open() for _ in players]
    for account, (n, context) in zip(accounts, players):
        if n == 1:
            truth.join_decode(account, -context)  # context = step 0 - offset
    batch = batch_of(players, width)
    celsius = truth.celsius
    cost = model.cost(batch, celsius)
    truth.begin(cost, 0)
    chunks: list[Account] = [a for a, p in zip(accounts, players) if p[0] > 1]
    truth.settle(batch, cost, chunks, 0, 0, round(cost.seconds * stretch * 1e9))
    for account in accounts:
        if account.since is not None:
            truth.leave_decode(account)
    return [a.active for a in accounts], truth, cost.rates.clock, celsius


players = st.lists(
    st.tuples(st.one_of(st.just(1), st.integers(2, 700)), st.integers(1, 20_000)), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(players, st.sampled_from([1.0, 1.7]), st.booleans(), st.sampled_from([1, 1, 5]))
def test_each_share_is_the_shapley_value(players: list[Sequence], stretch: float, bend: bool, width: int) -> None:
    model = StepModel(bent(BASE) if bend else BASE)
    shares, truth, clock, celsius = settled(model, players, stretch, width)
    for got, expected in zip(shares, by_definition(model, players, clock, celsius, stretch, width)):
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert sum(shares) == pytest.approx(
        truth.energy_j(round(cost_seconds(model, players, clock, celsius, width) * stretch * 1e9)), rel=1e-9
    )


def test_equal_sequences_pay_equally_and_own_never_exceeds_active() -> None:
    model = StepModel(BASE)
    shares, _, _, _ = settled(model, [(1, 500), (1, 500), (2048, 0), (2048, 0), (64, 10), (64, 10)], 1.0)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        assert shares[a] == pytest.approx(shares[b])


def test_energies_of_steps_add_up_over_steps() -> None:
    """Additivity: two steps settled one after the other = the sum of each settled alone."""
    model = StepModel(replace(BASE, thermal=replace(BASE.thermal, leak_per_c=0.0)))
    one, _, _, _ = settled(model, [(1, 100), (512, 0)], 1.0)
    truth = Truth(model)
    truth.idle_until(0)
    a, b = truth.open(), truth.open()
    for step in range(2):
        truth.join_decode(a, step - 100)
        batch = batch_of([(1, 100), (512, 0)])
        cost = model.cost(batch, truth.celsius)
        start = step * 10**9
        truth.settle(batch, cost, [b], step, start, start + round(cost.seconds * 1e9))
        truth.leave_decode(a)
    assert a.active == pytest.approx(2 * one[0], rel=1e-6)
    assert b.active == pytest.approx(2 * one[1], rel=1e-6)


def power_w(cost: Cost) -> float:
    return float(cost.static_w[GPU] + cost.dynamic_j[GPU] / cost.seconds)


def test_a_lower_cap_lowers_the_clock_and_the_power_and_costs_time() -> None:
    batch = Batch(8, 4_000, ((4096, 0),))
    before = StepModel(replace(BASE, max_power_w=5000.0)).cost(batch, 40.0)
    assert not before.throttled
    for cap in (600, 500, 400, 300):
        capped = StepModel(BASE, power_cap_w=cap).cost(batch, 40.0)
        assert capped.throttled
        assert power_w(capped) <= cap
        assert capped.rates.clock < before.rates.clock
        assert capped.seconds > before.seconds
        before = capped


def test_the_cap_takes_the_highest_clock_that_fits() -> None:
    model = StepModel(BASE, power_cap_w=450)
    batch = Batch(0, 0, ((8192, 0),))
    chosen = model.cost(batch, 40.0)
    step = BASE.sm_step_mhz / BASE.max_sm_mhz
    assert power_w(model.cost_at(batch, min(1.0, chosen.rates.clock + step), 40.0)) > 450


def test_temperature_rises_under_load_and_raises_idle_power() -> None:
    model = StepModel(bent(BASE))
    truth = Truth(model)
    truth.idle_until(0)
    cold = truth.celsius
    batch = Batch(0, 0, ((8192, 0),))
    t = 0
    for i in range(200):
        cost = model.cost(batch, truth.celsius)
        end = t + round(cost.seconds * 1e9)
        truth.settle(batch, cost, [truth.open()], i, t, end)
        t = end
    hot = truth.celsius
    assert hot > cold + 5
    first = truth.energy_j(t + 10**9) - truth.energy_j(t)
    later = truth.energy_j(t + 201 * 10**9) - truth.energy_j(t + 200 * 10**9)
    assert first[0] > later[0] > 0
    assert truth.celsius == pytest.approx(cold, abs=1.0)


def test_the_timeline_is_continuous_through_a_step_in_flight() -> None:
    model = StepModel(BASE)
    truth = Truth(model)
    truth.idle_until(0)
    cost = model.cost(Batch(4, 1000, ()), truth.celsius)
    truth.begin(cost, 10**9)
    end = 10**9 + round(cost.seconds * 1.5e9)
    provisional = truth.energy_j(end)
    truth.settle(Batch(4, 1000, ()), cost, [], 0, 10**9, end)
    assert truth.energy_j(end) == pytest.approx(provisional, rel=1e-9)
    times = np.linspace(0, end, 50).astype(int)
    energies = [truth.energy_j(int(t))[0] for t in times]
    assert all(b >= a for a, b in pairwise(energies))
