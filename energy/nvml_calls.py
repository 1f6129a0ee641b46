"""The NVML calls behind the NVIDIA sensors: one source per driver call, because calls serialise inside the driver.

The counter takes 3-5 ms on an H100, a ring read 0.3 ms, a field read 5 us, so each has its own polling period. Every
returned field carries its own return code and a wall stamp; both are checked. May not know: which sensors a card has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from ctypes import (
    Union,
    c_double,
    c_int,
    c_longlong,
    c_uint,
    c_ulong,
    c_ulonglong,
    c_ushort,
    create_string_buffer,
)
from struct import Struct
from typing import Any, ClassVar

from energy.source import Reading
from traces.records import DeviceState, PowerSample, SensorInfo
from traces.seams import NowNs

POWER_AVERAGE, POWER_INSTANT = 185, 186
SCOPE_GPU, SCOPE_MODULE, SCOPE_MEMORY = 0, 1, 2
TOTAL_POWER_SAMPLES = 0
_FIELD_TYPES = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
_UINT = 1
_ANCHOR_NS = 1_000_000_000
_MS = 1_000_000

WallNs = Callable[[], int]
_Asked = tuple[int, int, int, bytes, int]
"""before, after, return code, the fields as filled in, monotonic minus wall clock"""


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


_FIELD = Struct("=IIqqIIQ")
"""nvmlFieldValue_t: field, scope, wall stamp (us), latency (us), type of the value, return code, value as 64 bits"""


class WallMap:
    """Wall-clock microseconds of the driver to the monotonic axis, through an anchor renewed once a second."""

    def __init__(self, now_ns: NowNs, wall_ns: WallNs = time.time_ns) -> None:
        self._now_ns, self._wall_ns = now_ns, wall_ns
        self._renew()

    def _renew(self) -> None:
        """The tightest of three looks at both clocks: being preempted between them must not shift the map."""
        looks = []
        for _ in range(3):
            before, wall, after = self._now_ns(), self._wall_ns(), self._now_ns()
            looks.append((after - before, (before + after) // 2 - wall, before))
        _, self._offset, self._taken_ns = min(looks)

    def offset_ns(self, t_ns: int) -> int:
        """What to add to a wall instant for a monotonic one, at t_ns (now)."""
        if t_ns - self._taken_ns > _ANCHOR_NS:
            self._renew()
        return self._offset

    def mono_ns(self, wall_us: int) -> int:
        """The monotonic instant of a wall stamp."""
        return wall_us * 1000 + self.offset_ns(self._now_ns())


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
        value, why = call(self._nvml, self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
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
        self._values = create_string_buffer(_FIELD.size * len(wanted))
        for k, ((field, scope), _) in enumerate(wanted):
            _FIELD.pack_into(self._values, k * _FIELD.size, field, scope, 0, 0, 0, 0, 0)
        self._ask = nvml.nvmlLib.nvmlDeviceGetFieldValues
        self._count = len(wanted)
        self.infos: tuple[SensorInfo, ...] = tuple(info for _, info in wanted)
        self._names = [info.source for info in self.infos]
        self.name = self.infos[0].source
        self.poll_ns = poll_ns

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample per field in mW. The interval reaches back to the field's own stamp where that is earlier."""
        return self.readings(self.grab(now_ns))

    def grab(self, now_ns: NowNs) -> _Asked:
        """The library's answer as bytes."""
        t0 = now_ns()
        code = self._ask(self._handle, self._count, self._values)
        t1 = now_ns()
        return t0, t1, code, self._values.raw, self._wall.offset_ns(t1)

    def readings(self, raw: _Asked) -> list[Reading]:
        """One sample per field."""
        t0, t1, code, data, offset = raw
        oldest = t0 - 1000 * _MS
        readings: list[Reading] = []
        for name, (_, _, stamp_us, _, kind, failed, number) in zip(self._names, _FIELD.iter_unpack(data), strict=True):
            if code or failed:
                readings.append(PowerSample(name, t0, t1, None, _error(self._nvml, code or failed)))
                continue
            stamp = stamp_us * 1000 + offset
            value = number & 0xFFFF_FFFF if kind == _UINT else _number(kind, number)
            readings.append(PowerSample(name, stamp if oldest < stamp < t0 else t0, t1, value))
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
            kind, samples = self._ask()
        except self._nvml.NVMLError as error:
            if error.value == self._nvml.NVML_ERROR_NOT_FOUND and self._seen_us:
                return []
            return [PowerSample(self.name, t0, now_ns(), None, str(error))]
        member = _FIELD_TYPES.get(kind, "uiVal")
        readings: list[Reading] = []
        for sample in sorted(samples, key=lambda s: int(s.timeStamp)):
            if sample.timeStamp > self._seen_us:
                self._seen_us = int(sample.timeStamp)
                at = self._wall.mono_ns(self._seen_us)
                readings.append(PowerSample(self.name, at, at, int(getattr(sample.sampleValue, member))))
        return readings

    def _ask(self) -> tuple[int, list[Any]]:
        """The package asks for the size and then for the samples; one that arrives in between makes it too small."""
        for _ in range(3):
            try:
                kind, samples = self._nvml.nvmlDeviceGetSamples(self._handle, TOTAL_POWER_SAMPLES, self._seen_us)
                return int(kind), list(samples)
            except self._nvml.NVMLError as error:
                if error.value != self._nvml.NVML_ERROR_INSUFFICIENT_SIZE:
                    raise
        return _UINT, []

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
                sm_mhz=call(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)[0],
                mem_mhz=call(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)[0],
                temp_c=call(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)[0],
                throttle=call(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)[0],
            )
        ]

    def close(self) -> None:
        """The library is shared; nothing to close."""


def _number(kind: int, number: int) -> int:
    """The number in a field, by its declared type."""
    return int(getattr(_Value.from_buffer_copy(number.to_bytes(8, sys.byteorder)), _FIELD_TYPES.get(kind, "uiVal")))


def call(nvml: Any, function: Callable[..., Any], *args: Any) -> tuple[Any | None, str | None]:
    """A driver call as a value: (result, None) or (None, the driver's reason)."""
    try:
        return function(*args), None
    except nvml.NVMLError as error:
        return None, str(error)


def _error(nvml: Any, code: int) -> str:
    return str(nvml.NVMLError(code))
