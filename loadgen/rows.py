"""Dispatch rows of what was never sent, and the one way of every row: counted, then written.

May not know: connections, time (instants are arguments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from loadgen.client import Row, unsent
from loadgen.heads import wire_id
from loadgen.run import Run
from loadgen.tally import Tally
from traces.records import Outcome
from traces.workflow import Node


class Rows:
    """Where rows go. salt: of the run, in every id on the wire."""

    def __init__(self, write: Callable[[Row], None], tally: Tally, salt: str) -> None:
        self._write = write
        self._tally = tally
        self._salt = salt

    def wire(self, node: Node) -> str:
        """The node's id on the wire."""
        return wire_id(self._salt, node)

    def put(self, row: Row) -> None:
        """One node has ended."""
        self._tally.ended(row)
        self._write(row)

    def unsent(self, run: Run, node: Node, outcome: Outcome, why: str | None, due_ns: int, end_ns: int) -> None:
        """A node that ended without a request."""
        self.put(unsent(node, run.class_name, self.wire(node), outcome, why, due_ns, end_ns))

    def skip(self, run: Run, nodes: Iterable[Node], why: str, now_ns: int) -> None:
        """Nodes that will never be sent."""
        for node in nodes:
            self.unsent(run, node, "skipped", why, now_ns, now_ns)
