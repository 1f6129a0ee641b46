"""Sources that need no hardware: the embedded engine's page and the replay of a journal."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from energy.recorded import recorded_file, recorded_sources
from energy.sampler import Sampler
from energy.simulated import simulated_sources
from energy.summary import summarise
from traces.errors import UserError
from traces.journal import JournalWriter
from traces.records import PowerSample, SensorInfo
from traces.status import StatusPage, StatusReader

MS = 1_000_000
S = 1_000_000_000


def page(path: Path | None = None) -> StatusPage:
    sensors = ("sim.gpu0.energy", "sim.gpu0.power", "sim.hbm0.energy", "sim.cpu0.energy")
    slots = ("value", "t_ns", "period_ns", "resolution", "wraps_at")
    made = StatusPage([f"{s}.{slot}" for s in sensors for slot in slots] + ["running"], path)
    for sensor in sensors:
        made.set_group({f"{sensor}.period_ns": 100 * MS, f"{sensor}.resolution": 1000, f"{sensor}.wraps_at": 0})
    made.set("sim.cpu0.energy.wraps_at", 262_143_328_850)
    return made


@pytest.mark.parametrize("in_file", [False, True])
def test_the_engines_page_becomes_sensors(tmp_path: Path, in_file: bool) -> None:
    made = page(tmp_path / "engine.status" if in_file else None)
    sources = simulated_sources(StatusReader(tmp_path / "engine.status" if in_file else made))
    infos = {i.source: i for s in sources for i in s.infos}
    assert {(i.domain, i.device, i.reading, i.unit, i.wraps_at) for i in infos.values()} == {
        ("gpu", "gpu0", "counter", "uJ", None),
        ("gpu", "gpu0", "gauge", "mW", None),
        ("hbm", "hbm0", "counter", "uJ", None),
        ("cpu", "cpu0", "counter", "uJ", 262_143_328_850),
    }
    assert all(i.simulated and i.period_ns == 100 * MS for i in infos.values())
    assert {s.poll_ns for s in sources} == {20 * MS}
    made.set_group({"sim.gpu0.energy.value": 42_000, "sim.gpu0.energy.t_ns": 7})
    [gpu] = [s for s in sources if s.name == "sim.gpu0.energy"]
    assert gpu.read(lambda: 10) == [PowerSample("sim.gpu0.energy", 10, 10, 42_000)]


def test_a_page_that_is_not_fed_is_missing_never_zero() -> None:
    made = page()
    source = simulated_sources(StatusReader(made))[0]
    [unborn] = source.read(lambda: 10)
    made.set_group({"sim.gpu0.energy.value": 5, "sim.gpu0.energy.t_ns": S})
    [fresh] = source.read(lambda: 2 * S)
    [dead] = source.read(lambda: 4 * S)
    assert isinstance(unborn, PowerSample)
    assert isinstance(fresh, PowerSample)
    assert isinstance(dead, PowerSample)
    assert (unborn.value, fresh.value, dead.value) == (None, 5, None)
    assert "not updated this sensor for 3.0 s" in (dead.why or "")


def record(value: Callable[[int], int], until: int, step: int = 20 * MS) -> list[Any]:
    rows: list[Any] = [asdict(SensorInfo("a.energy", "gpu", "gpu0", "counter", "uJ", 100 * MS, 1000))]
    return rows + [asdict(PowerSample("a.energy", t, t + MS, value(t))) for t in range(0, until, step)]


def test_a_recording_replays_to_the_same_energy() -> None:
    rows = record(lambda t: t // 10_000, 5 * S)
    again: list[Any] = []
    sampler = Sampler(recorded_sources(rows, start_ns=50 * S), again.append)
    now = 50 * S
    while now < 55 * S:
        now = sampler.tick(now)
    first, second = summarise(rows), summarise(asdict(r) for r in again)
    assert second.sensors["a.energy"].failed == 0
    assert second.sensors["a.energy"].energy_uj == first.sensors["a.energy"].energy_uj == 498_000


def test_a_recorded_h100_replays_through_the_sampler_to_its_own_joules(data: Path) -> None:
    """Eight minutes of a real counter, read at 20 ms again in virtual time: the same energy, no gap, no reset."""
    with gzip.open(data / "power" / "h100-vllm-llama8b" / "power.csv.gz", "rt") as file:
        table = list(csv.DictReader(file))
    rows: list[Any] = [asdict(SensorInfo("h100.energy", "gpu", "gpu0", "counter", "uJ", 100 * MS, 1000))]
    rows += [
        asdict(PowerSample("h100.energy", int(r["t0_ns"]), int(r["t1_ns"]), int(r["energy_mj"]) * 1000)) for r in table
    ]
    again: list[Any] = []
    start = int(table[0]["t1_ns"])
    sampler = Sampler(recorded_sources(rows, start_ns=start), again.append)
    now = start
    while now <= int(table[-1]["t1_ns"]):
        now = sampler.tick(now)
    replayed = summarise(asdict(r) for r in again).sensors["h100.energy"]
    drawn = (int(table[-1]["energy_mj"]) - int(table[0]["energy_mj"])) * 1000
    assert (replayed.failed, replayed.gaps, replayed.resets) == (0, 0, 0)
    assert replayed.energy_uj is not None
    assert 0 <= drawn - replayed.energy_uj <= 75_000_000, "all but the last update (100 ms at 700 W)"
    assert len(table) > 10_000


def test_before_and_after_the_recording_there_is_no_value() -> None:
    [source] = recorded_sources(record(lambda t: 1, S), start_ns=10 * S)
    ask = lambda t: source.read(lambda: t)[0]  # noqa: E731
    early, within, late = ask(9 * S), ask(10 * S + 500 * MS), ask(12 * S)
    assert isinstance(early, PowerSample)
    assert isinstance(within, PowerSample)
    assert isinstance(late, PowerSample)
    assert (early.value, within.value, late.value) == (None, 1, None)
    assert late.why == "the recording has ended"


def test_a_file_without_sensors_is_refused(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "power.jsonl", "power", mono_ns=0, wall_ns=0)
    writer.close()
    with pytest.raises(UserError, match="no recorded sensor"):
        recorded_file(tmp_path / "power.jsonl")
