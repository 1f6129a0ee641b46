"""What a sampler observed: one frozen dataclass per kind of line in power.<host>.jsonl.

The rules are those of traces.records, whose names these are too. May not know: files, clocks, sensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PowerSample:
    """power.<host>.jsonl, kind "sample": one sensor read. The reading belongs to the interval [t0_ns, t1_ns].

    Counters are cumulative uJ as read (raw, before unwrapping), gauges are mW. value None: the read failed, see why.
    """

    source: str
    """sensor name, unique in the run: nvml0.energy, rapl.package-0, sim.gpu0 ..."""
    t0_ns: int
    t1_ns: int
    value: int | None
    why: str | None = None
    kind: str = "sample"


@dataclass(frozen=True, slots=True)
class SensorInfo:
    """power.<host>.jsonl, kind "sensor": written once per source before its first sample."""

    source: str
    domain: str
    """gpu | hbm | cpu | dram | core | psys | node | module"""
    device: str
    """gpu0, package-0 ...; one ledger per (domain, device)"""
    reading: Literal["counter", "gauge"]
    unit: Literal["uJ", "mW"]
    period_ns: int | None
    """update period of the sensor itself (measured or documented); None when unknown"""
    resolution: int | None
    """smallest step, in unit"""
    wraps_at: int | None = None
    """counter range in uJ; None when it does not wrap"""
    scope: str = "board"
    limits: str | None = None
    """what it cannot tell, one sentence"""
    simulated: bool = False
    estimated: bool = False
    """no measurement behind it (design power x utilisation): left out of every measured total"""
    lag_ns: int | None = None
    kind: str = "sensor"


@dataclass(frozen=True, slots=True)
class DeviceState:
    """power.<host>.jsonl, kind "state": clocks, temperature and throttle reasons beside the power of one device."""

    source: str
    """device, e.g. nvml.gpu0"""
    t_ns: int
    sm_mhz: int | None = None
    mem_mhz: int | None = None
    temp_c: int | None = None
    throttle: int | None = None
    """NVML clocks event reasons, a bit mask as read"""
    kind: str = "state"


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """power.<host>.jsonl, kind "process": CPU time of one process so far, or its presence on a GPU."""

    source: str
    """proc, or the GPU it was seen on (nvml.gpu0)"""
    t_ns: int
    pid: int
    """0: all processes of the host together"""
    command: str | None = None
    """short command name, as the kernel has it; None where the process cannot be seen from here"""
    cpu_ns: int | None = None
    """user and system time of its whole tree since it started; None for a descendant, which is in its tree's"""
    gpu_memory_bytes: int | None = None
    role: str | None = None
    """what its tree does in the run: engine, proxy, sampler, client"""
    kind: str = "process"


@dataclass(frozen=True, slots=True)
class PowerEvent:
    """power.<host>.jsonl, kind "heartbeat" | "gap" | "reset" | "lost" | "anchor": what the sampler says of itself."""

    kind: Literal["heartbeat", "gap", "reset", "lost", "anchor"]
    t_ns: int
    source: str | None = None
    until_ns: int | None = None
    """gap: [t_ns, until_ns] was not sampled"""
    wall_ns: int | None = None
    """anchor: wall clock at t_ns"""
    ticks: int | None = None
    missed: int | None = None
    late_p99_ns: int | None = None
    cpu_ns: int | None = None
    """heartbeat: CPU time of the sampler process so far"""
    call_ns: dict[str, int] | None = None
    """heartbeat: wall time spent inside the calls of each source so far (the driver's, for a driver's source)"""
    why: str | None = None
