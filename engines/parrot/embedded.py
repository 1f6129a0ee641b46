"""A serve layer that speaks Parrot, over the embedded engine: sessions, lazy activation, criteria, placement.

Lives here: the state of sessions, variables and calls, and the way of a ready task to a replica of the engine and of
its tokens back into a variable. Each replica is one Parrot engine. How it differs from the real serve layer is listed
in docs/parrot.md. May not know: HTTP (server), bodies' syntax (protocol), what is placed where (scheduler).
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import cast

from engines.embedded.shell import Engine
from engines.embedded.tokenizer import Tokenizer
from engines.embedded.types import EngineRequest, FinishReason, RequestStats
from engines.parrot.protocol import CRITERIA, Call, Criteria, Fault, Parameter
from engines.parrot.scheduler import Scheduling, Seat, Task, place
from traces.errors import UserError


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How the serve layer behaves; the defaults are those of Parrot's sample configuration."""

    scheduling: Scheduling = field(default_factory=Scheduling)
    model_type: str = "token_id"
    """of all its engines; calls of the other type are never placed, and so never answered"""
    tasks_capacity: int = 256
    tokens_capacity: int = 99_999_999_999_999_999
    session_life_ns: int = 9_999_999 * 1_000_000_000
    prefix_timeout_ns: int = 60_000_000_000
    """how long a constant prefix counts as held by an engine after its last use"""
    chunk_ns: int = 0
    """serve-layer time per piece of a prompt before its generation starts (the real one: about 5 ms)"""


class Variable:
    """One semantic variable."""

    __slots__ = ("content", "name", "producer", "readers", "var_id", "waiting")

    def __init__(self, var_id: str, name: str) -> None:
        self.var_id, self.name = var_id, name
        self.content: str | None = None
        self.producer: Running | None = None
        self.readers: list[Running] = []
        """calls that need it"""
        self.waiting: list[asyncio.Future[str]] = []

    def fill(self, content: str) -> None:
        """It has its value: everybody who waits gets it."""
        self.content = content
        for future in self.waiting:
            if not future.done():
                future.set_result(content)
        self.waiting.clear()


@dataclass(slots=True, eq=False)
class Session:
    """One registered session."""

    session_id: int
    space: uuid.UUID
    seen_ns: int
    requests: int = 0
    names: int = 0
    variables: dict[str, Variable] = field(default_factory=dict)
    bad: bool = False
    """an execution failed: no longer valid"""


@dataclass(slots=True, eq=False)
class Running:
    """One accepted call, from submission to its value."""

    session: Session
    call: Call
    wire_id: str
    inputs: dict[str, Variable]
    output: Variable | None
    depth: int
    criteria: Criteria | None = None
    queued: bool = False
    consumers: set[str] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """Active, and every input has its value."""
        return self.criteria is not None and all(v.content is not None for v in self.inputs.values())


class _Sink:
    """Where one task's tokens end."""

    def __init__(self, core: ServeCore, running: Running, task: Task, seat: int) -> None:
        self._core, self._running, self._task, self._seat = core, running, task, seat

    def push(self, token: int) -> None:
        """Nothing streams out of a Parrot."""

    def finish(self, out: list[int], stats: RequestStats, reason: FinishReason) -> None:
        """The output is whole."""
        self._core.ended(self._running, self._task, self._seat, list(out[: stats.output_tokens]))


