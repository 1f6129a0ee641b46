"""CPU package, core, DRAM and platform energy through Linux powercap (RAPL), Intel and AMD alike.

Kept file descriptors and os.pread (1 us a read), zones told apart by their name file, counters raw with their range
(they wrap: 262 kJ on Intel, 66 kJ on AMD). Zones that repeat another one are found and left out: intel-rapl-mmio copies
the package, and some multi-die EPYC show the socket's counter once per die.
May not know: sampling, other interfaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energy.source import Found, Missing, Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

ROOT = Path("/sys/class/powercap")
GRANT = "sudo chmod -R a+r /sys/devices/virtual/powercap/intel-rapl (until reboot), or run the sampler as root"
_UPDATE_NS = 1_000_000
_MIRROR_UJ = 1_000_000
_DOMAINS = {"dram": "dram", "core": "core", "uncore": "uncore", "psys": "psys"}
_LIMITS = {
    "cpu": "package energy: core and uncore are inside it, DRAM is not (servers)",
    "dram": "modelled from activity on older parts; poor at idle",
    "core": "part of the package, never added to it",
    "uncore": "part of the package, never added to it",
    "psys": "whole platform: includes the package, never added to it",
}


@dataclass
class Zone:
    """One readable counter: its description and an open descriptor."""

    info: SensorInfo
    fd: int


class PowercapSource:
    """All readable zones in one pass."""

    name = "rapl"

    def __init__(self, zones: list[Zone], poll_ns: int) -> None:
        self._zones = zones
        self._fds = [zone.fd for zone in zones]
        self.poll_ns = poll_ns
        self.infos: tuple[SensorInfo, ...] = tuple(zone.info for zone in zones)

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample per zone, each with its own stamps."""
        return self.readings(self.grab(now_ns))

    def grab(self, now_ns: NowNs) -> list[Any]:
        """Stamp, text or error, stamp, text or error, ... stamp."""
        raw: list[Any] = [now_ns()]
        pread, append = os.pread, raw.append
        for fd in self._fds:
            try:
                append(pread(fd, 32, 0))
            except OSError as error:
                append(error.strerror or str(error))
            append(now_ns())
        return raw

    def readings(self, raw: list[Any]) -> list[Reading]:
        """One sample per zone."""
        found = []
        for zone, k in zip(self._zones, range(0, len(raw), 2), strict=False):
            value, why = _parsed(raw[k + 1])
            found.append(PowerSample(zone.info.source, raw[k], raw[k + 2], value, why))
        return [*found]

    def close(self) -> None:
        """Close the descriptors."""
        for zone in self._zones:
            os.close(zone.fd)
        self._zones, self._fds = [], []


def find(*, settle: Callable[[], None], root: Path = ROOT, poll_ns: int = 20_000_000) -> Found:
    """Look for RAPL zones under root. `settle` waits some 20 ms between the two looks that tell mirrors apart."""
    if not root.is_dir():
        why = f"no {root} on this machine (virtual machines, containers and Arm seldom have it)"
        return Found(missing=[Missing("rapl", why, "run on the host, or bind-mount /sys/class/powercap from it")])
    paths = sorted(root.glob("intel-rapl:*"), key=lambda p: [int(n) for n in p.name.split(":")[1:]])
    found = Found()
    zones = [zone for path in paths if (zone := _open(path, found.missing)) is not None]
    zones = _without_mirrors(zones, settle, found.missing)
    for path in sorted(root.glob("intel-rapl-mmio:*")):
        why = f"{path.name} shows the same counters as intel-rapl through another door"
        found.missing.append(Missing(path.name, why, None))
    if zones:
        found.sources.append(PowercapSource(zones, poll_ns))
    elif not paths:
        why = f"no intel-rapl zone under {root}: the kernel driver is not loaded or the hardware has none"
        found.missing.append(Missing("rapl", why, "sudo modprobe intel_rapl_msr (bare metal only)"))
    return found


