"""A serve layer that speaks Parrot, over the embedded engine: sessions, lazy activation, criteria.

Lives here: the rules of sessions, variables and calls: what is valid, what is active. How it differs from the real
serve layer is listed in docs/parrot.md. May not know: HTTP (server), bodies' syntax (protocol), what runs when
(runner).
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from typing import cast

from engines.embedded.shell import Engine
from engines.embedded.tokenizer import Tokenizer
from engines.parrot.protocol import CRITERIA, Call, Criteria, Fault
from engines.parrot.runner import Runner, Write
from engines.parrot.state import Running, ServeOptions, Session, Variable


class ServeCore:
    """All sessions and the queue. Methods return values or a Fault; nothing blocks."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        model: str,
        options: ServeOptions,
        write: Write = lambda record: None,
    ) -> None:
        self.engine, self.options = engine, options
        self.runner = Runner(engine, tokenizer, model, options, self._ended, write)
        # ids follow from the clock: the same in every virtual run, new in every real one
        self._random = random.Random(f"parrot/{engine.limits.seed}/{engine.now_ns()}")
        self._sessions: dict[int, Session] = {}
        self._freed: deque[int] = deque()
        self._next_session = 0

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
            self.runner.enqueue(at)
        self.runner.schedule()

    # ------------------------------------------------------------------ running

    def _wake(self, variable: Variable) -> None:
        """A value came: calls that waited for it may be ready."""
        for running in variable.readers:
            self.runner.enqueue(running)
        variable.readers.clear()
        self.runner.schedule()

    def _ended(self, running: Running, text: str) -> None:
        """A call has its output: so has its variable, and who waits for it."""
        assert running.output is not None
        running.output.fill(text)
        self._wake(running.output)

    def close(self) -> None:
        """Nothing starts any more."""
        self.runner.close()
