"""One workflow in flight: its walk, what its nodes answered, and the two instants that give its makespan.

May not know: clocks, connections, other workflows.
"""

from __future__ import annotations

from loadgen.bodies import Output
from loadgen.walk import Solo, Walk, walk_of
from traces.workflow import Workflow


def goes_on(workflow: Workflow) -> bool:
    """Whether some prompt of a workflow goes on from an earlier one."""
    nodes = workflow.nodes
    return len(nodes) > 1 and any(d.extends is not None for n in nodes for d in n.deps)


class Run:
    """One workflow in flight."""

    __slots__ = ("class_name", "failed", "first_due_ns", "last_end_ns", "outputs", "walk")

    def __init__(self, workflow: Workflow, origin_ns: int, outputs: dict[str, Output] | None) -> None:
        self.walk: Walk | Solo = walk_of(workflow, origin_ns)
        self.class_name = workflow.class_name
        self.failed = False
        self.first_due_ns: int | None = None
        self.last_end_ns = 0
        self.outputs = outputs
        """what was asked and answered, by request id; None where recorded content stands in for them"""
