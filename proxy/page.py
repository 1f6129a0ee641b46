"""The proxy's counters on a status page: what it shows of itself to the live view and the control port.

May not know: sockets, records' fields beyond the few counted here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from proxy.exchange import Exchange
from traces.records import is_call
from traces.status import HISTOGRAM_BUCKETS, StatusPage, histogram_names

COUNTERS: Final = (
    "requests",
    "in_flight",
    "queued",
    "done",
    "looks",
    "errors",
    "client_left",
    "refused",
    "tokens_in",
    "tokens_out",
    "bytes_out",
    "journal_depth",
    "journal_dropped",
    "connections",
    "limit",
    "ttft_sum_ns",
    "e2e_sum_ns",
    "itl_sum_ns",
)
HISTOGRAMS: Final = ("ttft", "e2e", "itl")
_EDGES: Final = [round(1000 * 2 ** (k / 4)) for k in range(1, HISTOGRAM_BUCKETS)]


def slot_names() -> list[str]:
    """Every slot of a proxy's status page."""
    return [*COUNTERS, *(slot for name in HISTOGRAMS for slot in histogram_names(name))]


class Page:
    """Writes a StatusPage; one in memory when none is given."""

    def __init__(self, status: StatusPage | None) -> None:
        self.status = status if status is not None else StatusPage(slot_names())
        self._slots = self.status.slots
        index = self.status.index
        self._tokens = index["tokens_out"]
        self._requests, self._in_flight, self._done = index["requests"], index["in_flight"], index["done"]
        self._tokens_in, self._bytes_out, self._e2e_sum = index["tokens_in"], index["bytes_out"], index["e2e_sum_ns"]
        self._itl, self._ttft, self._e2e = (index[f"{name}.0"] for name in ("itl", "ttft", "e2e"))

    def tokens(self, count: int) -> None:
        """Token events seen in one read."""
        self._slots[self._tokens] += count

    def begun(self, in_flight: int) -> None:
        """A request was accepted."""
        slots = self._slots
        slots[self._requests] += 1
        slots[self._in_flight] = in_flight

    def left(self, in_flight: int) -> None:
        """A request ended."""
        self._slots[self._in_flight] = in_flight

    def set(self, name: str, value: int) -> None:
        """One gauge."""
        self.status.set(name, value)

    def add(self, name: str, value: int = 1) -> None:
        """One counter."""
        self.status.add(name, value)

    def ended(self, exchange: Exchange, tokens_in: int) -> None:
        """Count a finished exchange; of calls of a model the latencies too, from arrival. `looks` of those done asked
        nothing of it (polls of /metrics, lists of models ...)."""
        slots = self._slots
        slots[self._done] += 1
        slots[self._tokens_in] += tokens_in
        slots[self._bytes_out] += exchange.bytes_out
        outcome = exchange.outcome
        if outcome == "client_left":
            self.add("client_left")
        elif outcome != "ok" and outcome != "rejected":
            self.add("errors")
        head = exchange.head
        if head.api is None and exchange.watcher is None:
            if not is_call({"method": head.method, "path": head.path}):
                self.add("looks")
            return
        whole = exchange.t_end_ns - exchange.t_arrival_ns
        slots[self._e2e + bisect_right(_EDGES, whole)] += 1
        slots[self._e2e_sum] += whole
        first, last = exchange.t_first_token_ns, exchange.t_last_token_ns
        if first is None or last is None:
            return
        slots[self._ttft + bisect_right(_EDGES, first - exchange.t_arrival_ns)] += 1
        self.add("ttft_sum_ns", first - exchange.t_arrival_ns)
        self.add("itl_sum_ns", last - first)
        pauses, at = sorted(_pauses(exchange)), 0
        while at < len(pauses):  # most fall into the same few buckets
            bucket = bisect_right(_EDGES, pauses[at])
            end = bisect_left(pauses, _EDGES[bucket], at) if bucket < len(_EDGES) else len(pauses)
            slots[self._itl + bucket] += end - at
            at = end


def _pauses(exchange: Exchange) -> list[int]:
    """ns before each token after those of the first read with any; tokens of one read share the pause before it."""
    times, counts = exchange.read_times, exchange.read_tokens
    start = next((k for k, tokens in enumerate(counts, 1) if tokens), len(counts))
    pauses: list[int] = []
    at, pause = start, 0
    for odd in [k for k, tokens in enumerate(counts[start:], start) if tokens != 1]:
        if at < odd:  # reads of one token each
            pauses += times[at:odd]
            pauses[at - odd] += pause
            pause = 0
        pause += times[odd]
        tokens = counts[odd]
        if tokens:
            pauses += [pause // tokens] * tokens
            pause = 0
        at = odd + 1
    if at < len(times):
        pauses += times[at:]
        pauses[at - len(times)] += pause
    return pauses
