"""Which waiting task goes to which engine now: Parrot's global scheduler, rewritten as one pure function.

Rules as observed and read: an engine is feasible for a group when none of its caps breaks (a latency task caps its
engine at four tasks, a whole group counts as one against the caps of its own tasks), tokens fit, and the model type
matches; a group that fits nowhere is split. Of the feasible, one that holds the prefix is preferred (ctx_aware), then
the one capped lowest, then the one with the least room left (packing), then the first.
May not know: sessions, variables, text, time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from engines.parrot.protocol import LATENCY_TASKS, Criteria

NO_CAP = 1 << 30


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Flags of the serve layer's global_scheduler, all off as in its sample configuration."""

    app_fifo: bool = False
    """deeper tasks first, so that what was begun ends first"""
    graph_group: bool = False
    """tasks with a common consumer go together"""
    ctx_group: bool = False
    """tasks with the same first context go together"""
    ctx_aware: bool = False
    """prefer the engine that holds the first context already"""
    max_queue_size: int = 1024


@dataclass(frozen=True, slots=True)
class Task:
    """One call whose inputs are all there."""

    order: int
    """position in the queue; the key of the task"""
    tokens: int
    """prompt and output"""
    criteria: Criteria
    depth: int = 0
    """calls on the longest path behind it"""
    consumers: frozenset[str] = frozenset()
    context: str = ""
    """first piece of its prompt, as a key"""
    model_type: str = "token_id"
    models: tuple[str, ...] = ()

    @property
    def cap(self) -> int:
        """Tasks its engine may hold."""
        return LATENCY_TASKS if self.criteria == "latency" else NO_CAP


@dataclass(frozen=True, slots=True)
class Seat:
    """What the scheduler sees of one engine."""

    model: str
    model_type: str
    tasks_capacity: int
    tokens_capacity: int
    running: tuple[Task, ...] = ()
    contexts: frozenset[str] = field(default_factory=frozenset)

    @property
    def cap(self) -> int:
        """Tasks it may hold while those that run are there."""
        return min((t.cap for t in self.running), default=NO_CAP)

    @property
    def tokens_left(self) -> int:
        """Room."""
        return self.tokens_capacity - sum(t.tokens for t in self.running)

    def takes(self, group: Sequence[Task]) -> bool:
        """Whether a group fits as a whole."""
        held = len(self.running)
        return (
            all(t.model_type == self.model_type and (not t.models or self.model in t.models) for t in group)
            and held + 1 <= min(t.cap for t in group)
            and held + len(group) <= min(self.cap, self.tasks_capacity)
            and sum(t.tokens for t in group) <= self.tokens_left
        )

    def with_tasks(self, group: Iterable[Task]) -> Seat:
        """The engine once the group runs on it."""
        group = tuple(group)
        return replace(
            self, running=self.running + group, contexts=self.contexts | {t.context for t in group if t.context}
        )


def place(queue: Sequence[Task], seats: Sequence[Seat], rules: Scheduling) -> list[tuple[Task, int]]:
    """Tasks that may start now with the index of their engine, in order; the rest stays queued."""
    left = sorted(queue, key=lambda t: (-t.depth, t.order)) if rules.app_fifo else list(queue)
    seats = list(seats)
    placed: list[tuple[Task, int]] = []
    while left:
        group = _group(left, rules)
        left = [t for t in left if t not in group]
        whole = _choose(group, seats, rules)
        for part in [group] if whole is not None or len(group) == 1 else [[t] for t in group]:
            seat = whole if whole is not None else _choose(part, seats, rules)
            if seat is not None:
                seats[seat] = seats[seat].with_tasks(part)
                placed += [(t, seat) for t in part]
    return placed


def _group(queue: list[Task], rules: Scheduling) -> list[Task]:
    """The first task and those that go with it: by a common consumer, else by the same first context."""
    first = queue[0]
    group = [first]
    if rules.graph_group and first.consumers:
        common = first.consumers
        for task in queue[1:]:
            if common & task.consumers:
                common &= task.consumers
                group.append(task)
    if rules.ctx_group and len(group) == 1 and first.context:
        group += [t for t in queue[1:] if t.context == first.context]
    return group


def _choose(group: Sequence[Task], seats: Sequence[Seat], rules: Scheduling) -> int | None:
    feasible = [i for i, seat in enumerate(seats) if seat.takes(group)]
    if not feasible:
        return None
    return min(
        feasible,
        key=lambda i: (
            rules.ctx_aware and group[0].context not in seats[i].contexts,
            seats[i].cap,
            seats[i].tokens_left,
            i,
        ),
    )
