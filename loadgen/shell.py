"""The shell of the open loop: workflows come due, nodes are sent, replies move the walks on, records are written.

Why: every decision is made elsewhere (walk, arrivals, bodies, client); here they meet the clock and the connections.
There is no limit and no queue before a send. Memory is bounded by what is in flight plus one workflow read ahead.
Runs unchanged on uvloop in real time (loadgen.pacing) and on joulegraph.virtual: time and connections are arguments.
May not know: files, command lines, what energy is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from engines import dialects
from engines.pool import Pool
from loadgen.agenda import Agenda
from loadgen.arrivals import arrival_ns
from loadgen.bodies import Bodies, asks_nothing
from loadgen.client import Exchange, Row, chosen
from loadgen.endings import answered, repeated_ns
from loadgen.heads import Heads
from loadgen.options import ReplayOptions
from loadgen.outbox import Outbox
from loadgen.rows import Rows
from loadgen.run import Run, goes_on
from loadgen.tally import Tally
from loadgen.target import Target
from loadgen.tasks import Tasks
from loadgen.walk import Ready
from loadgen.watch import watch_lag, watch_repeated, watch_timeouts
from traces.records import Outcome
from traces.seams import NowNs, SleepUntil
from traces.workflow import Node, Workflow


class Shell:
    """State of one replay. Every callback ends in `_pump`, which does what is due and sets the next alarm."""

    def __init__(
        self,
        target: Target,
        pool: Pool,
        now_ns: NowNs,
        sleep_until: SleepUntil,
        write: Callable[[Row], None],
        tally: Tally,
        options: ReplayOptions,
    ) -> None:
        self.tally = tally
        self.stopped = False
        self.event_headers: list[tuple[bytes, bytes]] | None = None
        """headers of the last stream of events, to know them again"""
        self._pool = pool
        self._now_ns = now_ns
        self._sleep_until = sleep_until
        self._rows = Rows(write, tally, options.salt)
        self._options = options
        self._open_loop = options.closed_loop_users is None
        self._live = options.outputs == "live"
        self._bodies = Bodies(target, options.manifest, options.salt, options.outputs)
        self._heads = Heads(target)
        self._tasks = Tasks()
        self._agenda = Agenda(now_ns, sleep_until, self._tasks.spawn, self._woke)
        self._outbox = Outbox(pool, now_ns, tally, spawn=self._tasks.spawn, flush=self._flush, sent=self._sent)
        self._runs: dict[Run, None] = {}
        self._in_flight: dict[Exchange, None] = {}
        """in order of sending"""
        self._source: Iterator[Workflow] = iter(())
        self._exhausted = False
        self._t0_ns = 0

    async def run(self, source: Iterator[Workflow], t0_ns: int, stop: asyncio.Event) -> None:
        """Play all of it; returns when every workflow has ended."""
        self._source, self._t0_ns = source, t0_ns
        self._tasks.spawn(self._watch_stop(stop))
        self._tasks.spawn(watch_timeouts(self._in_flight, self._options.timeout_ns, self._now_ns, self._sleep_until))
        if self._options.retries:
            limit_ns = self._options.timeout_ns
            self._tasks.spawn(watch_repeated(self._in_flight, limit_ns, self._now_ns, self._sleep_until))
        self._tasks.spawn(watch_lag(self.tally, self._now_ns, self._sleep_until))
        if self._open_loop:
            self._pull()
        for k in range(self._options.closed_loop_users or 0):
            self._next_for_user(t0_ns + k * self._options.closed_loop_ramp_ns)
        self._pump()
        await self._tasks.over()

    async def close(self) -> None:
        """Leave nothing running."""
        self._tasks.cancel()

    # ------------------------------------------------------------------ the agenda, tasks, the end

    def _pump(self) -> None:
        """Do what is due. An error in it (a bug, bad input) surfaces from run(); the loop would only log it."""
        try:
            done = self._agenda.pump()
        except Exception as error:  # noqa: BLE001
            self._tasks.give_up(error)
            return
        if done and not self._runs and self._exhausted and not self._agenda:
            self._tasks.finish()

    def _woke(self, due_ns: int, now_ns: int) -> None:
        self.tally.woke(now_ns - due_ns)
        self._pump()
        self._flush()

    def _flush(self) -> None:
        """Write what waits in the outbox; what a sending released comes due."""
        try:
            self._outbox.send()
        except Exception as error:  # noqa: BLE001
            self._tasks.give_up(error)
        self._pump()

    # ------------------------------------------------------------------ workflows

    def _pull(self) -> None:
        """Read one workflow ahead."""
        workflow = None if self.stopped else next(self._source, None)
        if workflow is None:
            self._exhausted = True
        else:
            self._agenda.at(self._t0_ns + arrival_ns(workflow), self._begin, workflow, self._t0_ns)

    def _next_for_user(self, start_ns: int) -> None:
        """Closed loop: a user's next workflow, its first root due at start_ns."""
        workflow = None if self.stopped else next(self._source, None)
        if workflow is None:
            self._exhausted = True
        else:
            origin_ns = start_ns - arrival_ns(workflow)
            self._agenda.at(start_ns, self._begin, workflow, origin_ns)

    def _begin(self, workflow: Workflow, origin_ns: int, due_ns: int) -> None:
        if self.stopped:
            return
        if self._open_loop:
            self._pull()
        run = Run(workflow, origin_ns, {} if self._live or goes_on(workflow) else None)
        self._runs[run] = None
        self.tally.workflow_started()
        ready = run.walk.start()
        if len(ready) == 1 and ready[0].due_ns == due_ns:
            self._dispatch(run, ready[0].node, due_ns)
            return
        self._release(run, ready)
        if not ready:
            self._settle(run)

    def _release(self, run: Run, ready: list[Ready]) -> None:
        for item in ready:
            self._agenda.at(item.due_ns, self._dispatch, run, item.node)

    def _settle(self, run: Run) -> None:
        """After any progress: skip what a cycle holds, close the workflow when nothing is left."""
        walk = run.walk
        if walk.busy:
            return
        if walk.stuck:
            run.failed = True
            self._rows.skip(run, walk.abandon(), "its dependencies form a cycle", self._now_ns())
        if run in self._runs:
            del self._runs[run]
            makespan = None if run.first_due_ns is None else run.last_end_ns - run.first_due_ns
            self.tally.workflow_ended(not run.failed, makespan)
            if not self._open_loop and not self._exhausted:
                self._next_for_user(self._now_ns() + self._options.closed_loop_think_ns)

    # ------------------------------------------------------------------ nodes

    def _dispatch(self, run: Run, node: Node, due_ns: int) -> None:
        if run.first_due_ns is None or due_ns < run.first_due_ns:
            run.first_due_ns = due_ns
        if self.stopped:
            self._fail(run, node, due_ns, "skipped", "the run was stopped")
        elif node.kind != "llm":
            self._pretend(run, node, due_ns)
        elif asks_nothing(node):  # the graph goes on as if it had been answered
            self._rows.skip(run, [node], "its planned input or output is 0 tokens long", self._now_ns())
            self._ended(run, node, self._now_ns())
        else:
            self._send(run, node, due_ns, 1)

    def _pretend(self, run: Run, node: Node, due_ns: int) -> None:
        """A tool call or a human turn: takes its recorded time, sends nothing."""
        took = max(0, node.t_end_ns - node.arrival_ns) if node.t_end_ns is not None else 0
        self._release(run, run.walk.reach(node.request_id, "start", due_ns))
        self._agenda.at(due_ns + took, self._pretended, run, node, due_ns)

    def _pretended(self, run: Run, node: Node, due_ns: int, end_ns: int) -> None:
        self._rows.unsent(run, node, "ok", None, due_ns, end_ns)
        self._ended(run, node, end_ns)

    def _send(self, run: Run, node: Node, due_ns: int, attempt: int) -> None:
        wire = self._rows.wire(node) + (f"-{attempt}" if attempt > 1 else "")  # another request, another id
        body = self._bodies.render(node, run.outputs)
        observer = dialects.observer(body.api, body.stream, keep_text=run.outputs is not None)
        exchange = Exchange(self, run, node, due_ns, wire, body, observer, attempt)
        data = self._heads.request(body, node, run.class_name, wire)
        self._in_flight[exchange] = None
        self._outbox.put(exchange, data)

    def _again(self, run: Run, node: Node, due_ns: int, attempt: int, _: int) -> None:
        """A repetition comes up."""
        if self.stopped:
            self._fail(run, node, due_ns, "cancelled", "the run was stopped before it was sent once more")
        else:
            self._send(run, node, due_ns, attempt)

    def _sent(self, exchange: Exchange, now: int) -> None:
        """It was written."""
        if exchange.run.walk.awaited:
            self._release(exchange.run, exchange.run.walk.reach(exchange.node.request_id, "start", now))
        if self._options.cancel_share and chosen(exchange.wire, self._options.cancel_share):
            self._agenda.at(now + self._options.cancel_after_ns, self._cancel, exchange)

    def _cancel(self, exchange: Exchange, _: int) -> None:
        exchange.give_up("cancelled", "cancelled on purpose", self._now_ns())

    # ------------------------------------------------------------------ what exchanges tell

    def first_token(self, exchange: Exchange, now: int) -> None:
        """A first token was read."""
        ready = exchange.run.walk.reach(exchange.node.request_id, "first_token", now)
        if ready:
            self._release(exchange.run, ready)
            self._pump()

    def exchange_ended(self, exchange: Exchange) -> None:
        """The one end of every exchange. Called from read callbacks, whose errors the loop would only log."""
        try:
            self._conclude(exchange)
        except Exception as error:  # noqa: BLE001 - a bug here must end the replay, and surfaces from run()
            self._tasks.give_up(error)
        self._pump()

    def _conclude(self, exchange: Exchange) -> None:
        self._in_flight.pop(exchange, None)
        run, node = exchange.run, exchange.node
        if exchange.connection is not None:
            self._pool.release(exchange.connection)
            exchange.connection = None
        if exchange.outcome != "ok" and self._repeat(exchange):
            return
        record = exchange.record()
        self._rows.put(record)
        if exchange.outcome == "ok":
            if run.outputs is not None:
                run.outputs[node.request_id] = answered(exchange, record)
            self._ended(run, node, exchange.end_ns)
        else:
            self._failed(run, node, exchange.end_ns)

    def _repeat(self, exchange: Exchange) -> bool:
        """Whether a failed request is sent once more, after a pause that doubles."""
        again_ns = None if self.stopped else repeated_ns(exchange, self._options)
        if again_ns is None:
            return False
        self.tally.retried(sent=exchange.sent_ns is not None)
        self._agenda.at(again_ns, self._again, exchange.run, exchange.node, exchange.due_ns, exchange.attempt + 1)
        return True

    def _fail(self, run: Run, node: Node, due_ns: int, outcome: Outcome, why: str) -> None:
        now = self._now_ns()
        self._rows.unsent(run, node, outcome, why, due_ns, max(now, due_ns))
        self._failed(run, node, now)

    def _ended(self, run: Run, node: Node, now: int) -> None:
        if now > run.last_end_ns:
            run.last_end_ns = now
        self._release(run, run.walk.reach(node.request_id, "end", now))
        self._settle(run)

    def _failed(self, run: Run, node: Node, now: int) -> None:
        run.failed = True
        run.last_end_ns = max(run.last_end_ns, now)
        skipped = run.walk.fail(node.request_id)
        self._rows.skip(run, skipped, f"it needs {node.request_id}, which failed", self._now_ns())
        self._settle(run)

    # ------------------------------------------------------------------ stop

    async def _watch_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.stopped = self._exhausted = True
        # everything on the agenda comes due now and sees `stopped`; workflows not begun are dropped
        entries = self._agenda.take_all()
        for run in list(self._runs):
            left = run.walk.abandon()
            run.failed = run.failed or bool(left)
            self._rows.skip(run, left, "the run was stopped", self._now_ns())
        for due_ns, _, then, args in entries:
            then(*args, due_ns)
        self._pump()
        await self._sleep_until(self._now_ns() + self._options.drain_ns)
        for exchange in list(self._in_flight):
            exchange.give_up("cancelled", "still running when the drain time ended", self._now_ns())
