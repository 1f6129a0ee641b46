"""One core and the loop that steps it: a step takes what the model says plus what Python adds.

The next step starts at once and aims at the model's own axis, so that small delays do not pile up. Truth is settled
with the instants as they really were, and the lag behind the model is recorded.
May not know: other replicas, journals, HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from engines.embedded.core import EngineCore
from engines.embedded.recorder import Lag
from engines.embedded.sequence import Seq
from engines.embedded.types import FinishReason, RequestStats
from traces.records import StepRecord
from traces.seams import NowNs, SleepUntil

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


class Host(Protocol):
    """What a replica tells the engine it belongs to."""

    now_ns: NowNs
    sleep_until: SleepUntil

    def settle(self, ticket: Ticket, out: list[int], reason: FinishReason) -> None:
        """A sequence ended by itself."""

    def left(self, ticket: Ticket) -> None:
        """An aborted sequence is out of the core."""

    def stepped(self, record: StepRecord, tokens: int) -> None:
        """A step is done and has given so many tokens."""


class Replica:
    """One core and the loop that steps it."""

    def __init__(self, engine: Host, core: EngineCore) -> None:
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


def _push(ticket: Ticket, seq: Seq, which: range) -> None:
    """Several tokens of one step: accepted drafts among them."""
    for at in which:
        ticket.sink.push(seq.out[at])
