"""RAPL through fake powercap trees: servers, multi-die, AMD, clients, closed files, wraps at the very read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from energy.powercap import find
from energy.sampler import Sampler
from energy.source import Found
from energy.summary import summarise
from traces.records import PowerSample

INTEL, AMD = 262_143_328_850, 65_532_610_987
Tree = dict[str, tuple[str, int]]

SERVER: Tree = {
    "intel-rapl:0": ("package-0", 1_000_000),
    "intel-rapl:0:0": ("dram", 300_000),
    "intel-rapl:1": ("package-1", 9_000_000),
    "intel-rapl:1:0": ("dram", 400_000),
}
CLIENT: Tree = {
    "intel-rapl:0": ("package-0", 10_000_000),
    "intel-rapl:0:0": ("core", 5_000_000),
    "intel-rapl:0:1": ("uncore", 1_000_000),
    "intel-rapl:1": ("psys", 30_000_000),
    "intel-rapl-mmio:0": ("package-0", 10_000_000),
}
MULTI_DIE: Tree = {
    "intel-rapl:0": ("package-0-die-0", 1_000_000),
    "intel-rapl:1": ("package-0-die-1", 70_000_000),
    "intel-rapl:0:0": ("dram", 5),
    "intel-rapl:1:0": ("dram", 6),
}
MIRRORED: Tree = {
    "intel-rapl:0": ("package-0-die-0", 50_000_000),
    "intel-rapl:1": ("package-0-die-1", 50_000_400),
    "intel-rapl:2": ("package-1-die-0", 99_000_000),
}


def build(root: Path, tree: Tree, wraps_at: int | None = INTEL) -> Path:
    """Zones as the kernel shows them: flat links in class/powercap to a nested tree."""
    devices = root / "devices"
    flat = root / "class"
    flat.mkdir(parents=True)
    for name, (label, value) in tree.items():
        parent = devices / name.rsplit(":", 1)[0] if name.count(":") == 2 else devices
        zone = parent / name
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(label + "\n")
        (zone / "energy_uj").write_text(f"{value}\n")
        if wraps_at is not None:
            (zone / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        (flat / name).symlink_to(zone)
    return flat


def move(flat: Path, step: int) -> Callable[[], None]:
    """A settle() in which every counter moves on."""

    def settle() -> None:
        for zone in flat.iterdir():
            file = zone / "energy_uj"
            file.write_text(f"{int(file.read_text()) + step}\n")

    return settle


def values(found: Found) -> dict[str, int | None]:
    return {r.source: r.value for s in found.sources for r in s.read(lambda: 1) if isinstance(r, PowerSample)}


def test_server_with_two_sockets_and_dram(tmp_path: Path) -> None:
    found = find(settle=lambda: None, root=build(tmp_path, SERVER))
    assert values(found) == {
        "rapl.package-0.energy": 1_000_000,
        "rapl.package-0.dram.energy": 300_000,
        "rapl.package-1.energy": 9_000_000,
        "rapl.package-1.dram.energy": 400_000,
    }
    assert {(i.domain, i.device) for i in found.infos()} == {
        ("cpu", "package-0"),
        ("dram", "package-0"),
        ("cpu", "package-1"),
        ("dram", "package-1"),
    }
    assert {i.resolution for i in found.infos()} == {61}
    assert not found.missing
    found.close()


def test_client_core_uncore_psys_and_the_mmio_double(tmp_path: Path) -> None:
    found = find(settle=lambda: None, root=build(tmp_path, CLIENT))
    assert {(i.domain, i.device) for i in found.infos()} == {
        ("cpu", "package-0"),
        ("core", "package-0"),
        ("uncore", "package-0"),
        ("psys", "psys1"),
    }
    assert [m.sensor for m in found.missing] == ["intel-rapl-mmio:0"]
    found.close()


def test_amd_has_its_own_range(tmp_path: Path) -> None:
    tree: Tree = {"intel-rapl:0": ("package-0", 7), "intel-rapl:0:0": ("core", 3)}
    found = find(settle=lambda: None, root=build(tmp_path, tree, AMD))
    assert {(i.domain, i.wraps_at, i.resolution) for i in found.infos()} == {("cpu", AMD, 15), ("core", AMD, 15)}
    found.close()


def test_dies_are_packages_of_their_own(tmp_path: Path) -> None:
    flat = build(tmp_path, MULTI_DIE)
    found = find(settle=move(flat, 1000), root=flat)
    assert {(i.domain, i.device) for i in found.infos()} == {
        (domain, f"package-0-die-{n}") for domain in ("cpu", "dram") for n in (0, 1)
    }
    found.close()


def test_a_counter_listed_twice_is_counted_once(tmp_path: Path) -> None:
    flat = build(tmp_path, MIRRORED)
    found = find(settle=move(flat, 60_000), root=flat)
    assert {i.device for i in found.infos()} == {"package-0-die-0", "package-1-die-0"}
    [missing] = found.missing
    assert missing.sensor == "rapl.package-0-die-1.energy"
    assert "same counter as rapl.package-0-die-0.energy" in missing.why
    found.close()


def test_equal_counters_that_stand_still_prove_nothing(tmp_path: Path) -> None:
    found = find(settle=lambda: None, root=build(tmp_path, MIRRORED))
    assert len(found.infos()) == 3
    found.close()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everyone may enter, seen without root's right to read everything."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        if os.getuid() == 0:
            os.seteuid(0)


def test_closed_files_give_the_command_that_opens_them(nobody: Path) -> None:
    flat = build(nobody, SERVER)
    for zone in flat.iterdir():
        (zone / "energy_uj").chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    found = find(settle=lambda: None, root=flat)
    assert not found.sources
    assert len(found.missing) == 4
    assert all("root only" in m.why and "sudo chmod" in (m.remedy or "") for m in found.missing)


def test_unreadable_zones_are_missing_with_a_reason_not_zero(tmp_path: Path) -> None:
    flat = build(tmp_path, SERVER)
    (flat / "intel-rapl:0" / "energy_uj").write_text("garbage")
    (flat / "intel-rapl:1:0" / "energy_uj").unlink()
    found = find(settle=lambda: None, root=flat)
    assert {m.sensor: m.why.split(": ")[-1] for m in found.missing} == {
        "rapl.package-0.energy": "not a number",
        "rapl.package-1.dram.energy": "No such file or directory",
    }
    assert set(values(found)) == {"rapl.package-0.dram.energy", "rapl.package-1.energy"}
    found.close()


def test_no_powercap_at_all(tmp_path: Path) -> None:
    for root in (tmp_path / "absent", build(tmp_path / "empty", {})):
        found = find(settle=lambda: None, root=root)
        assert not found.sources
        [missing] = found.missing
        assert missing.remedy


def test_a_wrap_at_the_very_read_keeps_the_energy(tmp_path: Path) -> None:
    flat = build(tmp_path, {"intel-rapl:0": ("package-0", INTEL - 2_000_000)})
    found = find(settle=lambda: None, root=flat)
    records: list[object] = []
    sampler = Sampler(found.sources, records.append)
    counter, now = INTEL - 2_000_000, 0
    for _ in range(10):
        (flat / "intel-rapl:0" / "energy_uj").write_text(f"{counter % INTEL}\n")
        sampler.tick(now)
        counter, now = counter + 500_000, now + 20_000_000
    rows = [{f: getattr(r, f) for f in r.__dataclass_fields__} for r in records]  # type: ignore[attr-defined]
    assert summarise(rows).sensors["rapl.package-0.energy"].energy_uj == 9 * 500_000
    assert sampler.totals.resets == 0
    found.close()


def test_a_range_that_cannot_be_read_makes_the_wrap_a_marked_reset(tmp_path: Path) -> None:
    found = find(settle=lambda: None, root=build(tmp_path, SERVER, wraps_at=None))
    assert all(i.wraps_at is None and "reset" in (i.limits or "") for i in found.infos())
    found.close()