class ServeCore:
    """All sessions and the queue. Methods return values or a Fault; nothing blocks."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, model: str, options: ServeOptions) -> None:
        self.engine, self.options = engine, options
        self._tokenizer = tokenizer
        # ids follow from the clock: the same in every virtual run, new in every real one
        self._random = random.Random(f"parrot/{engine.limits.seed}/{engine.now_ns()}")
        self._sessions: dict[int, Session] = {}
        self._freed: deque[int] = deque()
        self._next_session = 0
        self._order = 0
        self._queue: dict[int, tuple[Task, Running, list[int]]] = {}
        self._held: list[dict[int, Task]] = [{} for _ in engine.replicas]
        self._contexts: list[dict[str, int]] = [{} for _ in engine.replicas]
        """per engine: first context -> last instant of use"""
        self._model = model
        self._starting: set[asyncio.Task[None]] = set()
        self.peak: list[int] = [0 for _ in engine.replicas]
        """most tasks each engine has held"""

    # ------------------------------------------------------------------ sessions

    def open_session(self) -> int:
        """A new session; the id freed first is given out again first."""
        if self._freed:
            session_id = self._freed.popleft()
        else:
            session_id, self._next_session = self._next_session, self._next_session + 1
        space = uuid.UUID(int=self._random.getrandbits(128), version=4)
        self._sessions[session_id] = Session(session_id, space, self.engine.now_ns())
        return session_id

    def session(self, session_id: int) -> Session | Fault:
        """A session that lives; the use counts."""
        found, now = self._sessions.get(session_id), self.engine.now_ns()
        if found is not None and (found.bad or now - found.seen_ns > self.options.session_life_ns):
            self._drop(found)
            if found.bad:
                return Fault(f"Session (session_id={session_id}) is not valid.", "RuntimeError")
            found = None
        if found is None:
            return Fault(f"Session (session_id={session_id}) not found.", "RuntimeError")
        found.seen_ns = now
        return found

    def close_session(self, session_id: int) -> Fault | None:
        """Forget a session. What runs goes on, and who waits still gets an answer."""
        found = self.session(session_id)
        if isinstance(found, Fault):
            return found
        self._drop(found)
        return None

    def _drop(self, session: Session) -> None:
        if self._sessions.get(session.session_id) is session:
            del self._sessions[session.session_id]
            self._freed.append(session.session_id)

    # ------------------------------------------------------------------ variables and calls

    def new_variable(self, session: Session, name: str) -> Variable:
        """A variable of a session; ids are UUIDs in the session's own random name space."""
        var_id = str(uuid.uuid3(session.space, str(session.names)))
        session.names += 1
        variable = session.variables[var_id] = Variable(var_id, name)
        return variable

    def set_variable(self, variable: Variable, content: str) -> Fault | None:
        """The value of a registered variable, once."""
        if variable.content is not None:
            return Fault("the variable has its value already")
        variable.fill(content)
        self._wake(variable)
        return None

    def submit(self, session: Session, call: Call, wire_id: str | None) -> tuple[int, list[Variable]] | Fault:
        """Accept a call: its number and the variables of its parameters in template order. Nothing runs yet, unless
        it names a criteria."""
        inputs: dict[str, Variable] = {}
        for p in call.parameters:
            if p.var_id is not None and p.var_id not in session.variables:
                return Fault(f"unknown variable {p.var_id}")
        request_id = session.requests - 1  # consumed when it was read
        shown: list[Variable] = []
        for p in call.parameters:
            variable = session.variables[p.var_id] if p.var_id is not None else self.new_variable(session, p.name)
            if p.value is not None:
                variable.fill(p.value)
            if not p.is_output:
                inputs[p.name] = variable
            shown.append(variable)
        outputs = [v for p, v in zip(call.parameters, shown, strict=True) if p.is_output]
        makers = [v.producer for v in inputs.values() if v.producer is not None]
        running = Running(
            session, call, wire_id or f"parrot-{session.space.hex[:8]}-{request_id}", inputs,
            outputs[0] if len(outputs) == 1 else None, 1 + max((m.depth for m in makers), default=-1),
        )  # fmt: skip
        for variable in outputs:
            variable.producer = running
        for variable in inputs.values():
            if variable.content is None:
                variable.readers.append(running)
        for maker in makers:
            maker.consumers.add(f"{session.space.hex}/{request_id}")
        if call.criteria is not None:
            self.activate(running, call.criteria)
        return request_id, shown

    def get(self, variable: Variable, criteria: object) -> asyncio.Future[str] | Fault:
        """A future of the value. The first GET activates the producer and all before it."""
        producer = variable.producer
        if variable.content is None and producer is not None and producer.criteria is None:
            if criteria not in CRITERIA:
                return Fault(f"criteria {criteria!r} is not one of {CRITERIA}")
            if producer.output is None:
                return Fault("This node has no completion chain")
            self.activate(producer, cast(Criteria, criteria))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if variable.content is not None:
            future.set_result(variable.content)
        else:
            variable.waiting.append(future)
        return future

    def activate(self, running: Running, criteria: Criteria) -> None:
        """The call and everything it needs: the first activation wins, and goes back unchanged."""
        waiting, woken = [running], []
        while waiting:
            at = waiting.pop()
            if at.criteria is None and at.output is not None:
                at.criteria = criteria
                woken.append(at)
                waiting += [v.producer for v in at.inputs.values() if v.producer is not None]
        for at in reversed(woken):
            self._enqueue(at)
        self._schedule()

    # ------------------------------------------------------------------ running

    def _wake(self, variable: Variable) -> None:
        """A value came: calls that waited for it may be ready."""
        for running in variable.readers:
            self._enqueue(running)
        variable.readers.clear()
        self._schedule()

    def _enqueue(self, running: Running) -> None:
        """Queue a call once it is active and has all its inputs."""
        if running.queued or not running.ready:
            return
        session, rules = running.session, self.options.scheduling
        running.queued = True
        prompt = self._prompt(running)
        if len(self._queue) >= rules.max_queue_size:
            session.bad = True  # and who waits, waits on: so does the real one
            return
        call = running.call
        self._order += 1
        task = Task(
            order=self._order, tokens=len(prompt) + call.max_gen_length, criteria=running.criteria or "throughput",
            depth=running.depth, consumers=frozenset(running.consumers), context=_first_context(running),
            model_type=call.model_type, models=call.models,
        )  # fmt: skip
        self._queue[task.order] = (task, running, prompt)

    def _prompt(self, running: Running) -> list[int]:
        """Token ids of everything before the output, piece by piece."""
        tokens: list[int] = []
        for part in running.call.parts:
            if isinstance(part, Parameter):
                if part.is_output:
                    break
                tokens += self._tokenizer.encode(running.inputs[part.name].content or "")
            else:
                tokens += self._tokenizer.encode(part)
        return tokens

    def _schedule(self) -> None:
        """Start whatever may start."""
        if not self._queue:
            return
        now = self.engine.now_ns()
        seats = [
            Seat(
                self._model, self.options.model_type, self.options.tasks_capacity, self.options.tokens_capacity,
                tuple(held.values()), frozenset(self._contexts_of(i, now)),
            )
            for i, held in enumerate(self._held)
        ]  # fmt: skip
        for task, seat in place([t for t, _, _ in self._queue.values()], seats, self.options.scheduling):
            _, running, prompt = self._queue.pop(task.order)
            held = self._held[seat]
            held[task.order] = task
            self.peak[seat] = max(self.peak[seat], len(held))
            if self.options.chunk_ns:
                starting = asyncio.get_running_loop().create_task(self._start_later(running, task, seat, prompt))
                self._starting.add(starting)
                starting.add_done_callback(self._starting.discard)
            else:
                self._start(running, task, seat, prompt)

    def _contexts_of(self, seat: int, now_ns: int) -> list[str]:
        table, oldest = self._contexts[seat], now_ns - self.options.prefix_timeout_ns
        for context in [c for c, used_ns in table.items() if used_ns < oldest]:
            del table[context]
        return [*table, *(t.context for t in self._held[seat].values())]

    async def _start_later(self, running: Running, task: Task, seat: int, prompt: list[int]) -> None:
        pieces = 1 + next((i for i, p in enumerate(running.call.parts) if isinstance(p, Parameter) and p.is_output), 0)
        await self.engine.sleep_until(self.engine.now_ns() + pieces * self.options.chunk_ns)
        self._start(running, task, seat, prompt)

    def _start(self, running: Running, task: Task, seat: int, prompt: list[int]) -> None:
        call = running.call
        request = EngineRequest(running.wire_id, prompt, call.max_gen_length, ignore_eos=call.ignore_eos)
        sink = _Sink(self, running, task, seat)
        try:
            self.engine.submit(request, running.wire_id, sink, streams=False, replica=seat)
        except UserError:  # longer than the engine can hold: the session is not valid any more, its waiters hang
            running.session.bad = True
            del self._held[seat][task.order]
            self._schedule()

    def ended(self, running: Running, task: Task, seat: int, out: list[int]) -> None:
        """A task's output is whole: its variable has its value, its place is free."""
        del self._held[seat][task.order]
        if running.call.cache_prefix and task.context.startswith("const:"):
            self._contexts[seat][task.context] = self.engine.now_ns()
        assert running.output is not None
        running.output.fill(self._tokenizer.decode(out))
        self._wake(running.output)

    def close(self) -> None:
        """Nothing starts any more."""
        for task in self._starting:
            task.cancel()


def _first_context(running: Running) -> str:
    """Key of the prompt's first piece: constant text is shared by all sessions, a variable by its id."""
    first = running.call.parts[0]
    if isinstance(first, Parameter):
        return f"var:{running.inputs[first.name].var_id}"
    return f"const:{first}" if running.call.cache_prefix else f"own:{running.wire_id}"
