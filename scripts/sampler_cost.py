"""What a sampler says of its own cost in a power journal, for the benchmarks that run beside one."""

from __future__ import annotations

import statistics
from typing import Any

from energy.summary import Summary


def cost(summary: Summary) -> dict[str, Any]:
    """CPU and time inside the NVIDIA driver (percent of wall time), lateness, missed ticks, each sensor's mean.

    Driver time is from the heartbeats, not from the samples: a field's interval reaches back to the driver's own stamp,
    and a ring's samples have none. A counter's stamps are around its call.
    """
    driver = {name: 100 * share for name, share in summary.call_shares.items() if name.startswith("nvml.")}
    counters = {name: s.call_ns for name, s in summary.sensors.items() if s.info.reading == "counter" and s.call_ns}
    last = summary.last_beat
    return {
        "cpu_percent": None if summary.cpu_share is None else 100 * summary.cpu_share,
        "driver_percent": sum(driver.values()) if summary.call_shares else None,
        "driver_percent_by_call": driver,
        "ticks": last.ticks if last else None,
        "missed": last.missed if last else None,
        "late_p99_ms_worst_second": summary.late_p99_ns / 1e6,
        "mean_w": {name: s.mean_mw and s.mean_mw / 1000 for name, s in summary.sensors.items()},
        "call_us_p50": {name: statistics.median(ns) / 1000 for name, ns in counters.items()},
        "lost": summary.lost,
    }
