"""What the simulated sensors show: period, lag, windows, wraps; and that a counter never runs backwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.embedded import drive
from engines.embedded.core import EngineCore
from engines.embedded.profiles import COMPONENTS, Sensing, load_profile
from engines.embedded.sensors import MODES, Mode, SimulatedSensors
from engines.embedded.types import EngineRequest, Limits

PROFILE = load_profile("h100-llama8b")
S = 10**9


class Square:
    """A replica that draws high_w in the first `on_ns` of each period and low_w in the rest (all components alike)."""

    gpus = 1

    def __init__(self, high_w: float, low_w: float, on_ns: int, period_ns: int) -> None:
        self.high_w, self.low_w, self.on_ns, self.period_ns = high_w, low_w, on_ns, period_ns

    @property
    def energy(self) -> Square:
        return self

    def energy_j(self, t_ns: int) -> np.ndarray:
        whole, part = divmod(t_ns, self.period_ns)
        on = whole * self.on_ns + min(part, self.on_ns)
        return np.full(len(COMPONENTS), (on * self.high_w + (t_ns - on) * self.low_w) / 1e9)


def shown(sensors: SimulatedSensors, truth: Square, name: str, seconds: int, poll_ns: int = 20_000_000) -> np.ndarray:
    i = sensors.names.index(name)
    out = []
    for t in range(10 * S, (10 + seconds) * S, poll_ns):
        sensors.advance(t, truth)
        out.append((t, sensors.values()[i]))
    return np.array(out)


@pytest.mark.parametrize("mode", MODES)
def test_counters_never_run_backwards_and_average_right_on_a_plateau(mode: Mode) -> None:
    rows = shown(SimulatedSensors(PROFILE, 3, mode=mode), Square(300, 300, 1, 2), "sim.gpu0.energy", 20)
    assert (np.diff(rows[:, 1]) >= 0).all()
    watts = (rows[-1, 1] - rows[0, 1]) / (rows[-1, 0] - rows[0, 0]) * 1000
    assert watts == pytest.approx(300, rel=0.01)


def test_a_duty_cycled_counter_is_fooled_by_periodic_work_and_a_continuous_one_is_not() -> None:
    wave = Square(700, 100, 25_000_000, 100_000_000)
    mean = {}
    for mode in MODES:
        rows = shown(SimulatedSensors(PROFILE, 3, mode=mode), wave, "sim.gpu0.energy", 20)
        mean[mode] = (rows[-1, 1] - rows[0, 1]) / (rows[-1, 0] - rows[0, 0]) * 1000
    assert mean["counter"] == pytest.approx(250, rel=0.02)
    assert abs(mean["duty-cycled"] - 250) > 60
    assert mean["average-1s"] == pytest.approx(250, rel=0.02)


def test_updates_come_with_the_period_and_show_the_past() -> None:
    sensing = replace(PROFILE.sensing, jitter_ns=0)
    step = Square(600, 100, 15 * S, 1000 * S)
    rows = shown(SimulatedSensors(replace(PROFILE, sensing=sensing), 1), step, "sim.gpu0.energy", 8, 1_000_000)
    edges = rows[1:][np.diff(rows[:, 1]) > 0]
    assert set(np.diff(edges[:, 0])) == {100_000_000}
    increments = np.diff(edges[:, 1])
    low = edges[1:][increments < 40_000_000]  # an update is full of the lower power only when it is past the lag
    assert low[0, 0] - 15 * S > sensing.lag_ns


def test_the_host_counters_wrap_where_they_say() -> None:
    sensors = SimulatedSensors(PROFILE, 0)
    rows = shown(sensors, Square(60_000, 60_000, 1, 2), "sim.cpu0.energy", 12)
    wraps_at = sensors.slots()["sim.cpu0.energy.wraps_at"]
    falls = np.diff(rows[:, 1])
    assert (falls < 0).sum() >= 1
    assert np.allclose(falls % wraps_at, 60_000 * 20_000, rtol=0.1)


def test_the_page_names_every_slot_it_fills() -> None:
    sensors = SimulatedSensors(PROFILE, 0, replicas=2, tensor_parallel=2)
    assert set(sensors.slot_names()) == set(sensors.slots())
    assert {"sim.gpu3.energy.value", "sim.hbm3.energy.t_ns", "sim.dram0.energy.period_ns"} <= set(sensors.slots())


def test_perfect_sensors_show_the_truth_of_a_run() -> None:
    perfect = Sensing(period_ns=1_000_000, lag_ns=0, resolution_uj=1, jitter_ns=0, power_noise=0)
    profile = replace(PROFILE, sensing=perfect)
    sensors = SimulatedSensors(profile, 1)
    core = EngineCore(profile, Limits())
    load = [(i * S // 5, EngineRequest(f"r{i}", np.arange(500) + i, 60, ignore_eos=True)) for i in range(10)]
    result = drive.run(core, load, sensors=sensors, lead_ns=S, tail_ns=S)
    counter = result.sensors["sim.gpu0.energy"].values
    span = result.totals[0].total_uj * (len(counter) - 1) * 20_000_000 / (result.t1_ns - result.t0_ns)
    assert counter[-1] - counter[0] == pytest.approx(span, rel=0.02)
    again = drive.run(EngineCore(profile, Limits()), load, sensors=SimulatedSensors(profile, 1), lead_ns=S, tail_ns=S)
    assert (again.sensors["sim.gpu0.energy"].values == counter).all()


def test_tensor_parallel_gpus_share_the_group_and_replicas_the_host() -> None:
    limits = Limits(tensor_parallel_size=2, replicas=2)
    cores = [EngineCore(PROFILE, limits, replica=r) for r in range(2)]
    sensors = SimulatedSensors(PROFILE, 5, replicas=2, tensor_parallel=2)
    sensors.advance(0, *cores)
    before = dict(zip(sensors.names, sensors.values()))
    sensors.advance(10 * S, *cores)
    drawn = {name: value - before[name] for name, value in zip(sensors.names, sensors.values())}
    idle = PROFILE.power["gpu"].idle_w * 10e6
    for g in range(4):
        assert drawn[f"sim.gpu{g}.energy"] == pytest.approx(idle, rel=0.03)
    assert drawn["sim.cpu0.energy"] == pytest.approx(PROFILE.power["cpu"].idle_w * 10e6, rel=0.01)
