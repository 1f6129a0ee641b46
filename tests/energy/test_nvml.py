"""NVML sources against the fake card: what each field means, what a refusal becomes, what MIG and Grace change."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from energy.nvml import find
from energy.nvml_calls import WallMap
from energy.source import Found
from traces.records import DeviceState, PowerSample

MS = 1_000_000
now_ns = time.monotonic_ns


def read(found: Found, name: str) -> list[Any]:
    [source] = [s for s in found.sources if s.name == name]
    return source.read(now_ns)


def test_an_h100_shows_counter_instant_memory_ring_and_state(nvml: Any, card: Any) -> None:
    found = find(now_ns, nvml=nvml)
    assert {(i.source, i.domain, i.reading, i.unit) for i in found.infos()} == {
        ("nvml.gpu0.energy", "gpu", "counter", "uJ"),
        ("nvml.gpu0.power", "gpu", "gauge", "mW"),
        ("nvml.hbm0.power", "hbm", "gauge", "mW"),
        ("nvml.gpu0.ring", "gpu", "gauge", "mW"),
    }
    [counter] = read(found, "nvml.gpu0.energy")
    assert counter.value == 2_781_447_000
    assert counter.t0_ns <= counter.t1_ns
    instant, memory = read(found, "nvml.gpu0.power")
    assert (instant.value, memory.value) == (124_777, 43_700)
    assert (memory.source, memory.why) == ("nvml.hbm0.power", None)
    [state] = read(found, "nvml.gpu0")
    assert state == DeviceState("nvml.gpu0", state.t_ns, 1980, 2619, 33, 0)


def test_a_refused_field_is_missing_with_the_drivers_reason(nvml: Any, card: Any) -> None:
    card["HBM_MW"] = -1
    card["RING_RETURN"] = 3
    found = find(now_ns, nvml=nvml)
    why = {m.sensor: m.why for m in found.missing}
    assert why["nvml.hbm0.power"] == "field 185 scope 2: Not Supported"
    assert why["nvml.module0.power"] == "field 186 scope 1: Not Supported"
    assert why["nvml.gpu0.ring"] == "Not Supported"
    assert "nvml.hbm0.power" not in {i.source for i in found.infos()}


def test_a_field_that_fails_later_gives_no_value_and_spares_its_neighbours(nvml: Any, card: Any) -> None:
    found = find(now_ns, nvml=nvml)
    card["HBM_MW"] = -1
    instant, memory = read(found, "nvml.gpu0.power")
    assert (instant.value, memory.value, memory.why) == (124_777, None, "Not Supported")


def test_a_lost_card_is_a_reason_not_a_crash(nvml: Any, card: Any) -> None:
    found = find(now_ns, nvml=nvml)
    card["ENERGY_RETURN"] = 15
    [sample] = read(found, "nvml.gpu0.energy")
    assert (sample.value, sample.why) == (None, "GPU is lost")


def test_the_ring_gives_every_sample_once_at_its_own_instant(nvml: Any, card: Any) -> None:
    card["RING_MS"] = 4
    found = find(now_ns, nvml=nvml)  # a first read is part of finding
    samples: list[PowerSample] = []
    until = now_ns() + 200 * MS
    while now_ns() < until:
        samples += read(found, "nvml.gpu0.ring")
    assert all(sample.value == 124_777 for sample in samples)
    steps = [(b.t0_ns - a.t0_ns) / MS for a, b in pairwise(samples)]
    assert len(samples) > 30
    assert [s for s in steps if s < 2 or abs(s - 4 * round(s / 4)) > 1] == [], "all on the ring's grid, none twice"
    assert abs(samples[-1].t0_ns - until) < 100 * MS


def test_a_fields_older_stamp_widens_the_interval(nvml: Any, card: Any) -> None:
    found = find(now_ns, nvml=nvml)
    card["FIELD_AGE_US"] = 80_000
    before = now_ns()
    instant, _ = read(found, "nvml.gpu0.power")
    assert 70 * MS < before - instant.t0_ns < 90 * MS
    assert instant.t1_ns >= before


def test_mig_is_said_and_the_superchips_module_is_its_own_domain(nvml: Any, card: Any) -> None:
    card["MIG"] = 1
    card["MODULE_MW"] = 300_000
    found = find(now_ns, nvml=nvml)
    assert all("MIG is on" in (i.limits or "") for i in found.infos())
    [module] = [i for i in found.infos() if i.domain == "module"]
    assert "CPU" in module.scope


@pytest.mark.parametrize(("architecture", "period_ms"), [(5, 20), (7, 100), (9, 100)])
def test_the_counter_is_read_once_per_update(nvml: Any, card: Any, architecture: int, period_ms: int) -> None:
    card["ARCHITECTURE"] = architecture
    [counter] = [s for s in find(now_ns, nvml=nvml).sources if s.name == "nvml.gpu0.energy"]
    assert counter.poll_ns == period_ms * MS // 5, "offered a read at every fifth of the period, taken at the edge"


def test_no_gpu_is_a_reason(nvml: Any, card: Any) -> None:
    card["COUNT"] = 0
    found = find(now_ns, nvml=nvml)
    assert not found.sources
    assert found.missing[0].remedy == "check nvidia-smi -L"


def test_two_gpus_are_two_devices(nvml: Any, card: Any) -> None:
    card["COUNT"] = 2
    assert {i.device for i in find(now_ns, nvml=nvml).infos()} == {"gpu0", "gpu1"}


def test_wall_stamps_follow_the_clock_when_it_is_stepped() -> None:
    wall, mono = [10_000_000_000], [500]
    mapped = WallMap(lambda: mono[0], lambda: wall[0])
    assert mapped.mono_ns(10_000_000) == 500
    mono[0], wall[0] = 2_000_000_500, 99_000_000_000  # the wall clock jumps ahead by 87 s
    assert mapped.mono_ns(99_000_000) == 2_000_000_500
