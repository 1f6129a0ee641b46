"""Running figures of a replay: counts for the status page, lateness and self-observation for the verdict on the run.

Lives here: constant-size state only, so a trace of any length fits. May not know: sockets, prompts, files. Exact
percentiles come afterwards from the dispatch journal (loadgen.metrics); those here are for the live view and verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from traces.status import HISTOGRAM_BUCKETS, StatusPage, histogram_names, percentile_ns

COUNTERS = (
    "t_start_ns", "finished", "workflows_total", "workflows_started", "workflows_done", "workflows_failed",
    "requests_sent", "requests_done", "requests_failed", "requests_rejected", "tokens_in", "tokens_out",
)  # fmt: skip
HISTOGRAMS = ("ttft", "e2e", "lateness", "makespan")


def slot_names() -> list[str]:
    """Slots of the load generator's status page."""
    return [*COUNTERS, *(slot for name in HISTOGRAMS for slot in histogram_names(name))]


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


_PUBLISH_EVERY_NS = 100_000_000
_PENDING = 4096
"""durations kept before they are put into their histogram"""


class Tally:
    """Counts as things happen. The status page, where there is one, is written ten times a second, not per event."""

    def __init__(self, page: StatusPage | None, now_ns: int) -> None:
        self.totals = ReplayTotals(t_start_ns=now_ns)
        self._page = page
        self._published_ns = now_ns
        self._started = self._answered = 0
        self._seen: dict[str, list[int]] = {name: [] for name in (*HISTOGRAMS, "wake")}
        """durations not yet in their histogram"""
        self._counts = {name: np.zeros(HISTOGRAM_BUCKETS, dtype=np.int64) for name in self._seen}
        self._late = self._seen["lateness"].append
        self._e2e = self._seen["e2e"].append
        self._ttft = self._seen["ttft"].append
        if page is not None:
            page.set("t_start_ns", now_ns)

    def workflow_started(self) -> None:
        """One workflow's first root came due."""
        self.totals.workflows += 1

    def workflow_ended(self, ok: bool, makespan_ns: int | None) -> None:
        """Every node of a workflow has ended or was skipped."""
        if not ok:
            self.totals.workflows_failed += 1
            return
        self.totals.workflows_done += 1
        if makespan_ns is not None:
            self._seen["makespan"].append(makespan_ns)

    def woke(self, late_ns: int) -> None:
        """The loop woke this much after the instant it was to wake at."""
        self._seen["wake"].append(late_ns)

    def queued(self, sends: int) -> None:
        """Requests whose bytes the kernel did not take at once."""
        self.totals.queued_sends += sends

    def retried(self) -> None:
        """A failed request will be sent once more; its failure leaves no row."""
        self.totals.retries += 1

    def sent(self, late_ns: int) -> None:
        """One request left (the first time or again)."""
        self._started += 1
        self._late(late_ns)

    def ended(self, row: dict[str, Any]) -> None:
        """One node's dispatch row is complete."""
        totals = self.totals
        outcome = row["outcome"]
        if row["kind"] != "llm":
            totals.tools += 1
            return
        totals.outcomes[outcome] = totals.outcomes.get(outcome, 0) + 1
        if outcome != "skipped":
            totals.requests += 1
        events = 0
        reads = row.get("read_tokens")
        if reads:
            events = sum(reads)
            with_tokens = len(reads) - reads.count(0)
            totals.token_events += events
            totals.reads_with_tokens += with_tokens
            totals.merged_events += events - with_tokens
        if outcome == "ok":
            self._ok(row, events)

    def _ok(self, row: dict[str, Any], events: int) -> None:
        totals = self.totals
        prompt, output = row.get("prompt_tokens"), row.get("completion_tokens")
        if prompt is not None:
            totals.prompt_tokens += prompt
            if output is not None:
                if prompt == row["planned_input_tokens"] and output == row["planned_output_tokens"]:
                    totals.usage_exact += 1
                else:
                    totals.usage_off += 1
        totals.output_tokens += events if output is None else output
        due, end = row["due_ns"], row["t_end_ns"]
        self._e2e(end - due)
        first = row.get("t_first_token_ns")
        if first is not None:
            self._ttft(first - due)
        if end - self._published_ns >= _PUBLISH_EVERY_NS or len(self._seen["e2e"]) >= _PENDING:
            self._published_ns = end
            self.publish()

    def publish(self) -> None:
        """Put what has been seen into the histograms, and everything on the page."""
        for name, seen in self._seen.items():
            if seen:
                self._counts[name] += np.bincount(_buckets(seen), minlength=HISTOGRAM_BUCKETS)
                seen.clear()
        page, totals = self._page, self.totals
        if page is None:
            return
        page.set("workflows_started", totals.workflows)
        page.set("workflows_done", totals.workflows_done)
        page.set("workflows_failed", totals.workflows_failed)
        page.set("requests_sent", self._started)
        page.set("requests_done", totals.outcomes.get("ok", 0))
        page.set("requests_failed", totals.errors)
        page.set("requests_rejected", totals.rejected)
        page.set("tokens_in", totals.prompt_tokens)
        page.set("tokens_out", totals.output_tokens)
        for name in HISTOGRAMS:
            at = page.index[f"{name}.0"]
            np.asarray(page.slots)[at : at + HISTOGRAM_BUCKETS] = self._counts[name]

    def close(self, now_ns: int, bounds: Bounds, *, connections: int, stopped: bool) -> ReplayTotals:
        """The verdict."""
        self.publish()
        totals = self.totals
        totals.t_end_ns = now_ns
        totals.connections = connections
        totals.stopped = stopped
        totals.lateness_counts = _trimmed(self._counts["lateness"].tolist())
        totals.wake_counts = _trimmed(self._counts["wake"].tolist())
        _judge(totals, bounds)
        if self._page is not None:
            self._page.set("finished", 1)
        return totals


def _buckets(values_ns: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """traces.status.bucket of many durations."""
    us = np.maximum(np.asarray(values_ns, dtype=np.float64) / 1000, 1.0)
    found: np.ndarray[Any, np.dtype[np.int64]] = (4 * np.log2(us)).astype(np.int64)
    np.minimum(found, HISTOGRAM_BUCKETS - 1, out=found)
    return found


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
    _judge(out, bounds)
    return out


_SUMS = (
    "workflows", "workflows_done", "workflows_failed", "requests", "tools", "prompt_tokens", "output_tokens",
    "reads_with_tokens", "token_events", "merged_events", "queued_sends", "connections", "usage_exact", "usage_off",
    "retries",
)  # fmt: skip


def _judge(totals: ReplayTotals, bounds: Bounds) -> None:
    totals.lateness_p50_ns = percentile_ns(totals.lateness_counts, 0.5)
    totals.lateness_p99_ns = percentile_ns(totals.lateness_counts, 0.99)
    totals.wake_p99_ns = percentile_ns(totals.wake_counts, 0.99)
    totals.why = verdict(totals, bounds)


def _trimmed(counts: list[int]) -> list[int]:
    last = max((i for i, n in enumerate(counts) if n), default=-1)
    return counts[: last + 1]


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
