"""The embedded engine's simulated sensors, read from its status page like a driver's registers.

Slots per sensor: <sensor>.value, .t_ns, .period_ns, .resolution, .wraps_at (0 = never). Only the value is taken, never
the page's own update instant: a real counter does not tell its edges either.
May not know: the engine (it is met only through traces.status).
"""

from __future__ import annotations

from energy.source import Reading, Source
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs
from traces.status import StatusReader

_DOMAINS = ("gpu", "hbm", "cpu", "dram")
_STALE_NS = 2_000_000_000
_POLL_NS = 20_000_000


class SimulatedSource:
    """One simulated sensor behind a status page."""

    def __init__(self, reader: StatusReader, sensor: str, poll_ns: int | None = None) -> None:
        self._reader = reader
        self._slots = (f"{sensor}.value", f"{sensor}.t_ns")
        period = reader.get(f"{sensor}.period_ns")
        counter = sensor.endswith(".energy")
        device = sensor.split(".")[1]
        domain = device.rstrip("0123456789")
        self.name = sensor
        # a host counter updates every millisecond; reading it as often as RAPL in earnest is enough
        self.poll_ns = poll_ns or max(_POLL_NS, period // 5)
        self.infos: tuple[SensorInfo, ...] = (
            SensorInfo(
                source=sensor,
                domain=domain if domain in _DOMAINS else "node",
                device=device,
                reading="counter" if counter else "gauge",
                unit="uJ" if counter else "mW",
                period_ns=period or None,
                resolution=reader.get(f"{sensor}.resolution") or None,
                wraps_at=reader.get(f"{sensor}.wraps_at") or None,
                scope="hbm, part of the gpu's reading" if domain == "hbm" else "board",
                limits="simulated by the embedded engine, not measured",
                simulated=True,
            ),
        )

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample; value None while the engine has not published one, or has stopped doing so."""
        t0 = now_ns()
        slots = self._reader.group(self._slots)
        t1 = now_ns()
        value, t_ns = (slots[name] for name in self._slots)
        why = None
        if t_ns == 0:
            why = "the embedded engine has not published this sensor yet"
        elif t0 - t_ns > _STALE_NS:
            why = f"the embedded engine has not updated this sensor for {(t0 - t_ns) / 1e9:.1f} s"
        return [PowerSample(self.name, t0, t1, None if why else value, why)]

    def close(self) -> None:
        """Nothing to give back: the reader belongs to the caller."""


def simulated_sources(reader: StatusReader, poll_ns: int | None = None) -> list[Source]:
    """Every sensor on an engine's status page; empty when the page has none. poll_ns: for all of them alike."""
    names = [name.removesuffix(".value") for name in reader.names if name.endswith(".value")]
    return [SimulatedSource(reader, name, poll_ns) for name in names if f"{name}.period_ns" in reader.index]
