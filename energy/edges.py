"""Reads a costly counter once per update, just after its edge, instead of at a fifth of its period all the time.

The wrapped source is offered a read at every tick (a fifth of the period) and takes it only when an update is due;
every tenth time one tick early, so that the edge is followed when it drifts and bracketed by an old and a new value.
May not know: what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from energy.source import Reading, Source
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

EARLY_EVERY = 10
_GIVE_UP_PERIODS = 2


@dataclass
class Phase:
    """Decides at which ticks to read. Pure: fed with instants and values, asked whether a read is due."""

    period_ns: int
    tick_ns: int
    next_ns: int | None = None
    """None: every tick, until an edge is seen"""
    last: int | None = None
    changed_ns: int | None = None
    edges: int = 0

    def due(self, now_ns: int) -> bool:
        """Whether to read at this tick (half a tick of grace for ticks that come a little early)."""
        return self.next_ns is None or now_ns >= self.next_ns - self.tick_ns // 2

    def saw(self, t_ns: int, value: int | None) -> None:
        """A read at t_ns gave this value (None: it failed)."""
        before, self.last = self.last, value if value is not None else self.last
        if value is None or before is None:
            self.next_ns = None if value is not None else t_ns + self.period_ns
            self.changed_ns = t_ns
            return
        if value == before:
            stuck = self.changed_ns is not None and t_ns - self.changed_ns > _GIVE_UP_PERIODS * self.period_ns
            self.next_ns = t_ns + self.period_ns if stuck else None
            return
        self.changed_ns = t_ns
        self.edges += 1
        early = self.tick_ns if self.edges % EARLY_EVERY == 0 else 0
        self.next_ns = t_ns + self.period_ns - early


class EdgeLocked:
    """A source with one counter, read once per update just after the edge."""

    def __init__(self, source: Source, period_ns: int) -> None:
        self.source = source
        self.period_ns = period_ns
        self.poll_ns = period_ns // 5
        self._phase = Phase(period_ns, self.poll_ns)

    @property
    def name(self) -> str:
        """As the source's."""
        return self.source.name

    @property
    def infos(self) -> tuple[SensorInfo, ...]:
        """As the source's."""
        return self.source.infos

    def due(self, now_ns: int) -> bool:
        """Whether an update is due."""
        return self._phase.due(now_ns)

    def read(self, now_ns: NowNs) -> list[Reading]:
        """A sample when an update is due, nothing otherwise."""
        if not self._phase.due(now_ns()):
            return []
        readings = self.source.read(now_ns)
        for reading in readings:
            if isinstance(reading, PowerSample):
                self._phase.saw(reading.t0_ns, reading.value)
        return readings

    def close(self) -> None:
        """As the source's."""
        self.source.close()


def unlocked(source: Source) -> Source:
    """The source itself, for those who want to read at every tick (doctor, probe)."""
    return source.source if isinstance(source, EdgeLocked) else source
