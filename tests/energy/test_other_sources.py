"""The sources few machines have: pyRAPL, perf_event, amdsmi, ipmitool, Redfish, process times; scripted or for real."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from socket import create_server
from threading import Event
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy import amd, node, perf, procs, pyrapl, tdp
from energy.nvml import find as find_nvml
from energy.sampling import FINDERS, find_sources
from traces.errors import UserError
from traces.records import PowerSample, ProcessSample

MS = 1_000_000


def values(source: Any) -> list[int | None]:
    return [r.value for r in source.read(lambda: 1) if isinstance(r, PowerSample)]


class FakePyRapl:
    """pyRAPL's surface as version 0.2.3.1 has it: a factory, two devices, J as floats of uJ per socket, -1 for none."""

    class Device:
        PKG, DRAM = 0, 1

    refuse: ClassVar[dict[int, Exception]] = {}

    class DeviceAPIFactory:
        @staticmethod
        def create_device_api(device: int, sockets: Any) -> Any:
            if device in FakePyRapl.refuse:
                raise FakePyRapl.refuse[device]
            return type("Api", (), {"energy": lambda self: (1000.0 + device, -1, 3000.0), "_sys_files": []})()


def test_pyrapl_counters_per_socket_with_the_range_it_does_not_tell(tmp_path: Path) -> None:
    for number, (socket, wraps_at) in enumerate([(0, 262_143_328_850), (2, 65_532_610_987)]):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"package-{socket}\n")
        (zone / "max_energy_range_uj").write_text(str(wraps_at))
    found = pyrapl.find(FakePyRapl, root=tmp_path)
    package, dram = found.sources
    assert values(package) == [1000, 3000]
    assert values(dram) == [1001, 3000]
    assert [(i.source, i.wraps_at) for i in package.infos] == [
        ("pyrapl.package-0.energy", 262_143_328_850),
        ("pyrapl.package-2.energy", 65_532_610_987),
    ]
    found.close()


def test_pyrapl_refusals_are_reasons() -> None:
    FakePyRapl.refuse = {0: PermissionError(), 1: IndexError("no socket")}
    try:
        found = pyrapl.find(FakePyRapl)
    finally:
        FakePyRapl.refuse = {}
    assert not found.sources
    assert "root only" in found.missing[0].why
    assert "IndexError" in found.missing[1].why


def test_the_real_pyrapl_is_understood_or_missing() -> None:
    """In a process of its own: pyRAPL leaves files open and warns on Python 3.12+, both errors in ours."""
    code = "from energy.sampling import find_sources as f; r = f(('pyrapl',)); print(len(r.sources) + len(r.missing))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


CROSS_CHECK = """
import builtins, os, sys
from pathlib import Path
root = sys.argv[1]
opened, exists = builtins.open, os.path.exists
def moved(path):
    path = str(path)
    if path.startswith("/sys/class/powercap/intel-rapl/"):
        return root + "/zones/" + path.split("/intel-rapl/", 1)[1]
    return path.replace("/sys/devices/system/cpu", root + "/cpu")
builtins.open = lambda path, *args, **more: opened(moved(path) if isinstance(path, str) else path, *args, **more)
os.path.exists = lambda path: exists(moved(path))
import pyRAPL
from energy import powercap, pyrapl
flat = Path(root) / "flat"
ours = powercap.find(settle=lambda: None, root=flat)
theirs = pyrapl.find(pyRAPL, root=flat)
for step in (0, 12345, 262_143_328_850 - 20_000_000):
    for zone in flat.iterdir():
        file = zone / "energy_uj"
        file.write_text(f"{(int(file.read_text()) + step) % 262_143_328_850}\\n")
    read = [[r for s in found.sources for r in s.read(lambda: 1)] for found in (ours, theirs)]
    shown = [{r.source.split(".", 1)[1]: r.value for r in one} for one in read]
    assert not any(found.missing for found in (ours, theirs)), (ours.missing, theirs.missing)
    assert shown[0] == shown[1] and len(shown[0]) == 4, shown
    print(step, shown[0])
"""


