"""NVIDIA GPUs through nvidia-ml-py: energy counter, instantaneous and memory power, the driver's 20 ms ring, clocks.

Each source is one driver call, because calls serialise inside the driver (the counter takes 3-5 ms on an H100, a ring
read 0.3 ms, a field read 5 us), so each has its own polling period. Every returned field carries its own return code
and a wall stamp; both are checked. May not know: sampling, journals. Sets nothing (see knobs).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ctypes import (
    Structure,
    Union,
    c_double,
    c_int,
    c_longlong,
    c_uint,
    c_ulong,
    c_ulonglong,
    c_ushort,
)
from typing import Any, ClassVar

from energy.procs import GpuProcesses
from energy.source import Found, Missing, Reading, Source
from traces.records import DeviceState, PowerSample, SensorInfo
from traces.seams import NowNs

POWER_AVERAGE, POWER_INSTANT = 185, 186
SCOPE_GPU, SCOPE_MODULE, SCOPE_MEMORY = 0, 1, 2
TOTAL_POWER_SAMPLES = 0
_FIELD_TYPES = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
_UINT = 1
_ANCHOR_NS = 1_000_000_000
_MS = 1_000_000
# Update period of counter and power by architecture (nvmlDeviceArchitecture_t): Pascal 4, Volta 5; all later 100 ms.
_FAST_ARCHITECTURES = (4, 5)
_COUNTER_LIMITS = "updates every {ms} ms and costs milliseconds in the driver: no single phase below that is resolved"
_INSTANT_LIMITS = "a 25 ms window out of each 100 ms on A100/H100: wrong where work is periodic; shape only"
_MIG_NOTE = "MIG is on: the whole board, not a slice; "

WallNs = Callable[[], int]


class _Value(Union):
    """nvmlValue_t."""

    _fields_: ClassVar = [
        ("dVal", c_double),
        ("uiVal", c_uint),
        ("ulVal", c_ulong),
        ("ullVal", c_ulonglong),
        ("sllVal", c_longlong),
        ("siVal", c_int),
        ("usVal", c_ushort),
    ]


class _FieldValue(Structure):
    """nvmlFieldValue_t, its value as raw 64 bits."""

    _fields_: ClassVar = [
        ("field", c_uint),
        ("scope", c_uint),
        ("timestamp_us", c_longlong),
        ("latency_us", c_longlong),
        ("kind", c_uint),
        ("code", c_uint),
        ("number", c_ulonglong),
    ]


class WallMap:
    """Wall-clock microseconds of the driver to the monotonic axis, through an anchor renewed once a second."""

    def __init__(self, now_ns: NowNs, wall_ns: WallNs = time.time_ns) -> None:
        self._wall_ns = wall_ns
        self._renew(now_ns)

    def _renew(self, now_ns: NowNs) -> None:
        before = now_ns()
        wall = self._wall_ns()
        after = now_ns()
        self._taken_ns = before
        self._offset = (before + after) // 2 - wall

    def mono_ns(self, wall_us: int, now_ns: NowNs) -> int:
        """The monotonic instant of a wall stamp."""
        if now_ns() - self._taken_ns > _ANCHOR_NS:
            self._renew(now_ns)
        return wall_us * 1000 + self._offset


class Counter:
    """nvmlDeviceGetTotalEnergyConsumption: mJ since the driver was loaded. The ledger."""

    def __init__(self, nvml: Any, handle: Any, info: SensorInfo, poll_ns: int) -> None:
        self._nvml, self._handle = nvml, handle
        self.name = info.source
        self.infos: tuple[SensorInfo, ...] = (info,)
        self.poll_ns = poll_ns

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample in uJ."""
        t0 = now_ns()
        value, why = _call(self._nvml, self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return [PowerSample(self.name, t0, now_ns(), None if value is None else value * 1000, why)]

    def close(self) -> None:
        """The library is shared; nothing to close."""


class Fields:
    """One nvmlDeviceGetFieldValues call for instantaneous power and, where it answers, memory or module power."""

    def __init__(
        self, nvml: Any, handle: Any, wanted: list[tuple[tuple[int, int], SensorInfo]], wall: WallMap, poll_ns: int
    ) -> None:
        self._nvml, self._handle, self._wall = nvml, handle, wall
        # The array is kept and handed to the library as it is: the package's own wrapper builds a new type per call,
        # four times the cost of the call itself, fifty times a second.
        self._values = (_FieldValue * len(wanted))()
        for value, ((field, scope), _) in zip(self._values, wanted, strict=True):
            value.field, value.scope = field, scope
        self._ask = nvml.nvmlLib.nvmlDeviceGetFieldValues
        self.infos: tuple[SensorInfo, ...] = tuple(info for _, info in wanted)
        self.name = self.infos[0].source
        self.poll_ns = poll_ns

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample per field in mW. The interval reaches back to the field's own stamp where that is earlier."""
        t0 = now_ns()
        code = self._ask(self._handle, len(self.infos), self._values)
        t1 = now_ns()
        readings: list[Reading] = []
        for info, value in zip(self.infos, self._values, strict=True):
            failed = code or value.code
            if failed:
                readings.append(PowerSample(info.source, t0, t1, None, _error(self._nvml, failed)))
                continue
            stamp = self._wall.mono_ns(value.timestamp_us, now_ns) if value.timestamp_us else t0
            since = stamp if t0 - 1000 * _MS < stamp < t0 else t0
            readings.append(PowerSample(info.source, since, t1, _number(value)))
        return readings

    def close(self) -> None:
        """The library is shared; nothing to close."""


class Ring:
    """nvmlDeviceGetSamples(TOTAL_POWER): the driver's own 20 ms power samples, some two seconds deep."""

    def __init__(self, nvml: Any, handle: Any, info: SensorInfo, wall: WallMap, poll_ns: int) -> None:
        self._nvml, self._handle, self._wall = nvml, handle, wall
        self.name = info.source
        self.infos: tuple[SensorInfo, ...] = (info,)
        self.poll_ns = poll_ns
        self._seen_us = 0

    def read(self, now_ns: NowNs) -> list[Reading]:
        """Every sample newer than the last read, each at its own instant (t0 = t1 = its stamp)."""
        t0 = now_ns()
        try:
            kind, samples = self._nvml.nvmlDeviceGetSamples(self._handle, TOTAL_POWER_SAMPLES, self._seen_us)
        except self._nvml.NVMLError as error:
            if error.value == self._nvml.NVML_ERROR_NOT_FOUND and self._seen_us:
                return []
            return [PowerSample(self.name, t0, now_ns(), None, str(error))]
        member = _FIELD_TYPES.get(kind, "uiVal")
        readings: list[Reading] = []
        for sample in sorted(samples, key=lambda s: int(s.timeStamp)):
            if sample.timeStamp > self._seen_us:
                self._seen_us = int(sample.timeStamp)
                at = self._wall.mono_ns(self._seen_us, now_ns)
                readings.append(PowerSample(self.name, at, at, int(getattr(sample.sampleValue, member))))
        return readings

    def close(self) -> None:
        """The library is shared; nothing to close."""


class State:
    """Clocks, temperature and throttle reasons (about a microsecond each)."""

    infos: tuple[SensorInfo, ...] = ()

    def __init__(self, nvml: Any, handle: Any, device: str, poll_ns: int) -> None:
        self._nvml, self._handle = nvml, handle
        self.name = f"nvml.{device}"
        self.poll_ns = poll_ns

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One DeviceState; what the card does not tell is None."""
        nvml, handle = self._nvml, self._handle
        t0 = now_ns()
        return [
            DeviceState(
                source=self.name,
                t_ns=t0,
                sm_mhz=_call(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)[0],
                mem_mhz=_call(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)[0],
                temp_c=_call(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)[0],
                throttle=_call(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)[0],
            )
        ]

    def close(self) -> None:
        """The library is shared; nothing to close."""


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
        return None, Missing("nvml", f"NVML: {error}", remedies.get(error.value, "check nvidia-smi"))
    return pynvml, None


def find(now_ns: NowNs, *, poll_ns: int = 20_000_000, nvml: Any = None) -> Found:
    """Every NVIDIA GPU's sensors. nvml: an initialised pynvml module (None: load it)."""
    if nvml is None:
        nvml, missing = load()
        if missing is not None:
            return Found(missing=[missing])
    count, why = _call(nvml, nvml.nvmlDeviceGetCount)
    if not count:
        return Found(missing=[Missing("nvml", why or "the driver lists no GPU", "check nvidia-smi -L")])
    found = Found()
    wall = WallMap(now_ns)
    for index in range(count):
        handle, why = _call(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            remedy = "check nvidia-smi -L; the device may have fallen off the bus or be hidden from this container"
            found.missing.append(Missing(f"nvml.gpu{index}", why or "no handle", remedy))
        else:
            found.extend(_device(nvml, handle, index, now_ns, wall, poll_ns))
    return found


def _device(nvml: Any, handle: Any, index: int, now_ns: NowNs, wall: WallMap, poll_ns: int) -> Found:
    """The sensors of one GPU, each tried once: what refuses goes into missing with the driver's reason."""
    device = f"gpu{index}"
    mig = _call(nvml, nvml.nvmlDeviceGetMigMode, handle)[0]
    note = _MIG_NOTE if mig and mig[0] else ""
    architecture = _call(nvml, nvml.nvmlDeviceGetArchitecture, handle)[0]
    period = 20 * _MS if architecture in _FAST_ARCHITECTURES else 100 * _MS

    def info(name: str, domain: str, scope: str, period_ns: int, limits: str, counter: bool = False) -> SensorInfo:
        return SensorInfo(
            source=f"nvml.{name}",
            domain=domain,
            device=device,
            reading="counter" if counter else "gauge",
            unit="uJ" if counter else "mW",
            period_ns=period_ns,
            resolution=1000 if counter else 1,
            scope=scope,
            limits=note + limits,
        )

    limits = _COUNTER_LIMITS.format(ms=period // _MS)
    candidates: list[Source] = [
        Counter(nvml, handle, info(f"{device}.energy", "gpu", "board", period, limits, counter=True), period),
        Ring(
            nvml,
            handle,
            info(f"{device}.ring", "gpu", "board", 20 * _MS, "the driver's 20 ms samples, two seconds deep"),
            wall,
            1000 * _MS,
        ),
    ]
    wanted = [
        ((POWER_INSTANT, SCOPE_GPU), info(f"{device}.power", "gpu", "board", period, _INSTANT_LIMITS)),
        (
            (POWER_AVERAGE, SCOPE_MEMORY),
            info(
                f"hbm{index}.power", "hbm", "memory, part of the board", period, "a 1 s average: never decides a phase"
            ),
        ),
        (
            (POWER_INSTANT, SCOPE_MODULE),
            info(f"module{index}.power", "module", "superchip: GPU, CPU and their memory", period, _INSTANT_LIMITS),
        ),
    ]
    found = Found()
    granted = []
    for field, about in wanted:
        [sample] = Fields(nvml, handle, [(field, about)], wall, poll_ns).read(now_ns)
        if isinstance(sample, PowerSample) and sample.value is None:
            found.missing.append(Missing(about.source, f"field {field[0]} scope {field[1]}: {sample.why}", None))
        else:
            granted.append((field, about))
    if granted:
        found.sources.append(Fields(nvml, handle, granted, wall, poll_ns))
    # Before the counter: what is due together is read in this order, and the counter holds up what follows.
    found.sources.append(State(nvml, handle, device, 100 * _MS))
    for source in candidates:
        failed = [r.why for r in source.read(now_ns) if isinstance(r, PowerSample) and r.value is None]
        if failed:
            found.missing.append(Missing(source.name, failed[0] or "no value", None))
        else:
            found.sources.append(source)
    found.sources.append(GpuProcesses(nvml, handle, device))
    return found


def _number(value: _FieldValue) -> int:
    """The number in a field, by its declared type."""
    if value.kind == _UINT:
        return int(value.number) & 0xFFFF_FFFF
    return int(getattr(_Value.from_buffer(value, _FieldValue.number.offset), _FIELD_TYPES.get(value.kind, "uiVal")))


def _call(nvml: Any, function: Callable[..., Any], *args: Any) -> tuple[Any | None, str | None]:
    """A driver call as a value: (result, None) or (None, the driver's reason)."""
    try:
        return function(*args), None
    except nvml.NVMLError as error:
        return None, str(error)


def _error(nvml: Any, code: int) -> str:
    return str(nvml.NVMLError(code))
