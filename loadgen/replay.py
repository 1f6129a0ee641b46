"""The shell of the open loop: workflows come due, nodes are sent, replies move the walks on, records are written.

Why: every decision is made elsewhere (walk, arrivals, bodies, client); here they meet the clock and the connections.
There is no limit and no queue before a send. Memory is bounded by what is in flight plus one workflow read ahead.
Runs unchanged on uvloop in real time (loadgen.pacing) and on joulegraph.virtual: time and connections are arguments.
May not know: files, command lines, what energy is.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from engines import dialects
from engines.http1 import Connection
from engines.pool import Pool
from loadgen.arrivals import arrival_ns
from loadgen.bodies import Bodies, Output, Outputs
from loadgen.client import Exchange, Heads, Row, base_row, wire_id
from loadgen.tally import Bounds, ReplayTotals, Tally
from loadgen.target import Target
from loadgen.walk import Ready, Walk
from traces.records import Outcome
from traces.seams import Connect, NowNs, SleepUntil
from traces.status import StatusPage
from traces.workflow import Manifest, Node, Workflow

_S = 1_000_000_000
_LAG_EVERY_NS = _S // 4


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay. Nothing here changes what is due when: that is loadgen.arrivals."""

    manifest: Manifest = field(default_factory=Manifest)
    salt: str = "0"
    """of this run: goes into every block's content and every wire id; a new one per run avoids foreign cache hits"""
    outputs: Outputs = "recorded"
    """"live": children get their parents' real answers; "recorded": planned content in their place"""
    timeout_ns: int = 600 * _S
    """per request, from due"""
    drain_ns: int = 30 * _S
    """after a stop, how long requests in flight may still take"""
    prewarm: int = 0
    """connections opened before t0"""
    bounds: Bounds = field(default_factory=Bounds)
    closed_loop_users: int | None = None
    """CLOSED LOOP instead of open: this many users, each taking the next workflow when its last one has ended (recorded
    arrivals are not used). The engine then sets the pace, and figures from due hide what waiting users would see."""
    closed_loop_think_ns: int = 0
    """a user's pause between workflows"""
    cancel_share: float = 0.0
    """cancellation injection: this share of requests (chosen by id, so the same in every run of a salt) is dropped"""
    cancel_after_ns: int = 1 * _S
    """... this long after sending, unless it has ended"""


async def replay(
    workflows: Iterable[Workflow],
    target: Target,
    *,
    t0_ns: int,
    now_ns: NowNs,
    sleep_until: SleepUntil,
    connect: Connect,
    write: Callable[[Row], None],
    status: StatusPage | None = None,
    stop: asyncio.Event | None = None,
    options: ReplayOptions | None = None,
) -> ReplayTotals:
    """Replay workflows (sorted by arrival, see loadgen.arrivals.plan) against a target.

    t0_ns: the instant of trace time 0 on the axis of now_ns. write: takes one dispatch row (dict) per node, at its end.
    stop: once set nothing more is sent; what is in flight may finish within options.drain_ns. UserError on bad input.
    """
    if target.api == "parrot":  # it is given the graph and walks it itself
        from loadgen.parrot import replay_parrot

        return await replay_parrot(
            workflows,
            target,
            t0_ns=t0_ns,
            now_ns=now_ns,
            sleep_until=sleep_until,
            connect=connect,
            write=write,
            status=status,
            stop=stop,
            options=options,
        )
    options = options or ReplayOptions()
    tls = None if target.ssl is None else target.ssl.context()
    pool = Pool(target.host, target.port, connect=connect, now_ns=now_ns, ssl=tls)
    shell = _Shell(target, pool, now_ns, sleep_until, write, Tally(status, now_ns()), options)
    try:
        if options.prewarm:
            await pool.prewarm(options.prewarm)
        await shell.run(iter(workflows), t0_ns, stop or asyncio.Event())
    finally:
        shell.close()
        pool.close()
    return shell.tally.close(now_ns(), options.bounds, connections=pool.opened, stopped=shell.stopped)


class _Run:
    """One workflow in flight."""

    __slots__ = ("failed", "first_due_ns", "last_end_ns", "outputs", "walk")

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.failed = False
        self.first_due_ns: int | None = None
        self.last_end_ns = 0
        self.outputs: dict[str, Output] = {}


