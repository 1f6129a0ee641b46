"""Runs the pure engine core against a clock: one loop per replica, least-loaded routing, journals, sensors, lag.

In real time a step takes what the model says plus what Python adds; the next one starts at once and aims at the model's
own axis, so that small delays do not pile up. Truth is settled with the instants as they really were, and the lag
behind the model is recorded. In virtual time the lag is 0 by construction.
May not know: HTTP, JSON, text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from engines.embedded.core import EngineCore
from engines.embedded.profiles import Profile
from engines.embedded.recorder import FLUSH_NS, SLOTS, Lag, Recorder
from engines.embedded.sensors import SimulatedSensors
from engines.embedded.sequence import Seq
from engines.embedded.types import EngineRequest, FinishReason, Limits, RequestStats
from traces.journal import JournalWriter
from traces.records import StepRecord
from traces.seams import NowNs, SleepUntil
from traces.status import StatusPage

__all__ = ["FORGIVE_NS", "SLOTS", "Counters", "Engine", "Replica", "Sink", "Ticket"]

FORGIVE_NS = 50_000_000
"""lag past which the model axis is moved to now: an engine that was stopped does not race to catch up"""


class Sink(Protocol):
    """Where one sequence's tokens go."""

    def push(self, token: int) -> None:
        """A token that is not the last. Called once per token on the hot path."""

    def finish(self, out: list[int], stats: RequestStats, reason: FinishReason) -> None:
        """The end: all planned tokens (the first stats.output_tokens were given), counts and instants."""


class Ticket:
    """One sequence in the engine."""

    __slots__ = ("replica", "request_id", "sink", "streams", "wire_id")

    def __init__(self, replica: Replica, request_id: str, wire_id: str, sink: Sink, streams: bool) -> None:
        self.replica, self.request_id, self.wire_id = replica, request_id, wire_id
        self.sink, self.streams = sink, streams


class Counters:
    """Cumulative counts for the metrics page, over all replicas."""

    def __init__(self) -> None:
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.steps = 0


class Replica:
    """One core and the loop that steps it."""

    def __init__(self, engine: Engine, core: EngineCore) -> None:
        self.engine, self.core = engine, core
        self.tickets: dict[str, Ticket] = {}
        self.lag = Lag()
        self.in_step = False
        self.leaving: list[Ticket] = []
        """aborted while in the step in flight: their truth is final when it ends"""
        self._work = asyncio.Event()
        self._model_ns = 0

    @property
    def load(self) -> int:
        """Sequences in this replica."""
        return len(self.tickets)

    def wake(self) -> None:
        """There may be something to do."""
        self._work.set()

    async def run(self) -> None:
        """Step as long as there is work, wait otherwise; until cancelled."""
        engine, core = self.engine, self.core
        now_ns, sleep_until = engine.now_ns, engine.sleep_until
        while True:
            now = now_ns()
            step = core.schedule(now)
            if step is None:
                self._work.clear()
                await self._work.wait()
                self._model_ns = now_ns()
                continue
            if now - self._model_ns > FORGIVE_NS:
                self._model_ns = now
            due = self._model_ns = self._model_ns + step.duration_ns
            self.in_step = True
            try:
                if due > now:
                    await sleep_until(due)
                else:  # behind: still let the sockets be served
                    await asyncio.sleep(0)
                self.lag.add(now_ns() - due)
            finally:  # a step cut short by the engine's end is settled too
                self.in_step = False
                self._deliver(step, now, max(now + 1, now_ns()))

    def _deliver(self, step: Any, start_ns: int, end_ns: int) -> None:
        core, tickets = self.core, self.tickets
        emission = core.advance(step, start_ns, end_ns)
        ended = [(tickets.get(seq.request_id), seq, reason) for seq, reason in emission.finished]
        index = emission.step_index
        for ticket, seq, _ in ended:
            if ticket is not None and ticket.streams:
                _push(ticket, seq, seq.given(index)[:-1])  # the last is the sink's to say
                ticket.streams = False
        for seq in emission.members:
            ticket = tickets.get(seq.request_id)
            if ticket is not None and ticket.streams:
                if seq.pace == 1:
                    ticket.sink.push(seq.out[index - seq.emit_offset])
                else:
                    _push(ticket, seq, seq.given(index))
        for seq, at in emission.first:
            ticket = tickets.get(seq.request_id)
            if ticket is not None and ticket.streams:
                ticket.sink.push(seq.out[at])
        for ticket, seq, reason in ended:
            if ticket is not None:
                self.engine.settle(ticket, seq.out, reason)
        for ticket in self.leaving:
            self.engine.left(ticket)
        self.leaving.clear()
        self.engine.stepped(core.step_record(end_ns), len(emission))


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


def _push(ticket: Ticket, seq: Seq, which: range) -> None:
    """Several tokens of one step: accepted drafts among them."""
    for at in which:
        ticket.sink.push(seq.out[at])


def _ignore(_: object) -> None:
    """Nobody looks."""