def _open(path: Path, missing: list[Missing]) -> Zone | None:
    """One zone as a sensor, or None with the reason put into missing."""
    try:
        name = (path / "name").read_text().strip()
    except OSError as error:
        missing.append(Missing(f"rapl.{path.name}", f"{path}/name: {error.strerror}", GRANT))
        return None
    info = _describe(path, name)
    try:
        fd = os.open(path / "energy_uj", os.O_RDONLY)
    except PermissionError:
        why = f"{path}/energy_uj is readable by root only (CVE-2020-8694)"
        missing.append(Missing(info.source, why, GRANT))
        return None
    except OSError as error:
        missing.append(Missing(info.source, f"{path}/energy_uj: {error.strerror}", None))
        return None
    value, why_not = _pread(fd)
    if value is None:
        os.close(fd)
        missing.append(Missing(info.source, f"{path}/energy_uj: {why_not}", None))
        return None
    return Zone(info, fd)


def _describe(path: Path, name: str) -> SensorInfo:
    """Domain from the zone's name; device from its package, so that each (domain, device) is one ledger."""
    kind = name.split("-")[0]
    domain = _DOMAINS.get(kind, "cpu" if kind == "package" else kind)
    if path.name.count(":") == 2:
        device = _parent_name(path)
        source = f"rapl.{device}.{name}.energy"
    else:
        device = name if domain != "psys" else f"psys{path.name.split(':')[1]}"
        source = f"rapl.{device}.energy"
    wraps_at = _number(path / "max_energy_range_uj")
    return SensorInfo(
        source=source,
        domain=domain,
        device=device,
        reading="counter",
        unit="uJ",
        period_ns=_UPDATE_NS,
        # The range is 2^32 hardware units, so the unit follows from it (61 uJ on Intel, 15 uJ on AMD and server DRAM).
        resolution=max(1, round(wraps_at / 2**32)) if wraps_at else None,
        wraps_at=wraps_at,
        scope="package" if domain == "cpu" else domain,
        limits=_LIMITS.get(domain) if wraps_at else "its range is not readable: a wrap shows as a reset",
    )


def _parent_name(path: Path) -> str:
    parent = path.name.rsplit(":", 1)[0]
    for candidate in (path.parent / parent, path.resolve().parent):
        if (candidate / "name").is_file():
            return (candidate / "name").read_text().strip()
    return parent


def package_range(root: Path, socket: int, domain: str = "cpu") -> int | None:
    """Range in uJ of a socket's package counter, or of its DRAM counter; None where it cannot be read."""
    for zone in root.glob("intel-rapl:*"):
        wanted = "dram" if domain == "dram" else f"package-{socket}"
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        if name == wanted and (domain == "cpu" or _parent_name(zone) == f"package-{socket}"):
            return _number(zone / "max_energy_range_uj")
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text()) or None
    except (OSError, ValueError):
        return None


def _pread(fd: int) -> tuple[int | None, str | None]:
    try:
        return _parsed(os.pread(fd, 32, 0))
    except OSError as error:
        return None, error.strerror or str(error)


def _parsed(shown: bytes | str) -> tuple[int | None, str | None]:
    """A counter's text, or the error that stands in its place."""
    if isinstance(shown, str):
        return None, shown
    try:
        return int(shown), None
    except ValueError:
        return None, "not a number"


def _without_mirrors(zones: list[Zone], settle: Callable[[], None], missing: list[Missing]) -> list[Zone]:
    """Drop package zones that show another package's counter: equal within 1 J at two instants while both move."""
    packages = [zone for zone in zones if zone.info.domain == "cpu"]
    if len(packages) < 2:
        return zones
    first = {zone.fd: _pread(zone.fd)[0] or 0 for zone in packages}
    settle()
    second = {zone.fd: _pread(zone.fd)[0] or 0 for zone in packages}
    dropped: set[str] = set()
    for i, zone in enumerate(packages):
        for other in packages[:i]:
            near = all(abs(look[zone.fd] - look[other.fd]) <= _MIRROR_UJ for look in (first, second))
            moved = first[zone.fd] != second[zone.fd] and first[other.fd] != second[other.fd]
            if near and moved and other.info.device not in dropped:
                dropped.add(zone.info.device)
                why = f"shows the same counter as {other.info.source} (one counter per socket, listed per die)"
                missing.append(Missing(zone.info.source, why, None))
                break
    for zone in zones:
        if zone.info.device in dropped:
            os.close(zone.fd)
    return [zone for zone in zones if zone.info.device not in dropped]
