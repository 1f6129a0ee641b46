"""From a ready call to its text: the queue, its placement, the engine's replicas, and a record of every task.

Each replica of the embedded engine is one Parrot engine. Lives here: what is queued, what each engine holds, the
contexts it counts as holding. May not know: sessions' rules, variables, HTTP, what is placed where (scheduler).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

from engines.embedded.shell import Engine
from engines.embedded.tokenizer import Tokenizer
from engines.embedded.types import EngineRequest, FinishReason, RequestStats
from engines.parrot.scheduler import Seat, Task, place
from engines.parrot.state import Running, ServeOptions
from engines.parrot.tasks import TaskKey, task_record
from traces.errors import UserError
from traces.records import RequestRecord

Write = Callable[[RequestRecord], None]


class _Sink:
    """Where one task's tokens end."""

    def __init__(self, runner: Runner, running: Running, task: Task, seat: int, began_ns: int) -> None:
        self._runner, self._running, self._task, self._seat = runner, running, task, seat
        self._began_ns = began_ns
        self._now_ns = runner.now_ns
        self.tokens_ns: list[int] = []

    def push(self, token: int) -> None:
        """Nothing streams out of a Parrot; what its engine sees of a call is when its tokens came."""
        self.tokens_ns.append(self._now_ns())

    def finish(self, out: list[int], stats: RequestStats, reason: FinishReason) -> None:
        """The output is whole."""
        self.tokens_ns.append(self._now_ns())
        self._runner.record(self._running, self._task, self._began_ns, stats, reason, self.tokens_ns)
        self._runner.ended(self._running, self._task, self._seat, list(out[: stats.output_tokens]))


class Runner:
    """The queue and what runs. ended: takes each call with its text; write: takes a record of each task."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        model: str,
        options: ServeOptions,
        ended: Callable[[Running, str], None],
        write: Write,
    ) -> None:
        self._engine, self._tokenizer, self._model, self._options = engine, tokenizer, model, options
        self._ended, self._write = ended, write
        self.now_ns = engine.now_ns
        self._order = 0
        self._queue: dict[int, tuple[Task, Running, list[int]]] = {}
        self._held: list[dict[int, Task]] = [{} for _ in engine.replicas]
        self._contexts: list[dict[str, int]] = [{} for _ in engine.replicas]
        """per engine: first context -> last instant of use"""
        self._starting: set[asyncio.Task[None]] = set()
        self.peak: list[int] = [0 for _ in engine.replicas]
        """most tasks each engine has held"""

    def enqueue(self, running: Running) -> None:
        """Queue a call once it is active and has all its inputs."""
        if running.queued or not running.ready:
            return
        running.queued = True
        prompt = [token for piece in running.pieces for token in self._tokenizer.encode(piece)]
        if len(self._queue) >= self._options.scheduling.max_queue_size:
            running.session.bad = True  # and who waits, waits on: so does the real one
            return
        call = running.call
        self._order += 1
        task = Task(
            order=self._order, tokens=len(prompt) + call.max_gen_length, criteria=running.criteria or "throughput",
            depth=running.depth, consumers=frozenset(running.consumers), context=running.first_context,
            model_type=call.model_type, models=call.models,
        )  # fmt: skip
        self._queue[task.order] = (task, running, prompt)

    def schedule(self) -> None:
        """Start whatever may start."""
        if not self._queue:
            return
        now, options = self._engine.now_ns(), self._options
        seats = [
            Seat(
                self._model, options.model_type, options.tasks_capacity, options.tokens_capacity,
                tuple(held.values()), frozenset(self._contexts_of(i, now)),
            )
            for i, held in enumerate(self._held)
        ]  # fmt: skip
        for task, seat in place([t for t, _, _ in self._queue.values()], seats, options.scheduling):
            _, running, prompt = self._queue.pop(task.order)
            held = self._held[seat]
            held[task.order] = task
            self.peak[seat] = max(self.peak[seat], len(held))
            if options.chunk_ns:
                starting = asyncio.get_running_loop().create_task(self._start_later(running, task, seat, prompt))
                self._starting.add(starting)
                starting.add_done_callback(self._starting.discard)
            else:
                self._start(running, task, seat, prompt, now)

    def _contexts_of(self, seat: int, now_ns: int) -> list[str]:
        table, oldest = self._contexts[seat], now_ns - self._options.prefix_timeout_ns
        for context in [c for c, used_ns in table.items() if used_ns < oldest]:
            del table[context]
        return [*table, *(t.context for t in self._held[seat].values())]

    async def _start_later(self, running: Running, task: Task, seat: int, prompt: list[int]) -> None:
        began = self._engine.now_ns()
        pieces = len(running.pieces) + 1  # its output is one, too
        await self._engine.sleep_until(began + pieces * self._options.chunk_ns)
        self._start(running, task, seat, prompt, began)

    def _start(self, running: Running, task: Task, seat: int, prompt: list[int], began_ns: int) -> None:
        call = running.call
        request = EngineRequest(running.wire_id, prompt, call.max_gen_length, ignore_eos=call.ignore_eos)
        sink = _Sink(self, running, task, seat, began_ns)
        try:
            self._engine.submit(request, running.wire_id, sink, streams=True, replica=seat)
        except UserError:  # longer than the engine can hold: the session is not valid any more, its waiters hang
            running.session.bad = True
            del self._held[seat][task.order]
            self.schedule()

    def record(
        self,
        running: Running,
        task: Task,
        began_ns: int,
        stats: RequestStats,
        reason: FinishReason,
        tokens_ns: list[int],
    ) -> None:
        """One task, as an engine under a Parrot would have seen it."""
        scheduled, first, last = stats.t_scheduled_ns, stats.t_first_token_ns, stats.t_last_token_ns
        key = TaskKey(0, running.session.session_id, task.order)
        self._write(
            task_record(
                key,
                running.wire_id,
                began_ns,
                outcome="ok",
                t_end_ns=self._engine.now_ns(),
                model=self._model,
                t_upstream_ns=stats.t_arrival_ns,
                t_first_token_ns=first,
                t_last_token_ns=last,
                finish_reason=reason,
                prompt_tokens=stats.prompt_tokens,
                cached_tokens=stats.cached_tokens,
                completion_tokens=stats.output_tokens,
                engine_queue_ns=None if scheduled is None else scheduled - stats.t_arrival_ns,
                engine_prefill_ns=None if scheduled is None or first is None else first - scheduled,
                engine_decode_ns=None if last is None or first is None else last - first,
                draft_tokens=stats.draft_tokens,
                accepted_tokens=stats.accepted_tokens,
                max_tokens=running.call.max_gen_length,
                read_dt_ns=tuple(b - a for a, b in pairwise([began_ns, *tokens_ns])),
                read_tokens=(1,) * len(tokens_ns),
            )
        )

    def ended(self, running: Running, task: Task, seat: int, out: list[int]) -> None:
        """A task's output is whole: its place is free."""
        del self._held[seat][task.order]
        if running.call.cache_prefix and task.context.startswith("const:"):
            self._contexts[seat][task.context] = self._engine.now_ns()
        self._ended(running, self._tokenizer.decode(out))

    def close(self) -> None:
        """Nothing starts any more."""
        for task in self._starting:
            task.cancel()
