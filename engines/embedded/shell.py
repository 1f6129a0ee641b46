"""Runs the pure engine core against a clock: replicas, least-loaded routing, journals, sensors, lag.

In virtual time the lag is 0 by construction. May not know: HTTP, JSON, text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from engines.embedded.core import EngineCore
from engines.embedded.profiles import Profile
from engines.embedded.recorder import FLUSH_NS, Recorder
from engines.embedded.replica import Replica, Sink, Ticket
from engines.embedded.sensors import SimulatedSensors
from engines.embedded.types import EngineRequest, FinishReason, Limits, RequestStats
from traces.journal import JournalWriter
from traces.records import StepRecord
from traces.seams import NowNs, SleepUntil
from traces.status import StatusPage


class Counters:
    """Cumulative counts for the metrics page, over all replicas."""

    def __init__(self) -> None:
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.steps = 0


class Engine:
    """All replicas of one engine, their journals and their status page."""

    def __init__(
        self,
        profile: Profile,
        limits: Limits,
        *,
        now_ns: NowNs,
        sleep_until: SleepUntil,
        truth: JournalWriter | None = None,
        steps: JournalWriter | None = None,
        status: StatusPage | None = None,
        sensors: SimulatedSensors | None = None,
        tick_ns: int = 20_000_000,
    ) -> None:
        self.now_ns, self.sleep_until = now_ns, sleep_until
        self.profile, self.limits = profile, limits
        self.counters = Counters()
        self.replicas = [Replica(self, EngineCore(profile, limits, replica=i)) for i in range(limits.replicas)]
        self.on_end: Callable[[RequestStats], None] = _ignore
        """called with every sequence that ends by itself"""
        self.on_step: Callable[[StepRecord], None] = _ignore
        cores = [replica.core for replica in self.replicas]
        self._recorder = Recorder(cores, truth=truth, steps=steps, status=status, sensors=sensors)
        self._tick_ns = tick_ns
        self._ids: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._flushed_ns = now_ns()
        self._serial = 0

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, tokens."""
        return min(self.limits.max_model_len, min(r.core.max_model_len for r in self.replicas))

    @property
    def running(self) -> int:
        """Sequences in the batches."""
        return sum(r.core.running for r in self.replicas)

    @property
    def waiting(self) -> int:
        """Sequences queued."""
        return sum(r.core.waiting for r in self.replicas)

    @property
    def failed(self) -> BaseException | None:
        """What stopped a loop that should run, None while all is well."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                return task.exception()
        return None

    def start(self) -> None:
        """Begin stepping and publishing; the page stands whole before the first reader looks."""
        self._publish(self.now_ns())
        self._tasks = [asyncio.ensure_future(replica.run()) for replica in self.replicas]
        if self._recorder.wanted:
            self._tasks.append(asyncio.ensure_future(self._tick()))

    async def close(self) -> None:
        """Stop, settle the truth of all, write the totals. Journals stay open: they are the caller's."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        now = self.now_ns()
        for replica in self.replicas:
            for ticket in list(replica.tickets.values()):
                self.abort(ticket)
        self._publish(now)
        self._flush(now)
        self._recorder.totals(now)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def submit(
        self,
        request: EngineRequest,
        wire_id: str,
        sink: Sink,
        *,
        streams: bool,
        parts: int = 1,
        replica: int | None = None,
    ) -> Ticket:
        """Queue a sequence on the least loaded replica, or on the one given by index.

        parts: sequences that share wire_id, and so one truth record. UserError when it can never fit."""
        chosen = min(self.replicas, key=lambda r: r.load) if replica is None else self.replicas[replica]
        if request.request_id in self._ids:  # vLLM takes equal ids too, with a suffix of its own
            self._serial += 1
            request = replace(request, request_id=f"{request.request_id}~{self._serial}")
        chosen.core.add(request, self.now_ns())
        ticket = Ticket(chosen, request.request_id, wire_id, sink, streams)
        chosen.tickets[request.request_id] = ticket
        self._ids.add(request.request_id)
        self._recorder.expect(wire_id, parts)
        chosen.wake()
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """The client left. Nothing when the sequence has ended already."""
        if ticket.replica.tickets.get(ticket.request_id) is not ticket:
            return
        del ticket.replica.tickets[ticket.request_id]
        ticket.replica.core.abort(ticket.request_id, self.now_ns())
        if ticket.replica.in_step:
            ticket.replica.leaving.append(ticket)
        else:
            self.left(ticket)

    def left(self, ticket: Ticket) -> None:
        """An aborted sequence is out of the engine; it counts as no success (as in vLLM)."""
        self._write_truth(ticket)

    def settle(self, ticket: Ticket, out: list[int], reason: FinishReason) -> None:
        """A sequence ended by itself: counts, truth, and the sink's last word."""
        core = ticket.replica.core
        stats = core.stats(ticket.request_id)
        del ticket.replica.tickets[ticket.request_id]
        self.counters.finished[reason] += 1
        self.on_end(stats)
        self._write_truth(ticket)
        ticket.sink.finish(out, stats, reason)

    def _write_truth(self, ticket: Ticket) -> None:
        core = ticket.replica.core
        self._recorder.settled(ticket.wire_id, core.truth(ticket.request_id))
        core.forget(ticket.request_id)
        self._ids.discard(ticket.request_id)

    def stepped(self, record: StepRecord, tokens: int) -> None:
        """A step is done."""
        counters = self.counters
        counters.steps += 1
        counters.prompt_tokens += record.prompt_tokens
        counters.cached_tokens += record.cached_tokens
        counters.generation_tokens += tokens
        self.on_step(record)
        self._recorder.step(record)

    async def _tick(self) -> None:
        due = self.now_ns()
        while True:
            now = self.now_ns()
            self._publish(now)
            if now - self._flushed_ns >= FLUSH_NS:
                self._flush(now)
            due = max(due + self._tick_ns, now)
            await self.sleep_until(due)

    def _publish(self, now: int) -> None:
        values = {
            "running": self.running,
            "waiting": self.waiting,
            "kv_usage_ppm": round(1e6 * max(r.core.kv_usage for r in self.replicas)),
            "steps": self.counters.steps,
            "tokens_out": self.counters.generation_tokens,
            "lag_ns": max(r.lag.max_ns for r in self.replicas),
        }
        self._recorder.publish(now, values)

    def _flush(self, now: int) -> None:
        self._flushed_ns = now
        self._recorder.flush(now, [r.lag for r in self.replicas])


def _ignore(_: object) -> None:
    """Nobody looks."""
