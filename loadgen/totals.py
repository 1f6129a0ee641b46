"""What a replay did, and the generator's verdict on itself; the totals of shards put together.

Pure values: no state of a run, no clock, no page. May not know: how the figures were counted (loadgen.tally).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from traces.status import percentile_ns


@dataclass(frozen=True, slots=True)
class Bounds:
    """Past these a run is invalid: the generator, not the engine, made its figures."""

    lateness_p99_ns: int = 20_000_000
    """sent - due"""
    wake_p99_ns: int = 20_000_000
    """how late the event loop itself woke for a due instant"""
    merged_share: float = 0.2
    """share of token events that arrived in one read with others"""
    queued_share: float = 0.01
    """share of requests whose bytes the kernel did not take at once"""


@dataclass(slots=True)
class ReplayTotals:
    """What a replay did. `valid` with `why` is the generator's verdict on itself."""

    workflows: int = 0
    workflows_done: int = 0
    workflows_failed: int = 0
    requests: int = 0
    """LLM requests sent or refused a connection"""
    outcomes: dict[str, int] = field(default_factory=dict)
    """outcome -> nodes of any kind; "ok" of tool nodes included under `tools`"""
    tools: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    t_start_ns: int = 0
    t_end_ns: int = 0
    lateness_p50_ns: int | None = None
    lateness_p99_ns: int | None = None
    """upper edges of histogram buckets: never flattering; the exact figure is in the report"""
    wake_p99_ns: int | None = None
    reads_with_tokens: int = 0
    token_events: int = 0
    merged_events: int = 0
    """token events beyond the first of their read"""
    queued_sends: int = 0
    connections: int = 0
    usage_exact: int = 0
    usage_off: int = 0
    """requests whose usage matched the plan in both lengths, or did not"""
    retries: int = 0
    """repeated sendings; 0 unless they were asked for"""
    lateness_counts: list[int] = field(default_factory=list)
    wake_counts: list[int] = field(default_factory=list)
    """histograms as on the status page (traces.status.bucket), trailing zeros cut, so that shards can be merged"""
    stopped: bool = False
    why: list[str] = field(default_factory=list)
    """reasons for which the run is invalid; empty when it is valid"""

    @property
    def valid(self) -> bool:
        """No bound was passed."""
        return not self.why

    @property
    def errors(self) -> int:
        """Requests that failed otherwise than by the engine's rule or our own will."""
        return sum(n for k, n in self.outcomes.items() if k in FAILED)

    @property
    def rejected(self) -> int:
        """Requests the engine refused by rule."""
        return self.outcomes.get("rejected", 0)


FAILED = frozenset({"error", "upstream_died", "unreachable", "timeout", "client_left"})


def merged(parts: Sequence[ReplayTotals], bounds: Bounds) -> ReplayTotals:
    """The totals of shards as one: counts added, percentiles and verdict from the merged histograms."""
    out = ReplayTotals(t_start_ns=min(p.t_start_ns for p in parts), t_end_ns=max(p.t_end_ns for p in parts))
    for part in parts:
        for name in _SUMS:
            setattr(out, name, getattr(out, name) + getattr(part, name))
        for outcome, count in part.outcomes.items():
            out.outcomes[outcome] = out.outcomes.get(outcome, 0) + count
        out.lateness_counts = _added(out.lateness_counts, part.lateness_counts)
        out.wake_counts = _added(out.wake_counts, part.wake_counts)
        out.stopped = out.stopped or part.stopped
    judge(out, bounds)
    return out


_SUMS = (
    "workflows", "workflows_done", "workflows_failed", "requests", "tools", "prompt_tokens", "output_tokens",
    "reads_with_tokens", "token_events", "merged_events", "queued_sends", "connections", "usage_exact", "usage_off",
    "retries",
)  # fmt: skip


def judge(totals: ReplayTotals, bounds: Bounds) -> None:
    totals.lateness_p50_ns = percentile_ns(totals.lateness_counts, 0.5)
    totals.lateness_p99_ns = percentile_ns(totals.lateness_counts, 0.99)
    totals.wake_p99_ns = percentile_ns(totals.wake_counts, 0.99)
    totals.why = verdict(totals, bounds)


def _added(a: list[int], b: list[int]) -> list[int]:
    return [x + y for x, y in zip_longest(a, b, fillvalue=0)]


def verdict(totals: ReplayTotals, bounds: Bounds) -> list[str]:
    """Why the run must not be believed, one sentence each; empty when nothing speaks against it."""
    why: list[str] = []
    late, wake = totals.lateness_p99_ns, totals.wake_p99_ns
    if late is not None and late > bounds.lateness_p99_ns:
        why.append(
            f"p99 lateness (sent - due) is {late / 1e6:.1f} ms, over the bound of {bounds.lateness_p99_ns / 1e6:g} ms: "
            "the generator could not keep the schedule."
        )
    if wake is not None and wake > bounds.wake_p99_ns:
        why.append(
            f"p99 loop lag is {wake / 1e6:.1f} ms, over the bound of {bounds.wake_p99_ns / 1e6:g} ms: "
            "the generator's own process distorts every stamp."
        )
    if totals.requests and totals.queued_sends > bounds.queued_share * totals.requests:
        why.append(
            f"{totals.queued_sends} of {totals.requests} requests were not taken by the kernel at once: "
            "their sent stamps are too early."
        )
    if totals.token_events and totals.merged_events > bounds.merged_share * totals.token_events:
        share = totals.merged_events / totals.token_events
        why.append(
            f"{share:.0%} of the token events came in one read with others (bound {bounds.merged_share:.0%}): gaps "
            "between tokens are not what the engine did; if the server sends in bursts, raise the bound and say so."
        )
    return why
