"""What earlier requests of this worker made that later ones name: exact edges, and sub-sessions' root workflows.

A tool call's id in an output that comes back in a later prompt, and a previous_response_id, are edges without any
doubt; so is a session whose parent session was seen. Bounded: the oldest are forgotten. Several workers see only their
own requests; the ids stay in the records, so that whoever reads them links across workers (traces/exact.py).
May not know: sockets, clocks, bodies.
"""

from __future__ import annotations

from traces.exact import LIMIT, Makers, remember
from traces.tags import Tag


class Lineage(Makers):
    """Bounded memory of who made which id, and of which workflow a session belongs to."""

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__(limit)
        self._roots: dict[tuple[str | None, str], str] = {}

    def place(self, tag: Tag) -> Tag:
        """A sub-agent's tag in the workflow of its root, as far as its parent was seen."""
        workflow = tag.workflow_id
        if tag.parent_agent_id is not None:
            workflow = self._roots.get((tag.source, tag.parent_agent_id), workflow)
        if tag.agent_id is not None and workflow is not None:
            remember(self._roots, (tag.source, tag.agent_id), workflow, self._limit)
        return tag if workflow == tag.workflow_id else tag._replace(workflow_id=workflow)
