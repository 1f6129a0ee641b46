"""What the live view shows, as values: one LiveState per refresh.

A part that does not run is None, and so is a figure that is not known yet; nothing here is 0 for want of a reading.
May not know: status pages, rich, terminals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Three quantiles of a duration in ns, upper edges of histogram buckets (never flattering, at most 19 % high)."""

    p50: int | None
    p95: int | None
    p99: int | None


UNKNOWN = Quantiles(None, None, None)


@dataclass(frozen=True, slots=True)
class Load:
    """The load generator: planned, started, done."""

    workflows_total: int | None
    """None while the trace is still being read"""
    workflows_started: int
    workflows_done: int
    workflows_failed: int
    requests_sent: int
    requests_done: int
    requests_failed: int
    requests_rejected: int
    requests_over: int
    """of those sent: whatever became of them, cancelled and given up too"""
    tokens_out: int
    elapsed_ns: int | None
    finished: bool
    ttft: Quantiles = UNKNOWN
    e2e: Quantiles = UNKNOWN
    lateness: Quantiles = UNKNOWN
    makespan: Quantiles = UNKNOWN
    tokens_per_s: float | None = None
    """over the last seconds"""

    @property
    def workflows_in_flight(self) -> int:
        """Started and not yet over."""
        return max(0, self.workflows_started - self.workflows_done - self.workflows_failed)

    @property
    def requests_in_flight(self) -> int:
        """Sent and not yet over."""
        return max(0, self.requests_sent - self.requests_over)


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxy: what passes through it."""

    requests: int
    in_flight: int
    queued: int
    done: int
    """those that only look (polls of /metrics ...) left out"""
    errors: int
    client_left: int
    tokens_out: int
    journal_depth: int
    journal_dropped: int
    ttft: Quantiles = UNKNOWN
    e2e: Quantiles = UNKNOWN
    itl: Quantiles = UNKNOWN
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """The embedded engine's own view."""

    running: int
    waiting: int
    kv_usage: float
    """0..1"""
    lag_ns: int
    """how far it runs behind its model's time"""


@dataclass(frozen=True, slots=True)
class Device:
    """One power sensor."""

    name: str
    source: str
    watts: float | None
    """mean of about the last second; None while two readings are missing"""
    joules: float | None
    """since the view began to watch; None for a gauge"""
    history: tuple[float, ...] = ()
    """past watts, oldest first, one per refresh"""
    inside: str | None = None
    """the device whose reading already contains this one (HBM in its GPU)"""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampler's own figures."""

    sensors: int
    ticks: int
    missed: int
    cpu_ns: int


@dataclass(frozen=True, slots=True)
class LiveState:
    """Everything one refresh shows."""

    title: str
    load: Load | None = None
    proxy: Proxy | None = None
    engine: Engine | None = None
    sampling: Sampling | None = None
    devices: tuple[Device, ...] = ()
    joules: Mapping[str, float | None] = field(default_factory=dict)
    """class -> joules attributed so far (provisional)"""
    note: str | None = None
    """one sentence from the caller: draining, waiting for the engine ..."""

    @property
    def progress(self) -> float | None:
        """0..1 of the workflows, None when the total is unknown."""
        load = self.load
        if load is None or not load.workflows_total:
            return None
        return min(1.0, (load.workflows_done + load.workflows_failed) / load.workflows_total)
