"""What a sampler says of its own cost in a power journal, for the benchmarks that run beside one."""

from __future__ import annotations

import statistics
from typing import Any

from energy.summary import Summary

SHARED = (".hbm", ".module")
"""sensors that come with gpuN.power in one driver call: their time is counted once"""


def cost(summary: Summary) -> dict[str, Any]:
    """CPU and time inside the NVIDIA driver (percent of wall time), lateness, missed ticks, each sensor's mean."""
    first, last = summary.first_beat, summary.last_beat
    span_ns = last.t_ns - first.t_ns if first and last else 0
    calls = {name: s.call_ns for name, s in summary.sensors.items() if s.call_ns}
    driver_ns = sum(
        sum(ns) for name, ns in calls.items() if name.startswith("nvml.") and not any(part in name for part in SHARED)
    )
    return {
        "cpu_percent": None if summary.cpu_share is None else 100 * summary.cpu_share,
        "driver_percent": 100 * driver_ns / span_ns if span_ns else None,
        "ticks": last.ticks if last else None,
        "missed": last.missed if last else None,
        "late_p99_ms_worst_second": summary.late_p99_ns / 1e6,
        "mean_w": {name: s.mean_mw and s.mean_mw / 1000 for name, s in summary.sensors.items()},
        "call_us_p50": {name: statistics.median(ns) / 1000 for name, ns in calls.items()},
        "lost": summary.lost,
    }
