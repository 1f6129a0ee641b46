"""RAPL through perf_event: for hosts where sysfs is closed but CAP_PERFMON is granted. No wrap: the kernel extends it.

One event per domain and package, opened by the raw system call (no library needed).
May not know: powercap, sampling.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from energy.source import Found, Missing, Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

ROOT = Path("/sys/bus/event_source/devices/power")
GRANT = "sudo setcap cap_perfmon+ep $(readlink -f $(command -v python3)), or sudo sysctl kernel.perf_event_paranoid=0"
STANDS_STILL = "the kernel lists this counter but it stands still: a virtual machine without the real one"
_EVENTS = {
    "energy-pkg": "cpu",
    "energy-ram": "dram",
    "energy-cores": "core",
    "energy-gpu": "uncore",
    "energy-psys": "psys",
}
_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_CLOEXEC = 8
_ATTR_SIZE = 128
OpenEvent = Callable[[int, int, int], int]
"""(type, config, cpu) -> descriptor; OSError as the kernel has it."""


@dataclass
class _Event:
    info: SensorInfo
    fd: int
    uj_per_count: Fraction


class PerfSource:
    """All opened events in one pass."""

    name = "perf"

    def __init__(self, events: list[_Event], poll_ns: int) -> None:
        self._events = events
        self.poll_ns = poll_ns
        self.infos: tuple[SensorInfo, ...] = tuple(event.info for event in events)

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample per event in uJ."""
        readings: list[Reading] = []
        for event in self._events:
            t0 = now_ns()
            value, why = None, None
            try:
                value = int(int.from_bytes(os.read(event.fd, 8), "little") * event.uj_per_count)
            except OSError as error:
                why = error.strerror
            readings.append(PowerSample(event.info.source, t0, now_ns(), value, why))
        return readings

    def close(self) -> None:
        """Close the events."""
        for event in self._events:
            os.close(event.fd)
        self._events = []


def open_event(kind: int, config: int, cpu: int) -> int:
    """perf_event_open for one CPU, all processes. OSError when the kernel refuses."""
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"perf_event_open is not known for {platform.machine()}")
    attr = struct.pack("IIQ", kind, _ATTR_SIZE, config).ljust(_ATTR_SIZE, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    minus_one = ctypes.c_long(-1)
    fd = libc.syscall(ctypes.c_long(number), attr, minus_one, ctypes.c_long(cpu), minus_one, ctypes.c_long(_CLOEXEC))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def find(
    *,
    root: Path = ROOT,
    poll_ns: int = 20_000_000,
    opener: OpenEvent = open_event,
    settle: Callable[[], None] = lambda: time.sleep(0.02),
) -> Found:
    """Every energy event of the power PMU, on each package's CPU of its cpumask.

    An event that still counts nothing after `settle` measures nothing (virtual machines list such events: a psys on an
    H100 host stood at 0 for minutes) and is missing, with that as its reason: a 0 would pass for a measurement.
    """
    if not (root / "type").is_file():
        return Found(missing=[Missing("perf", f"no {root}: the kernel has no power PMU here", "use bare metal")])
    kind = int((root / "type").read_text())
    cpus = _cpulist((root / "cpumask").read_text())
    found, events = Found(), []
    for name, domain in _EVENTS.items():
        spec = root / "events" / name
        if not spec.is_file():
            continue
        config = int(spec.read_text().strip().rpartition("=")[2], 0)
        scale = Fraction((root / "events" / f"{name}.scale").read_text().strip())
        for package, cpu in enumerate(cpus):
            info = _describe(domain, package, scale)
            try:
                events.append(_Event(info, opener(kind, config, cpu), scale * 1_000_000))
            except OSError as error:
                remedy = GRANT if error.errno in (errno.EACCES, errno.EPERM) else None
                found.missing.append(Missing(info.source, f"perf_event_open: {error.strerror}", remedy))
    if events:
        settle()
    counting = [event for event in events if _counts(event)]
    for event in events:
        if event not in counting:
            os.close(event.fd)
            found.missing.append(Missing(event.info.source, STANDS_STILL, "run on the host"))
    if counting:
        found.sources.append(PerfSource(counting, poll_ns))
    return found


def _counts(event: _Event) -> bool:
    """Whether anything was counted since the event was opened; an event that cannot be read says so when sampled."""
    try:
        return any(os.read(event.fd, 8))
    except OSError:
        return True


def _describe(domain: str, package: int, scale: Fraction) -> SensorInfo:
    suffix = "energy" if domain == "cpu" else f"{domain}.energy"
    return SensorInfo(
        source=f"perf.package-{package}.{suffix}",
        domain=domain,
        device=f"package-{package}",
        reading="counter",
        unit="uJ",
        period_ns=1_000_000,
        # The scale is the kernel's own unit (2^-32 J); the hardware steps by about 61 uJ (Intel) or 15 uJ (AMD).
        resolution=max(1, round(scale * 1_000_000)) if scale > Fraction(1, 10**9) else 61,
        scope="package" if domain == "cpu" else domain,
        limits="the same counter as rapl through another door, never added to it",
    )


def _cpulist(text: str) -> list[int]:
    """ "0,16" or "0-1" as numbers."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus
