"""What a sensor's readings mean for the journal: lost, back again, reset, or a pair between which the energy is known.

Fed with samples in order of time, writes events; the newest good value of each sensor is kept for the status page.
May not know: deadlines, threads, clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from traces.records import PowerEvent, PowerSample, SensorInfo

LOST_AFTER = 3
RETRY_NS = 1_000_000_000
MAX_WATTS = {"cpu": 1_000, "core": 1_000, "uncore": 1_000, "dram": 1_000, "gpu": 3_000, "hbm": 3_000}
MAX_WATTS_OTHER = 20_000
"""No single device draws more: a counter step beyond it is a reset, a gap that could hide a whole wrap is a break."""
Write = Callable[[Any], None]


def unjoinable(before: PowerSample, after: PowerSample, info: SensorInfo) -> str | None:
    """Why the energy between two readings of a counter cannot be known (reset, or a gap beyond one wrap), or None.

    None means the step is `after - before`, plus wraps_at where that is negative.
    """
    if info.reading != "counter" or before.value is None or after.value is None:
        return None
    step_uj, most_uj = after.value - before.value, _most_uj(before, after, info)
    if info.wraps_at is None:
        return (
            f"the counter went back from {before.value} to {after.value} uJ (driver reload?)" if step_uj < 0 else None
        )
    if most_uj >= info.wraps_at:
        return f"{(after.t0_ns - before.t1_ns) / 1e9:.0f} s without a reading could hide a wrap of {info.wraps_at} uJ"
    if step_uj < 0 and step_uj + info.wraps_at > most_uj:
        return f"the counter went back from {before.value} to {after.value} uJ, too far for a wrap"
    return None


def _most_uj(before: PowerSample, after: PowerSample, info: SensorInfo) -> int:
    """The most energy the device can have drawn between two readings (one update period of slack)."""
    span_ns = after.t1_ns - before.t0_ns + (info.period_ns or 0)
    return MAX_WATTS.get(info.domain, MAX_WATTS_OTHER) * span_ns // 1000


@dataclass
class Sensor:
    """What is remembered of one sensor."""

    info: SensorInfo
    last: PowerSample | None = None
    """last good sample"""
    failures: int = 0
    lost: bool = False


class Judge:
    """All sensors of a sampler. `gaps`, `resets` and `lost` count what was written of each kind."""

    def __init__(self, infos: Iterable[SensorInfo], write: Write) -> None:
        self._write = write
        self._sensors = {info.source: Sensor(info) for info in infos}
        self.gaps = self.resets = self.lost = 0

    def take(self, sample: PowerSample) -> None:
        """One more sample of a sensor, in order of time."""
        sensor = self._sensors[sample.source]
        if sample.value is None:
            sensor.failures += 1
            if sensor.failures == LOST_AFTER:
                self._lose(sensor, sample.t0_ns, sample.why)
            return
        last = sensor.last
        if sensor.lost and last is not None:
            self._gap(sensor, last.t1_ns, sample.t0_ns, "the sensor was lost and came back")
        sensor.failures, sensor.lost = 0, False
        # Only a step back or a long pause can break a counter; every other pair of readings joins.
        if last is not None and (sample.value < (last.value or 0) or sample.t0_ns - last.t1_ns > RETRY_NS):
            self._check_joint(sensor, last, sample)
        sensor.last = sample

    def _check_joint(self, sensor: Sensor, last: PowerSample, sample: PowerSample) -> None:
        if why := unjoinable(last, sample, sensor.info):
            self.resets += 1
            self._write(PowerEvent("reset", last.t1_ns, sample.source, sample.t0_ns, why=why))

    def unread(self, infos: Iterable[SensorInfo], since_ns: int, until_ns: int, why: str) -> None:
        """Nobody read these sensors in [since_ns, until_ns]; those that are lost have said so already."""
        for info in infos:
            sensor = self._sensors[info.source]
            if not sensor.lost:
                self._gap(sensor, since_ns, until_ns, why)

    def lose(self, infos: Iterable[SensorInfo], since_ns: int, why: str) -> None:
        """These sensors cannot be read."""
        for info in infos:
            self._lose(self._sensors[info.source], since_ns, why)

    def all_lost(self, infos: Iterable[SensorInfo]) -> bool:
        """Whether none of these sensors answers (False for none at all)."""
        sensors = [self._sensors[info.source] for info in infos]
        return bool(sensors) and all(sensor.lost for sensor in sensors)

    def newest(self) -> dict[str, int]:
        """Slots of a status page: the last good value of each sensor and its instant."""
        shown: dict[str, int] = {}
        for name, sensor in self._sensors.items():
            if sensor.last is not None and sensor.last.value is not None:
                shown[f"{name}.value"], shown[f"{name}.t_ns"] = sensor.last.value, sensor.last.t1_ns
        return shown

    def _lose(self, sensor: Sensor, since_ns: int, why: str | None) -> None:
        if not sensor.lost:
            sensor.lost = True
            self.lost += 1
            self._write(PowerEvent("lost", since_ns, source=sensor.info.source, why=why))

    def _gap(self, sensor: Sensor, since_ns: int, until_ns: int, why: str) -> None:
        self.gaps += 1
        self._write(PowerEvent("gap", since_ns, sensor.info.source, until_ns, why=why))