class _Shell:
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
        self._pool = pool
        self._now_ns = now_ns
        self._sleep_until = sleep_until
        self._write = write
        self._options = options
        self._bodies = Bodies(target, options.manifest, options.salt)
        self._heads = Heads(target)
        self._agenda: list[tuple[int, int, Callable[[int], None]]] = []
        self._order = 0
        self._alarms: list[int] = []
        """instants for which a sleeping task exists"""
        self._pumping = False
        self._runs: dict[_Run, None] = {}
        self._in_flight: dict[Exchange, None] = {}
        """in order of sending"""
        self._tasks: set[asyncio.Task[None]] = set()
        self._source: Iterator[Workflow] = iter(())
        self._exhausted = False
        self._t0_ns = 0
        self._loop = asyncio.get_running_loop()
        self._fresh_writes: list[Connection] = []
        self._over = self._loop.create_future()

    async def run(self, source: Iterator[Workflow], t0_ns: int, stop: asyncio.Event) -> None:
        self._source, self._t0_ns = source, t0_ns
        self._spawn(self._watch_stop(stop))
        self._spawn(self._watch_timeouts())
        self._spawn(self._watch_lag())
        if self._options.closed_loop_users is None:
            self._pull()
        for _ in range(self._options.closed_loop_users or 0):
            self._next_for_user(t0_ns)
        self._pump()
        await self._over

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------------------------ agenda

    def _at(self, due_ns: int, then: Callable[[int], None]) -> None:
        """Have `then(due_ns)` called by the pump once now >= due_ns."""
        self._order += 1
        heapq.heappush(self._agenda, (due_ns, self._order, then))

    def _pump(self) -> None:
        """Do all that is due; set an alarm for what is not. Re-entrant calls leave the work to the outer one."""
        if self._pumping:
            return
        self._pumping = True
        agenda, now_ns = self._agenda, self._now_ns
        try:
            while agenda and agenda[0][0] <= now_ns():
                due_ns, _, then = heapq.heappop(agenda)
                then(due_ns)
        except Exception as error:  # noqa: BLE001 - surfaces from run(); the loop would only log it
            if not self._over.done():  # a bug or bad input: surfaces from run()
                self._over.set_exception(error)
            return
        finally:
            self._pumping = False
        if agenda:
            due_ns = agenda[0][0]
            if not self._alarms or due_ns < self._alarms[0]:
                heapq.heappush(self._alarms, due_ns)
                self._spawn(self._alarm(due_ns))
        elif self._exhausted and not self._runs and not self._over.done():
            self._over.set_result(None)

    async def _alarm(self, due_ns: int) -> None:
        await self._sleep_until(due_ns)
        heapq.heappop(self._alarms)
        self.tally.woke(self._now_ns() - due_ns)
        self._pump()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._over.done():
            self._over.set_exception(error)

    # ------------------------------------------------------------------ workflows

    def _pull(self) -> None:
        """Read one workflow ahead."""
        workflow = None if self.stopped else next(self._source, None)
        if workflow is None:
            self._exhausted = True
        else:
            self._at(self._t0_ns + arrival_ns(workflow), partial(self._begin, workflow, self._t0_ns))

    def _next_for_user(self, start_ns: int) -> None:
        """Closed loop: a user's next workflow, its first root due at start_ns."""
        workflow = None if self.stopped else next(self._source, None)
        if workflow is None:
            self._exhausted = True
        else:
            self._at(start_ns, partial(self._begin, workflow, start_ns - arrival_ns(workflow)))

    def _begin(self, workflow: Workflow, origin_ns: int, _: int) -> None:
        if self.stopped:
            return
        if self._options.closed_loop_users is None:
            self._pull()
        run = _Run(Walk(workflow, origin_ns))
        self._runs[run] = None
        self.tally.workflow_started()
        ready = run.walk.start()
        self._release(run, ready)
        if not ready:
            self._settle(run)

    def _release(self, run: _Run, ready: list[Ready]) -> None:
        for item in ready:
            self._at(item.due_ns, partial(self._dispatch, run, item.node))

    def _settle(self, run: _Run) -> None:
        """After any progress: skip what a cycle holds, close the workflow when nothing is left."""
        if run.walk.busy:
            return
        if run.walk.stuck:
            run.failed = True
            self._skip(run, run.walk.abandon(), "its dependencies form a cycle")
        if run.walk.finished and run in self._runs:
            del self._runs[run]
            makespan = None if run.first_due_ns is None else run.last_end_ns - run.first_due_ns
            self.tally.workflow_ended(not run.failed, makespan)
            if self._options.closed_loop_users is not None and not self._exhausted:
                self._next_for_user(self._now_ns() + self._options.closed_loop_think_ns)

    def _skip(self, run: _Run, nodes: list[Node], why: str) -> None:
        now = self._now_ns()
        for node in nodes:
            self._record(unsent(node, run.walk.workflow.class_name, self._wire(node), "skipped", why, now, now))

    def _wire(self, node: Node) -> str:
        return wire_id(self._options.salt, node)

    def _record(self, record: Row) -> None:
        self.tally.ended(record)
        self._write(record)

    # ------------------------------------------------------------------ nodes

    def _dispatch(self, run: _Run, node: Node, due_ns: int) -> None:
        if run.first_due_ns is None or due_ns < run.first_due_ns:
            run.first_due_ns = due_ns
        if self.stopped:
            self._fail(run, node, due_ns, "skipped", "the run was stopped")
        elif node.kind != "llm":
            self._pretend(run, node, due_ns)
        elif node.output_length < 1 or (node.input_length < 1 and not _has_content(node)):
            # nothing to ask for; the graph goes on as if it had been answered
            self._skip(run, [node], "its planned input or output is 0 tokens long")
            self._ended(run, node, self._now_ns())
        else:
            self._send(run, node, due_ns)

    def _pretend(self, run: _Run, node: Node, due_ns: int) -> None:
        """A tool call or a human turn: takes its recorded time, sends nothing."""
        took = max(0, node.t_end_ns - node.arrival_ns) if node.t_end_ns is not None else 0
        self._release(run, run.walk.reach(node.request_id, "start", due_ns))
        self._at(due_ns + took, partial(self._pretended, run, node, due_ns))

    def _pretended(self, run: _Run, node: Node, due_ns: int, end_ns: int) -> None:
        self._record(unsent(node, run.walk.workflow.class_name, self._wire(node), "ok", None, due_ns, end_ns))
        self._ended(run, node, end_ns)

    def _send(self, run: _Run, node: Node, due_ns: int) -> None:
        class_name = run.walk.workflow.class_name
        wire = self._wire(node)
        exchange = Exchange(node, due_ns, wire, run, self._first_token, self._end)
        exchange.class_name = class_name
        live = self._options.outputs == "live"
        body = exchange.body_form = self._bodies.render(node, run.outputs if live else None)
        exchange.observer = dialects.observer(body.api, body.stream, keep_text=live)
        data = self._heads.request(body, node, class_name, wire)
        self._in_flight[exchange] = None
        connection = self._pool.take()
        if connection is None:
            self._spawn(self._connect_and_send(exchange, data))
        else:
            self._put_on_wire(exchange, connection, data)

    async def _connect_and_send(self, exchange: Exchange, data: bytes) -> None:
        try:
            connection = await self._pool.acquire()
        except OSError as error:
            exchange.finish("unreachable", str(error), self._now_ns())
            return
        if exchange.outcome is not None:  # timed out or stopped meanwhile
            connection.close()
            return
        self._put_on_wire(exchange, connection, data)
        self._pump()

    def _put_on_wire(self, exchange: Exchange, connection: Connection, data: bytes) -> None:
        exchange.connection = connection
        exchange.reused = connection.reused
        connection.send(data, exchange)
        now = exchange.sent_ns = exchange.last_read_ns = self._now_ns()
        self.tally.sent(now - exchange.due_ns)
        if not self._fresh_writes:
            self._loop.call_soon(self._check_writes)
        self._fresh_writes.append(connection)
        run: _Run = exchange.owner
        self._release(run, run.walk.reach(exchange.node.request_id, "start", now))
        if self._options.cancel_share and chosen(exchange.wire, self._options.cancel_share):
            self._at(now + self._options.cancel_after_ns, partial(self._cancel, exchange))

    def _cancel(self, exchange: Exchange, _: int) -> None:
        exchange.give_up("cancelled", "cancelled on purpose", self._now_ns())

    def _check_writes(self) -> None:
        """One turn of the loop after a send (uvloop writes at the end of a turn): did the kernel take the bytes?"""
        writes, self._fresh_writes = self._fresh_writes, []
        self.tally.queued(sum(c.write_buffer_size > 0 for c in writes))

    def _first_token(self, exchange: Exchange, now: int) -> None:
        run: _Run = exchange.owner
        ready = run.walk.reach(exchange.node.request_id, "first_token", now)
        if ready:
            self._release(run, ready)
            self._pump()

    def _end(self, exchange: Exchange) -> None:
        """The one end of every exchange. Called from read callbacks, whose errors the loop would only log."""
        try:
            self._conclude(exchange)
        except Exception as error:  # noqa: BLE001 - a bug here must end the replay, and surfaces from run()
            if not self._over.done():
                self._over.set_exception(error)
        self._pump()

    def _conclude(self, exchange: Exchange) -> None:
        self._in_flight.pop(exchange, None)
        run: _Run = exchange.owner
        record = exchange.record()
        if exchange.connection is not None:
            self._pool.release(exchange.connection)
            exchange.connection = None
        self._record(record)
        if exchange.outcome == "ok":
            if self._options.outputs == "live" and exchange.observer is not None:
                tokens = record.get("completion_tokens")
                text = exchange.observer.text or ""
                run.outputs[exchange.node.request_id] = Output(
                    text, exchange.node.output_length if tokens is None else tokens
                )
            self._ended(run, exchange.node, exchange.end_ns)
        else:
            self._failed(run, exchange.node, exchange.end_ns)

    def _fail(self, run: _Run, node: Node, due_ns: int, outcome: Outcome, why: str) -> None:
        now = self._now_ns()
        self._record(
            unsent(node, run.walk.workflow.class_name, self._wire(node), outcome, why, due_ns, max(now, due_ns))
        )
        self._failed(run, node, now)

    def _ended(self, run: _Run, node: Node, now: int) -> None:
        run.last_end_ns = max(run.last_end_ns, now)
        self._release(run, run.walk.reach(node.request_id, "end", now))
        self._settle(run)

    def _failed(self, run: _Run, node: Node, now: int) -> None:
        run.failed = True
        run.last_end_ns = max(run.last_end_ns, now)
        self._skip(run, run.walk.fail(node.request_id), f"it needs {node.request_id}, which failed")
        self._settle(run)

    # ------------------------------------------------------------------ stop and timeouts

    async def _watch_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.stopped = self._exhausted = True
        # everything on the agenda comes due now and sees `stopped`; workflows not begun are dropped
        self._agenda, agenda = [], sorted(self._agenda)
        for run in list(self._runs):
            left = run.walk.abandon()
            run.failed = run.failed or bool(left)
            self._skip(run, left, "the run was stopped")
        for due_ns, _, then in agenda:
            then(due_ns)
        self._pump()
        await self._sleep_until(self._now_ns() + self._options.drain_ns)
        for exchange in list(self._in_flight):
            exchange.give_up("cancelled", "still running when the drain time ended", self._now_ns())

    async def _watch_lag(self) -> None:
        """Wake four times a second for nothing: how late says how late the stamps of reads may be."""
        while True:
            due_ns = self._now_ns() + _LAG_EVERY_NS
            await self._sleep_until(due_ns)
            self.tally.woke(self._now_ns() - due_ns)

    async def _watch_timeouts(self) -> None:
        """All requests have the same allowance from sending on, so the oldest in flight is the next to expire."""
        allowance = self._options.timeout_ns
        while True:
            now = self._now_ns()
            oldest = next(iter(self._in_flight), None)
            if oldest is None:
                await self._sleep_until(now + allowance)
            elif oldest.due_ns + allowance > now:
                await self._sleep_until(oldest.due_ns + allowance)
            else:
                oldest.give_up("timeout", f"no complete reply within {allowance / 1e9:g} s", now)


def unsent(node: Node, class_name: str, wire: str, outcome: Outcome, why: str | None, due_ns: int, end_ns: int) -> Row:
    """The row of a node that put nothing on the wire: skipped, or a tool call that only takes time."""
    row = base_row(node, class_name, wire, outcome, due_ns, end_ns)
    if why is not None:
        row["error"] = why
    if outcome == "ok":
        row["t_sent_ns"] = due_ns
    return row


def chosen(wire: str, share: float) -> bool:
    """Whether a request belongs to a share (0..1) of all, by its wire id alone."""
    return int.from_bytes(blake2b(wire.encode(), digest_size=6).digest(), "little") < share * (1 << 48)


def _has_content(node: Node) -> bool:
    return node.prompt is not None or node.messages is not None or node.token_ids is not None
