"""Running figures of a replay: counts for the status page, lateness and self-observation for the verdict on the run.

Lives here: constant-size state only, so a trace of any length fits. May not know: sockets, prompts, files. Exact
percentiles come afterwards from the dispatch journal (loadgen.metrics); those here are for the live view and verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from traces.status import HISTOGRAM_BUCKETS, StatusPage, bucket, histogram_names, percentile_ns

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


class Tally:
    """Counts as things happen; writes the status page where there is one."""

    def __init__(self, page: StatusPage | None, now_ns: int) -> None:
        self.totals = ReplayTotals(t_start_ns=now_ns)
        self._lateness = [0] * HISTOGRAM_BUCKETS
        self._wake = [0] * HISTOGRAM_BUCKETS
        self._page = page
        if page is not None:
            page.set("t_start_ns", now_ns)
            self._at = {name: page.index[name] for name in COUNTERS}
            self._histogram = {name: page.index[f"{name}.0"] for name in HISTOGRAMS}

    def workflow_started(self) -> None:
        """One workflow's first root came due."""
        self.totals.workflows += 1
        self._add("workflows_started")

    def workflow_ended(self, ok: bool, makespan_ns: int | None) -> None:
        """Every node of a workflow has ended or was skipped."""
        if ok:
            self.totals.workflows_done += 1
            self._add("workflows_done")
        else:
            self.totals.workflows_failed += 1
            self._add("workflows_failed")
        if ok and makespan_ns is not None:
            self._observe("makespan", makespan_ns)

    def woke(self, late_ns: int) -> None:
        """The loop woke this much after the instant it was to wake at."""
        self._wake[bucket(late_ns)] += 1

    def queued(self, sends: int) -> None:
        """Requests whose bytes the kernel did not take at once."""
        self.totals.queued_sends += sends

    def sent(self, late_ns: int) -> None:
        """One request left."""
        self.totals.requests += 1
        slot = bucket(late_ns)
        self._lateness[slot] += 1
        self._add("requests_sent")
        if self._page is not None:
            self._page.slots[self._histogram["lateness"] + slot] += 1

    def ended(self, row: dict[str, Any]) -> None:
        """One node's dispatch row is complete."""
        totals = self.totals
        outcome = row["outcome"]
        if row["kind"] != "llm":
            totals.tools += 1
            return
        totals.outcomes[outcome] = totals.outcomes.get(outcome, 0) + 1
        if "t_sent_ns" not in row and outcome != "skipped":
            totals.requests += 1
        events = self._reads(row.get("read_tokens", ()))
        if outcome == "ok":
            self._usage(row, events)
            if self._page is not None:
                self._answered(row)
        elif outcome == "rejected":
            self._add("requests_rejected")
        elif outcome in FAILED:
            self._add("requests_failed")

    def _answered(self, row: dict[str, Any]) -> None:
        self._add("requests_done")
        self._observe("e2e", row["t_end_ns"] - row["due_ns"])
        if "t_first_token_ns" in row:
            self._observe("ttft", row["t_first_token_ns"] - row["due_ns"])

    def close(self, now_ns: int, bounds: Bounds, *, connections: int, stopped: bool) -> ReplayTotals:
        """The verdict."""
        totals = self.totals
        totals.t_end_ns = now_ns
        totals.connections = connections
        totals.stopped = stopped
        totals.lateness_counts = _trimmed(self._lateness)
        totals.wake_counts = _trimmed(self._wake)
        _judge(totals, bounds)
        if self._page is not None:
            self._page.set("finished", 1)
        return totals

    def _reads(self, read_tokens: Sequence[int]) -> int:
        events = sum(read_tokens)
        reads = len(read_tokens) - read_tokens.count(0)
        totals = self.totals
        totals.token_events += events
        totals.reads_with_tokens += reads
        totals.merged_events += events - reads
        return events

    def _usage(self, row: dict[str, Any], events: int) -> None:
        totals = self.totals
        prompt, output = row.get("prompt_tokens"), row.get("completion_tokens")
        if prompt is not None:
            totals.prompt_tokens += prompt
            self._add("tokens_in", prompt)
            if output is not None:
                exact = prompt == row["planned_input_tokens"] and output == row["planned_output_tokens"]
                totals.usage_exact += exact
                totals.usage_off += not exact
        totals.output_tokens += events if output is None else output
        self._add("tokens_out", events if output is None else output)

    def _add(self, name: str, value: int = 1) -> None:
        if self._page is not None:
            self._page.slots[self._at[name]] += value

    def _observe(self, name: str, value_ns: int) -> None:
        if self._page is not None:
            self._page.slots[self._histogram[name] + bucket(value_ns)] += 1


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
