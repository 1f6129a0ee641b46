"""What an embedded Parrot knows of its clients: sessions, their variables, and the calls between them. State only.

Also how the serve layer behaves (`ServeOptions`). May not know: HTTP, the engine, when anything runs.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field

from engines.parrot.protocol import Call, Criteria, Parameter
from engines.parrot.scheduler import Scheduling


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

    @property
    def pieces(self) -> list[str]:
        """Texts of everything before the output, once it is ready."""
        texts: list[str] = []
        for part in self.call.parts:
            if isinstance(part, Parameter):
                if part.is_output:
                    break
                texts.append(self.inputs[part.name].content or "")
            else:
                texts.append(part)
        return texts

    @property
    def first_context(self) -> str:
        """Key of the prompt's first piece: constant text is shared by all sessions, a variable by its id."""
        first = self.call.parts[0]
        if isinstance(first, Parameter):
            return f"var:{self.inputs[first.name].var_id}"
        return f"const:{first}" if self.call.cache_prefix else f"own:{self.wire_id}"