def test_the_real_pyrapl_and_our_reader_agree_on_every_counter(tmp_path: Path) -> None:
    """Two sockets with DRAM, before and after a wrap. In a process of its own in which /sys is a folder of ours."""
    if importlib.util.find_spec("pyRAPL") is None:
        pytest.skip("extra rapl is not installed (scripts/test installs it)")
    (tmp_path / "flat").mkdir()
    for socket in (0, 1):
        package = tmp_path / "zones" / f"intel-rapl:{socket}"
        for zone, name, value in (
            (package, f"package-{socket}", 10**9 + socket),
            (package / f"{package.name}:0", "dram", 7 + socket),
        ):
            zone.mkdir(parents=True, exist_ok=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "energy_uj").write_text(f"{value}\n")
            (zone / "max_energy_range_uj").write_text("262143328850\n")
            (tmp_path / "flat" / zone.name).symlink_to(zone)
        topology = tmp_path / "cpu" / f"cpu{socket}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{socket}\n")
    (tmp_path / "cpu" / "present").write_text("0-1\n")
    command = [sys.executable, "-c", CROSS_CHECK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def power_pmu(root: Path, kind: int = 1, scale: str = "1e-9") -> Path:
    """A power PMU whose package event is really the software event cpu-clock (ns): one joule per second of CPU."""
    (root / "events").mkdir(parents=True)
    (root / "type").write_text(f"{kind}\n")
    (root / "cpumask").write_text("0\n")
    (root / "events" / "energy-pkg").write_text("event=0x00\n")
    (root / "events" / "energy-pkg.scale").write_text(scale + "\n")
    return root


def test_perf_events_are_read_through_the_real_system_call(tmp_path: Path) -> None:
    found = perf.find(root=power_pmu(tmp_path / "power"), settle=lambda: print(sum(range(10**5))))
    if found.missing:
        pytest.skip(f"this kernel refuses perf events here: {found.missing[0].why}")
    [source] = found.sources
    [first] = values(source)
    burn = sum(range(10**6))
    [second] = values(source)
    assert burn
    assert first is not None
    assert second is not None
    assert second > first > 0
    found.close()


def test_perf_without_permission_gives_the_command(tmp_path: Path) -> None:
    def refuse(kind: int, config: int, cpu: int) -> int:
        raise PermissionError(13, "Permission denied")

    found = perf.find(root=power_pmu(tmp_path / "power"), opener=refuse)
    assert not found.sources
    assert "cap_perfmon" in (found.missing[0].remedy or "")


def test_perf_scales_exactly(tmp_path: Path) -> None:
    """2^-32 J per count: no float rounding even after years of counting."""
    file = tmp_path / "event"
    count = 2**60 + 12345
    file.write_bytes(count.to_bytes(8, "little") * 2)  # one look whether it counts, one sample
    found = perf.find(
        root=power_pmu(tmp_path / "power", scale="2.3283064365386962890625e-10"),
        opener=lambda kind, config, cpu: os.open(file, os.O_RDONLY),
    )
    assert values(found.sources[0]) == [count * 10**6 // 2**32]
    assert found.infos()[0].source == "perf.package-0.energy"
    found.close()


def test_a_perf_counter_that_stands_still_is_missing_not_zero(tmp_path: Path) -> None:
    file = tmp_path / "event"
    file.write_bytes(bytes(64))
    found = perf.find(
        root=power_pmu(tmp_path / "power"),
        opener=lambda kind, config, cpu: os.open(file, os.O_RDONLY),
        settle=lambda: None,
    )
    assert not found.sources
    assert [(gone.sensor, gone.why) for gone in found.missing] == [("perf.package-0.energy", perf.STANDS_STILL)]


def test_no_power_pmu_is_a_reason(tmp_path: Path) -> None:
    assert perf.find(root=tmp_path).missing[0].sensor == "perf"


class FakeAmd:
    """amdsmi's surface: handles, a counter that may be frozen, power under one of its names."""

    class AmdSmiException(Exception):
        pass

    def __init__(self, *, frozen: bool = False, old_key: bool = False, power: Any = 250) -> None:
        self.ticks = 1000
        self.frozen, self.power = frozen, power
        self.key = "power" if old_key else "energy_accumulator"

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[int]:
        return [7]

    def amdsmi_get_power_info(self, handle: int) -> dict[str, Any]:
        return {"current_socket_power": "N/A", "average_socket_power": self.power}

    def amdsmi_get_energy_count(self, handle: int) -> dict[str, Any]:
        if not self.frozen:
            self.ticks += 100
        return {self.key: self.ticks, "counter_resolution": 15.259, "timestamp": 1}


@pytest.mark.parametrize("old_key", [False, True])
def test_amd_counter_and_power(old_key: bool) -> None:
    module = FakeAmd(old_key=old_key)
    found = amd.find(module, lambda: 1, settle=lambda: None)
    power, energy = found.sources
    assert values(power) == [250_000]
    assert values(energy) == [int(module.ticks * Fraction("15.259"))]


def test_a_frozen_amd_counter_is_left_out_and_said() -> None:
    found = amd.find(FakeAmd(frozen=True), lambda: 1, settle=lambda: None)
    assert [s.name for s in found.sources] == ["amd.gpu0.power"]
    assert "stands still" in found.missing[0].why


def test_amd_power_that_no_key_holds_is_missing_never_zero() -> None:
    found = amd.find(FakeAmd(power="N/A"), lambda: 1, settle=lambda: None)
    assert [m.sensor for m in found.missing] == ["amd.gpu0.power"]
    assert "no socket power" in found.missing[0].why


@given(ticks=st.integers(0, 2**63), resolution=st.sampled_from([15.259, 15.3, 1.0]))
def test_amd_energy_is_exact_for_any_count(ticks: int, resolution: float) -> None:
    exact = Fraction(str(resolution)) * ticks
    assert 0 <= exact - amd.energy_uj({"energy_accumulator": ticks, "counter_resolution": resolution}) < 1


DCMI = """
    Instantaneous power reading:                   512 Watts
    Minimum during sampling period:                 10 Watts
"""


def test_ipmi_and_redfish_replies() -> None:
    assert node.parse_dcmi(DCMI) == 512_000
    with pytest.raises(ValueError, match="no instantaneous power"):
        node.parse_dcmi("DCMI request failed because: Invalid command")
    new = {"u/EnvironmentMetrics": b'{"PowerWatts": {"Reading": 431.5}}'}
    old = {"u/EnvironmentMetrics": b"{}", "u/Power": b'{"PowerControl": [{"PowerConsumedWatts": 300}]}'}
    assert node.redfish_mw("u", new.__getitem__) == 431_500
    assert node.redfish_mw("u", old.__getitem__) == 300_000


def test_node_power_arrives_from_its_own_thread_and_never_blocks() -> None:
    asked, answered = Event(), Event()

    def fetch() -> int:
        asked.set()
        answered.wait(10)
        return 500_000

    source = node.NodeSource("node.test", fetch, lambda: 1, every_s=0.001)
    assert source.read(lambda: 1) == []
    assert asked.wait(10)
    assert source.read(lambda: 1) == [], "the controller has not answered; nobody waits for it"
    answered.set()
    got: list[Any] = []
    while not got:
        got = source.read(lambda: 1)
    assert got[0].value == 500_000
    source.close()


def test_node_sources_that_fail_at_once_are_missing_with_a_remedy() -> None:
    for found in (
        node.find_ipmi(lambda: 1, run=lambda: "nothing"),
        node.find_redfish("https://x", lambda: 1, get=_down),
    ):
        assert not found.sources
        assert found.missing[0].remedy
    assert node.find_ipmi(lambda: 1, run=lambda: DCMI).sources


def _down(url: str) -> bytes:
    raise OSError("connection refused")


def test_process_times_of_ourselves_and_the_host() -> None:
    found = procs.find(f"{os.getpid()},{2**22 + 1}")
    readings = found.sources[0].read(lambda: 5)
    assert all(isinstance(r, ProcessSample) for r in readings)
    host, own = readings  # the pid that does not exist is left out
    assert isinstance(host, ProcessSample)
    assert isinstance(own, ProcessSample)
    assert (host.pid, own.pid) == (0, os.getpid())
    assert own.cpu_ns is not None
    assert host.cpu_ns is not None
    assert 0 < own.cpu_ns < host.cpu_ns


def test_a_command_name_with_brackets_and_spaces(tmp_path: Path) -> None:
    (tmp_path / "9").mkdir()
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7\n")
    (tmp_path / "9" / "stat").write_text("9 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 70 30 0 0 20 0 1 0 5\n")
    readings = procs.CpuTimes(lambda: {9: "engine"}, tmp_path, tick_ns=10 * MS).read(lambda: 5)
    assert readings[1] == ProcessSample("proc", 5, 9, "a ) b", 1000 * MS, role="engine")


def _process(root: Path, pid: int, parent: int, used: int, reaped: int = 0) -> None:
    (root / str(pid)).mkdir(exist_ok=True)
    text = f"{pid} (p{pid}) S {parent} 1 1 0 -1 0 0 0 0 0 {used} 0 {reaped} 0 20 0 1 0 5\n"
    (root / str(pid) / "stat").write_text(text)


def test_a_tree_has_the_time_of_its_descendants_once_and_never_goes_back(tmp_path: Path) -> None:
    """The run (5) started engine (6) and sampler (7); the engine's worker (8) works, then ends and is reaped."""
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7\n")
    told = tmp_path / "run.json"
    told.write_text('{"processes": {"5": "client", "6": "engine"}}')
    for pid, parent, used in ((5, 1, 10), (6, 5, 20), (7, 5, 3), (8, 6, 70)):
        _process(tmp_path, pid, parent, used)
    source = procs.CpuTimes(procs.RunRoles(told), tmp_path, tick_ns=1)

    def seen(t_ns: int) -> dict[int, tuple[int | None, str | None]]:
        return {r.pid: (r.cpu_ns, r.role) for r in source.read(lambda: t_ns) if isinstance(r, ProcessSample) and r.pid}

    # A descendant is told once, without a time of its own: it is in its tree's.
    assert seen(1) == {5: (13, "client"), 7: (None, "client"), 6: (90, "engine"), 8: (None, "engine")}
    told.write_text('{"processes": {"5": "client", "6": "engine", "7": "sampler"}}')
    (tmp_path / "8" / "stat").unlink()
    _process(tmp_path, 6, 5, 25, reaped=75)
    assert seen(2) == {5: (13, "client"), 6: (100, "engine"), 7: (3, "sampler")}
    _process(tmp_path, 6, 5, 26)
    assert seen(3)[6] == (100, "engine")  # what an orphan took along does not make the tree's time go back
    told.write_text("{")
    assert seen(4)[6] == (100, "engine")


def test_who_listens_at_a_port_is_found_on_this_host_only() -> None:
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert procs.listener("127.0.0.1", port) == os.getpid()
        assert procs.listener("192.0.2.7", port) is None
    assert procs.listener("127.0.0.1", port) is None


def test_gpu_processes_are_listed_with_the_names_we_may_see(nvml: Any, card: Any) -> None:
    found = find_nvml(lambda: 1, nvml=nvml)
    [source] = [s for s in found.sources if s.name == "nvml.gpu0.processes"]
    ours, other = source.read(lambda: 1)
    assert isinstance(ours, ProcessSample)
    assert isinstance(other, ProcessSample)
    assert (ours.pid, ours.gpu_memory_bytes) == (os.getpid(), 1 << 20)
    assert ours.command is not None
    assert other.pid == 4242


@pytest.mark.parametrize("name", sorted(set(FINDERS) - {"simulated", "tdp", "recorded", "redfish", "pyrapl"}))
def test_every_source_can_be_looked_for_on_any_machine(name: str) -> None:
    found = find_sources((name,))
    assert found.sources or all(m.why for m in found.missing)
    found.close()


def test_design_power_times_utilisation_is_marked_estimated(tmp_path: Path) -> None:
    """Two cores, one busy for a second: 40 W at idle and half of the 80 W above it."""
    (tmp_path / "stat").write_text("cpu  10 0 5 900 0 0 0\n")
    source = tdp.Estimate(120, 40, cores=2, root=tmp_path, tick_ns=10 * MS)
    assert source.infos[0].estimated
    assert "not measured" in (source.infos[0].limits or "")
    values = []
    for t_ns, busy in ((0, 15), (1000 * MS, 115), (2000 * MS, 115)):
        (tmp_path / "stat").write_text(f"cpu  {busy - 5} 0 5 900 0 0 0\n")
        [sample] = source.read(lambda t_ns=t_ns: t_ns)  # type: ignore[misc]
        assert isinstance(sample, PowerSample)
        values.append(sample.value)
    assert values == [0, 80_000_000, 120_000_000]
    (tmp_path / "stat").unlink()
    [lost] = source.read(lambda: 1)
    assert isinstance(lost, PowerSample)
    assert lost.value is None
    assert lost.why


@pytest.mark.parametrize("where", ["", "abc", "-5", "0", "100:200", "1:1:1", "nan", "1e9"])
def test_an_estimate_needs_watts_that_make_sense(where: str) -> None:
    with pytest.raises(UserError, match="tdp:WATTS"):
        tdp.find(where)
