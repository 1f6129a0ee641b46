"""One workflow in flight on a Parrot: how far each node is, and what a node waits for.

State and waiting only. May not know: requests, rows, what a call says.
"""

from __future__ import annotations

import asyncio
from typing import Any

from loadgen.parrot_plan import PlannedCall
from traces.workflow import Node, Workflow


class Step:
    """One node under way: what others wait for."""

    def __init__(self, node: Node) -> None:
        loop = asyncio.get_running_loop()
        self.node = node
        self.submitted: asyncio.Future[int | None] = loop.create_future()
        """instant of its submission (its start, of a tool); None: it never will be"""
        self.ended: asyncio.Future[int | None] = loop.create_future()
        self.activated: asyncio.Future[None] = loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.accepted_ns = 0
        """reply to its submission"""
        self.recorded = False

    def settle(self, submitted_ns: int | None, ended_ns: int | None) -> None:
        """It is over."""
        if not self.submitted.done():
            self.submitted.set_result(submitted_ns)
        if not self.ended.done():
            self.ended.set_result(ended_ns)


class Run:
    """One workflow in flight."""

    def __init__(self, workflow: Workflow, origin_ns: int, calls: dict[str, PlannedCall]) -> None:
        self.workflow, self.origin_ns, self.calls = workflow, origin_ns, calls
        self.steps = {n.request_id: Step(n) for n in workflow.nodes}
        self.var_ids: dict[str, str] = {}
        self.session_id = -1
        self.opened_ns = 0
        self.failed = False
        self.first_due_ns: int | None = None
        self.last_end_ns = 0

    def needed(self, node: Node) -> list[Step]:
        """Steps of the nodes that a node needs."""
        return [self.steps[d.on] for d in node.blocking if d.on in self.steps and d.on != node.request_id]

    def activate(self, step: Step) -> None:
        """A GET goes out for it: all that it needs is active from now on."""
        waiting = [step]
        while waiting:
            at = waiting.pop()
            if not at.activated.done():
                at.activated.set_result(None)
                waiting += self.needed(at.node)

    async def until_active(self, step: Step) -> None:
        """Until something that needs it was asked for, or nothing will be: then it is asked for itself."""
        me = step.node.request_id
        needing = [s.ended for s in self.steps.values() if any(d.on == me for d in s.node.blocking)]
        while not step.activated.done() and not all(f.done() for f in needing):
            open_ends: set[asyncio.Future[Any]] = {step.activated, *(f for f in needing if not f.done())}
            await asyncio.wait(open_ends, return_when=asyncio.FIRST_COMPLETED)


def failed(step: Step) -> bool:
    return step.ended.done() and step.ended.result() is None


async def any_failure(steps: list[Step]) -> str:
    """The first of some nodes to fail; for ever if none does."""
    waiting = {s.ended: s for s in steps}
    while True:
        for future, step in list(waiting.items()):
            if future.done():
                if future.result() is None:
                    return step.node.request_id
                del waiting[future]
        if not waiting:
            await asyncio.get_running_loop().create_future()
        await asyncio.wait(set(waiting), return_when=asyncio.FIRST_COMPLETED)
