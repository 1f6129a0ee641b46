"""Open or closed loop onto a Parrot: a session per workflow, calls in topological order, values awaited.

Why apart from loadgen.replay: a Parrot is given the graph and walks it itself. Arrivals, salts, prompts' words, wire
ids and dispatch rows are the same, so a trace played here and on an OpenAI-style engine compares point by point. A
Parrot takes about 85 calls a second, so tasks are cheap enough. Runs in real and in virtual time.
Lives here: arrivals, the order of a node's requests. May not know: files, command lines, energy, what a call should
say (parrot_plan), how it is asked (parrot_wire), what its row says (parrot_rows).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from engines.parrot.protocol import CALL, SESSION, SESSION_AUTH, VAR
from engines.pool import Pool
from loadgen.arrivals import arrival_ns
from loadgen.client import Row, unsent
from loadgen.options import ReplayOptions
from loadgen.parrot_plan import PlannedCall, Prefixes, plan_calls
from loadgen.parrot_rows import Rows
from loadgen.parrot_run import Run, Step, any_failure, failed
from loadgen.parrot_wire import Answer, Asker, output_of
from loadgen.prompts import Words
from loadgen.tally import Tally
from loadgen.target import Target
from traces.seams import NowNs, SleepUntil
from traces.workflow import Node, Workflow


class ParrotShell:
    """State of one replay onto a Parrot's public API, used as loadgen.shell.Shell is.

    Rows: due_ns is when the trace (and what came before) let the node run; t_sent_ns the later of that and its
    submission; t_end_ns when its value was read.
    """

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
        self.tally, self.stopped = tally, False
        self._target, self._now_ns, self._sleep_until = target, now_ns, sleep_until
        self._asker = Asker(target, pool, now_ns, options.timeout_ns)
        self._write, self._options = write, options
        self._rows = Rows(target, options.salt, now_ns)
        self._words = Words(options.salt, block_size=options.manifest.block_size)
        self._prefixes = Prefixes()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: set[Run] = set()
        self._error: BaseException | None = None
        self._over = asyncio.Event()

    async def run(self, source: Iterator[Workflow], t0_ns: int, stop: asyncio.Event) -> None:
        watcher = asyncio.ensure_future(self._watch_stop(stop))
        if self._options.closed_loop_users is None:
            self._spawn(self._feed(source, t0_ns))
        for k in range(self._options.closed_loop_users or 0):
            self._spawn(self._user(source, t0_ns + k * self._options.closed_loop_ramp_ns))
        try:
            while self._tasks:
                await self._over.wait()
                self._over.clear()
                if self._error is not None:
                    raise self._error
        finally:
            watcher.cancel()

    async def close(self) -> None:
        """Leave nothing running."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
        self._over.set()

    async def _feed(self, source: Iterator[Workflow], t0_ns: int) -> None:
        for workflow in source:
            due = t0_ns + arrival_ns(workflow)
            await self._sleep_until(due)
            if self.stopped:
                return
            self.tally.woke(self._now_ns() - due)
            self._spawn(self._play(Run(workflow, t0_ns, self._planned(workflow))))

    async def _user(self, source: Iterator[Workflow], start_ns: int) -> None:
        """Closed loop: a user takes the next workflow when the last one has ended and the pause is over."""
        for workflow in source:
            await self._sleep_until(start_ns)
            if self.stopped:
                return
            await self._play(Run(workflow, start_ns - arrival_ns(workflow), self._planned(workflow)))
            start_ns = self._now_ns() + self._options.closed_loop_think_ns

    def _planned(self, workflow: Workflow) -> dict[str, PlannedCall]:
        return plan_calls(workflow, self._options.manifest, self._words, self._prefixes, self._target.criteria)

    async def _watch_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.stopped = True
        await self._sleep_until(self._now_ns() + self._options.drain_ns)
        for run in list(self._runs):
            for step in run.steps.values():
                if step.task is not None:
                    step.task.cancel()

    # ------------------------------------------------------------------ one workflow

    async def _play(self, run: Run) -> None:
        self._runs.add(run)
        self.tally.workflow_started()
        opened = await self._asker.ask("POST", SESSION, {"api_key": "1"}, self._rows.tags(run, None), None)
        session = opened.body.get("session_id") if opened.outcome == "ok" and opened.body is not None else None
        if isinstance(session, int):
            run.session_id, run.opened_ns = session, opened.end_ns
            for step in run.steps.values():
                step.task = self._spawn(self._node(run, step))
            await asyncio.gather(*(s.task for s in run.steps.values() if s.task is not None), return_exceptions=True)
            await self._asker.ask("DELETE", f"{SESSION}/{session}", {"session_auth": SESSION_AUTH}, (), None)
        else:
            for step in run.steps.values():
                due = run.origin_ns + step.node.arrival_ns
                why = f"no session: {opened.error or 'the reply names none'}"
                self._close_step(run, step, self._rows.plain(run, step, opened.outcome, why, due), None)
        for step in run.steps.values():  # what a stop left without a word
            if not step.recorded:
                now = self._now_ns()
                self._close_step(run, step, self._rows.plain(run, step, "cancelled", "the run was stopped", now), None)
        self._runs.discard(run)
        makespan = None if run.first_due_ns is None else run.last_end_ns - run.first_due_ns
        self.tally.workflow_ended(not run.failed, makespan)

    async def _node(self, run: Run, step: Step) -> None:
        node, call = step.node, run.calls.get(step.node.request_id)
        due = await self._due(run, node, wait_for_ends=call is None or call.timed)
        if due is None:
            await self._skip(run, step)
        elif self.stopped:
            now = self._now_ns()
            self._close_step(run, step, self._rows.plain(run, step, "skipped", "the run was stopped", now), None)
        elif node.kind != "llm":
            await self._pretend(run, step, due)
        elif call is None or node.output_length < 1 or node.input_length < 1:
            why = "its planned input or output is 0 tokens long, or its dependencies form a cycle"
            self._close_step(run, step, self._rows.plain(run, step, "skipped", why, due), None)
        else:
            await self._call(run, step, call, due)

    async def _due(self, run: Run, node: Node, *, wait_for_ends: bool) -> int | None:
        """Wait until the node may be submitted (or begin); its due instant so far. None: something before failed."""
        deps = [(d, run.steps[d.on]) for d in node.blocking if d.on in run.steps and d.on != node.request_id]
        if not deps:
            due = run.origin_ns + node.arrival_ns
            run.first_due_ns = due if run.first_due_ns is None else min(due, run.first_due_ns)
            await self._sleep_until(due)
            return due
        at = 0
        for dep, before in deps:
            # a Parrot shows no first token: what waits for one waits for the end
            waits = before.ended if wait_for_ends and dep.anchor != "start" else before.submitted
            reached = await asyncio.shield(waits)
            if reached is None:
                return None
            at = max(at, reached)
        if wait_for_ends:
            await self._sleep_until(at + node.delay_ns)
            return at + node.delay_ns
        return at

    async def _skip(self, run: Run, step: Step) -> None:
        now = self._now_ns()
        lost = next((s.node.request_id for s in run.needed(step.node) if failed(s)), "an earlier node")
        self._close_step(run, step, self._rows.plain(run, step, "skipped", f"it needs {lost}, which failed", now), None)

    async def _pretend(self, run: Run, step: Step, due_ns: int) -> None:
        """A tool or a pause: takes its recorded time."""
        node = step.node
        took = max(0, node.t_end_ns - node.arrival_ns) if node.t_end_ns is not None else 0
        step.submitted.set_result(due_ns)
        await self._sleep_until(due_ns + took)
        row = unsent(node, run.workflow.class_name, self._rows.wire(node), "ok", None, due_ns, due_ns + took)
        self._close_step(run, step, row, due_ns + took)

    async def _call(self, run: Run, step: Step, call: PlannedCall, due_ns: int) -> None:
        deadline = self._now_ns() + self._options.timeout_ns
        body = call.body(run.session_id, run.var_ids, self._rows.wire(step.node))
        accepted = await self._asker.ask("POST", CALL, body, self._rows.tags(run, step.node), deadline)
        variable = output_of(accepted.body) if accepted.outcome == "ok" else None
        if variable is None:
            why = accepted.error or "the reply names no output variable"
            outcome = accepted.outcome if accepted.outcome != "ok" else "error"
            row = self._rows.called(run, step, accepted, outcome, why, due_ns, accepted.sent_ns)
            self._close_step(run, step, row, None)
            return
        submitted, step.accepted_ns = accepted.sent_ns or self._now_ns(), accepted.end_ns
        # what the core took for its own replies is no lateness of ours: without them the call could not be written
        answered = [s.accepted_ns for s in run.needed(step.node)]
        self.tally.sent(max(0, submitted - max(due_ns, run.opened_ns, *answered)))
        run.var_ids[step.node.request_id] = variable
        step.submitted.set_result(submitted)
        if call.asked:
            run.activate(step)
        elif call.at_once is None:
            await run.until_active(step)
        value = await self._value(run, step, call, variable, deadline)
        ready = due_ns
        if not call.timed:  # what it needs has ended by now, as far as it was seen: it could not run before
            seen = [s.ended.result() for s in run.needed(step.node) if s.ended.done()]
            ready = max([due_ns, *(e for e in seen if e is not None)])
        row = self._rows.called(run, step, value, value.outcome, value.error, ready, max(submitted, ready))
        if value.outcome == "ok" and value.body is not None:
            self._rows.count(row, call, value.body.get("content"))
        self._close_step(run, step, row, value.end_ns if value.outcome == "ok" else None)

    async def _value(self, run: Run, step: Step, call: PlannedCall, variable: str, deadline: int) -> Answer:
        """GET the output. Given up when something it needs has failed, for then it would wait for ever."""
        body = {"session_id": run.session_id, "session_auth": SESSION_AUTH, "criteria": call.criteria}
        asking = asyncio.ensure_future(self._asker.ask("GET", f"{VAR}/{variable}", body, (), deadline))
        watching = asyncio.ensure_future(any_failure(run.needed(step.node)))
        try:
            await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            lost = watching.result()
            return Answer("skipped", f"it needs {lost}, which failed", end_ns=self._now_ns())
        finally:
            watching.cancel()
            asking.cancel()
            await asyncio.gather(asking, watching, return_exceptions=True)

    def _close_step(self, run: Run, step: Step, row: Row, ended_ns: int | None) -> None:
        """The one end of every node."""
        if step.recorded:
            return
        step.recorded = True
        if ended_ns is None:
            run.failed = True
        run.last_end_ns = max(run.last_end_ns, row["t_end_ns"])
        self.tally.ended(row)
        self._write(row)
        step.settle(None, ended_ns)
