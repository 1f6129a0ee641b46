"""Running figures of a replay: counts for the status page, lateness and self-observation for the verdict (totals).

Lives here: constant-size state only, so a trace of any length fits. May not know: sockets, prompts, files. Exact
percentiles come afterwards from the dispatch journal (loadgen.metrics); those here are for the live view and verdict.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loadgen.totals import Bounds, ReplayTotals, judge
from traces.status import HISTOGRAM_BUCKETS, StatusPage, histogram_names

COUNTERS = (
    "t_start_ns", "finished", "workflows_total", "workflows_started", "workflows_done", "workflows_failed",
    "requests_sent", "requests_done", "requests_failed", "requests_rejected", "requests_over", "tokens_in",
    "tokens_out",
)  # fmt: skip
HISTOGRAMS = ("ttft", "e2e", "lateness", "makespan")


def slot_names() -> list[str]:
    """Slots of the load generator's status page."""
    return [*COUNTERS, *(slot for name in HISTOGRAMS for slot in histogram_names(name))]


_PUBLISH_EVERY_NS = 100_000_000
_PENDING = 4096
"""durations kept before they are put into their histogram"""


class Tally:
    """Counts as things happen. The status page, where there is one, is written ten times a second, not per event."""

    def __init__(self, page: StatusPage | None, now_ns: int) -> None:
        self.totals = ReplayTotals(t_start_ns=now_ns)
        self._page = page
        self._published_ns = now_ns
        self._started = self._over = 0
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

    def retried(self, *, sent: bool) -> None:
        """A failed request will be sent once more; its failure leaves no row. sent: it had left."""
        self.totals.retries += 1
        self._over += sent

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
        self._over += row.get("t_sent_ns") is not None
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
        page.set("requests_over", self._over)
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
        judge(totals, bounds)
        if self._page is not None:
            self._page.set("finished", 1)
        return totals


def _buckets(values_ns: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """traces.status.bucket of many durations."""
    us = np.maximum(np.asarray(values_ns, dtype=np.float64) / 1000, 1.0)
    found: np.ndarray[Any, np.dtype[np.int64]] = (4 * np.log2(us)).astype(np.int64)
    np.minimum(found, HISTOGRAM_BUCKETS - 1, out=found)
    return found


def _trimmed(counts: list[int]) -> list[int]:
    last = max((i for i, n in enumerate(counts) if n), default=-1)
    return counts[: last + 1]
