"""What a power source is: one cheap call that yields the readings of one or more sensors, or says why it cannot.

Lives here: the Protocol, and missing sensors as data (reason and remedy). A source stamps the clock before and after
its call; the reading belongs to that interval. May not know: periods of the sampler, journals, other sources.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from traces.records import DeviceState, PowerSample, ProcessSample, SensorInfo
from traces.seams import NowNs

Reading = PowerSample | DeviceState | ProcessSample


class Source(Protocol):
    """One call into one interface (a driver, a set of files). Not thread-safe: one reader at a time."""

    @property
    def name(self) -> str:
        """For messages: nvml.gpu0.energy, rapl, sim ..."""

    @property
    def infos(self) -> tuple[SensorInfo, ...]:
        """The sensors this call yields; fixed for the life of the source."""

    @property
    def poll_ns(self) -> int:
        """How often it should be read."""

    def read(self, now_ns: NowNs) -> list[Reading]:
        """Read once. A failed sensor yields a sample with value None and why; only a bug raises."""

    def close(self) -> None:
        """Give back files and handles."""


@runtime_checkable
class Grabs(Protocol):
    """A source that is read often and can part the call from what it means: `read` is `readings(grab(now_ns))`.

    The sampler grabs at the deadline and asks for the readings later, many at once.
    """

    def grab(self, now_ns: NowNs) -> Any:
        """Call, stamp before and after; nothing else. Never None."""

    def readings(self, raw: Any) -> list[Reading]:
        """What a grab shows."""


@runtime_checkable
class Waits(Protocol):
    """A source that is offered a read more often than it takes one (energy.edges)."""

    def due(self, now_ns: int) -> bool:
        """Whether to read now."""

    @property
    def period_ns(self) -> int:
        """How often it reads in the long run."""


@dataclass(frozen=True, slots=True)
class Polled:
    """The same source at another period (probes poll counters at a fifth of their update period)."""

    source: Source
    poll_ns: int

    @property
    def name(self) -> str:
        """As the source's."""
        return self.source.name

    @property
    def infos(self) -> tuple[SensorInfo, ...]:
        """As the source's."""
        return self.source.infos

    def read(self, now_ns: NowNs) -> list[Reading]:
        """As the source's."""
        return self.source.read(now_ns)

    def close(self) -> None:
        """As the source's."""
        self.source.close()


@dataclass(frozen=True, slots=True)
class Missing:
    """A sensor that cannot be read here: why, and the command or step that would grant it (None: nothing can)."""

    sensor: str
    why: str
    remedy: str | None = None

    def sentence(self) -> str:
        """One line for tables and journals."""
        return f"{self.why}; {self.remedy}" if self.remedy else self.why


@dataclass
class Found:
    """Result of looking for sensors: what can be read, what cannot and why."""

    sources: list[Source] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def infos(self) -> list[SensorInfo]:
        """All sensors found."""
        return [info for source in self.sources for info in source.infos]

    def extend(self, other: Found) -> None:
        """Take over another result."""
        self.sources.extend(other.sources)
        self.missing.extend(other.missing)

    def close(self) -> None:
        """Close every source."""
        for source in self.sources:
            source.close()
