"""NVIDIA GPUs through nvidia-ml-py: energy counter, instantaneous and memory power, the driver's 20 ms ring, clocks.

Finds what each card has by asking it once; what refuses is missing with the driver's reason. MIG (whole board only) and
superchips (module scope: GPU and CPU together) are said in the sensor's scope and limits.
May not know: sampling, journals. Sets nothing (see knobs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from energy.edges import EdgeLocked
from energy.nvml_calls import (
    POWER_AVERAGE,
    POWER_INSTANT,
    SCOPE_GPU,
    SCOPE_MEMORY,
    SCOPE_MODULE,
    Counter,
    Fields,
    Ring,
    State,
    WallMap,
    call,
)
from energy.procs import GpuProcesses
from energy.source import Found, Missing, Source
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

_Kind = Literal["counter", "gauge"]
_MS = 1_000_000
# Update period of counter and power by architecture (nvmlDeviceArchitecture_t): Pascal 4, Volta 5; all later 100 ms.
_FAST_ARCHITECTURES = (4, 5)
_RING_NS = 20 * _MS
_COUNTER_LIMITS = "updates every {ms} ms and costs milliseconds in the driver: no single phase below that is resolved"
_INSTANT_LIMITS = "a 25 ms window out of each 100 ms on A100/H100: wrong where work is periodic; shape only"
_AVERAGE_LIMITS = "a 1 s average: never decides a phase"
_RING_LIMITS = "the driver's 20 ms samples, two seconds deep"
_MODULE = "superchip: GPU, CPU and their memory"
_MEMORY = "memory, part of the board"
_MIG_NOTE = "MIG is on: the whole board, not a slice; "


def load() -> tuple[Any | None, Missing | None]:
    """The pynvml module, initialised, or why not."""
    try:
        import pynvml
    except ImportError:
        return None, Missing("nvml", "the Python package nvidia-ml-py is not installed", "pip install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        remedies = {
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver, or start the container with --gpus all",
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "sudo modprobe nvidia",
            pynvml.NVML_ERROR_NO_PERMISSION: "sudo chmod a+rw /dev/nvidiactl /dev/nvidia*",
        }
        return None, Missing("nvml", str(error), remedies.get(error.value, "check nvidia-smi"))
    return pynvml, None


def find(now_ns: NowNs, *, poll_ns: int = 20_000_000, nvml: Any = None) -> Found:
    """Every NVIDIA GPU's sensors. nvml: an initialised pynvml module (None: load it)."""
    if nvml is None:
        nvml, missing = load()
        if missing is not None:
            return Found(missing=[missing])
    count, why = call(nvml, nvml.nvmlDeviceGetCount)
    if not count:
        return Found(missing=[Missing("nvml", why or "the driver lists no GPU", "check nvidia-smi -L")])
    found = Found()
    wall = WallMap(now_ns)
    for index in range(count):
        handle, why = call(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            remedy = "check nvidia-smi -L; the device may have fallen off the bus or be hidden from this container"
            found.missing.append(Missing(f"nvml.gpu{index}", why or "no handle", remedy))
        else:
            found.extend(_device(nvml, handle, index, now_ns, wall, poll_ns))
    return found


def _device(nvml: Any, handle: Any, index: int, now_ns: NowNs, wall: WallMap, poll_ns: int) -> Found:
    """The sensors of one GPU, each tried once."""
    device = f"gpu{index}"
    mig = call(nvml, nvml.nvmlDeviceGetMigMode, handle)[0]
    about = _About(index, _MIG_NOTE if mig and mig[0] else "")
    fast = call(nvml, nvml.nvmlDeviceGetArchitecture, handle)[0] in _FAST_ARCHITECTURES
    period = 20 * _MS if fast else 100 * _MS
    found = _fields(nvml, handle, about, period, now_ns, wall, poll_ns)
    counter = about.info(
        f"{device}.energy", "gpu", "board", period, _COUNTER_LIMITS.format(ms=period // _MS), "counter"
    )
    ring = about.info(f"{device}.ring", "gpu", "board", _RING_NS, _RING_LIMITS)
    candidates: list[Source] = [
        EdgeLocked(Counter(nvml, handle, counter, period), period),
        Ring(nvml, handle, ring, wall, 1000 * _MS),
    ]
    for source in candidates:
        failed = [r.why for r in source.read(now_ns) if isinstance(r, PowerSample) and r.value is None]
        if failed:
            found.missing.append(Missing(source.name, failed[0] or "no value", None))
        else:
            found.sources.append(source)
    found.sources += [State(nvml, handle, device, 100 * _MS), GpuProcesses(nvml, handle, device)]
    return found


def _fields(nvml: Any, handle: Any, about: _About, period: int, now_ns: NowNs, wall: WallMap, poll_ns: int) -> Found:
    """One source for all power fields that answer; each is asked alone first."""
    n = about.index
    wanted = [
        ((POWER_INSTANT, SCOPE_GPU), about.info(f"gpu{n}.power", "gpu", "board", period, _INSTANT_LIMITS)),
        (
            (POWER_AVERAGE, SCOPE_MEMORY),
            about.info(f"hbm{n}.power", "hbm", "part of the board", period, _AVERAGE_LIMITS),
        ),
        ((POWER_INSTANT, SCOPE_MODULE), about.info(f"module{n}.power", "module", _MODULE, period, _INSTANT_LIMITS)),
    ]
    found = Found()
    granted = []
    for field, info in wanted:
        [sample] = Fields(nvml, handle, [(field, info)], wall, poll_ns).read(now_ns)
        if isinstance(sample, PowerSample) and sample.value is None:
            found.missing.append(Missing(info.source, f"field {field[0]} scope {field[1]}: {sample.why}", None))
        else:
            granted.append((field, info))
    if granted:
        found.sources.append(Fields(nvml, handle, granted, wall, poll_ns))
    return found


@dataclass(frozen=True)
class _About:
    """What all sensors of one card have in common."""

    index: int
    note: str

    def info(
        self,
        name: str,
        domain: str,
        scope: str,
        period_ns: int,
        limits: str,
        kind: Literal["counter", "gauge"] = "gauge",
    ) -> SensorInfo:
        """One sensor: counters in uJ by steps of 1 mJ, gauges in mW."""
        return SensorInfo(
            source=f"nvml.{name}",
            domain=domain,
            device=f"gpu{self.index}",
            reading=kind,
            unit="uJ" if kind == "counter" else "mW",
            period_ns=period_ns,
            resolution=1000 if kind == "counter" else 1,
            scope=scope,
            limits=self.note + limits,
        )
