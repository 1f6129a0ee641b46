"""The last resort where nothing can be measured: CPU energy as design power x utilisation, marked `estimated`.

Real packages draw a good part of their power at idle and less than the TDP under most loads, so this tells magnitudes
only; every reader leaves it out of measured totals. The watts come from the user (the maker's page), never from here.
May not know: what the estimate is used for.
"""

from __future__ import annotations

import os
from pathlib import Path

from energy.procs import PROC, busy_ticks
from energy.source import Found, Missing, Reading
from traces.errors import UserError
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

IDLE_SHARE = 0.3
"""of the TDP at no load, where the user gives no idle watts: between the 0.2 and 0.5 that servers show"""
_LIMITS = "an estimate, not measured: {tdp_w:g} W x utilisation above {idle_w:g} W at idle; for magnitudes only"
_POLL_NS = 100_000_000


class Estimate:
    """A counter in uJ that grows by idle + (TDP - idle) x the host's busy share."""

    name = "tdp"
    poll_ns = _POLL_NS

    def __init__(self, tdp_w: float, idle_w: float, cores: int, root: Path = PROC, tick_ns: int | None = None) -> None:
        self._tdp_w, self._idle_w, self._cores, self._root = tdp_w, idle_w, cores, root
        self._tick_ns = tick_ns or 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        self._last: tuple[int, int] | None = None
        self._nj = 0.0
        self.infos: tuple[SensorInfo, ...] = (
            SensorInfo(
                source="tdp.cpu.energy",
                domain="cpu",
                device="cpu0",
                reading="counter",
                unit="uJ",
                period_ns=_POLL_NS,
                resolution=1,
                scope="package",
                limits=_LIMITS.format(tdp_w=tdp_w, idle_w=idle_w),
                estimated=True,
            ),
        )

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample; the busy share is the mean since the last read."""
        t0 = now_ns()
        busy = busy_ticks(self._root)
        t1 = now_ns()
        if busy is None:
            return [PowerSample(self.infos[0].source, t0, t1, None, f"{self._root}/stat cannot be read")]
        if self._last is not None and t1 > self._last[0]:
            span_ns = t1 - self._last[0]
            share = min(1.0, max(0, busy - self._last[1]) * self._tick_ns / (span_ns * self._cores))
            self._nj += (self._idle_w + (self._tdp_w - self._idle_w) * share) * span_ns
        self._last = (t1, busy)
        return [PowerSample(self.infos[0].source, t0, t1, int(self._nj / 1000))]

    def close(self) -> None:
        """Nothing is open."""


def find(where: str, root: Path = PROC) -> Found:
    """tdp:WATTS or tdp:WATTS:IDLE_WATTS, of all packages together. UserError for figures that make no sense."""
    try:
        tdp_w, *rest = (float(word) for word in where.split(":"))
        idle_w = rest[0] if rest else IDLE_SHARE * tdp_w
        if not 0 <= idle_w <= tdp_w < 1e5 or len(rest) > 1 or tdp_w == 0:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--sources tdp:{where}: give the design power of the CPUs in watts, as tdp:WATTS or tdp:WATTS:IDLE_WATTS"
        ) from None
    if busy_ticks(root) is None:
        return Found(missing=[Missing("tdp", f"no {root}/stat: not Linux, or hidden", None)])
    return Found([Estimate(tdp_w, idle_w, os.cpu_count() or 1, root)])
