"""One workflow's progress through its graph: what happened and when goes in, what may run and when comes out.

Why: the timing rule of the trace lives in exactly one place. A root is due at the trace's origin plus its arrival; any
other node at max(anchor of its blocking dependencies) + its own delay, the delay applied once, after the last of them.
May not know: clocks, sockets, prompts, arrival processes. Times are integers of ns on one axis.

A dependency on an id that is not in the workflow counts as met (trace check names it). A node whose blocking
dependency failed before the awaited anchor is skipped, and so is all that blocks on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from traces.workflow import ANCHORS, Anchor, Node, Workflow

_ORDER: tuple[Anchor, ...] = ("start", "first_token", "end")
assert set(_ORDER) == set(ANCHORS)
_IMPLIED: dict[Anchor, tuple[Anchor, ...]] = {a: _ORDER[: i + 1] for i, a in enumerate(_ORDER)}


@dataclass(slots=True)
class Ready:
    """A node whose dependencies are met, and the instant at which it should be sent."""

    node: Node
    due_ns: int


class Walk:
    """Feed it `start`, then `reach` and `fail` as things happen; each answer lists nodes exactly once."""

    __slots__ = ("_latest", "_nodes", "_pending", "_running", "_t0_ns", "_waiters", "workflow")

    def __init__(self, workflow: Workflow, t0_ns: int) -> None:
        self.workflow = workflow
        self._t0_ns = t0_ns
        self._nodes = {n.request_id: n for n in workflow.nodes}
        self._pending: dict[str, int] = {}
        """node -> blocking dependencies not yet met; gone once released or skipped"""
        self._latest: dict[str, int] = {}
        self._waiters: dict[tuple[str, Anchor], list[str]] = {}
        self._running: set[str] = set()

    def start(self) -> list[Ready]:
        """The roots, each due at the origin plus its arrival. Call once."""
        ready: list[Ready] = []
        for name, node in self._nodes.items():
            blocking = [d for d in node.deps if d.blocking and d.on in self._nodes] if node.deps else ()
            if blocking:
                self._pending[name] = len(blocking)
                for dep in blocking:
                    self._waiters.setdefault((dep.on, dep.anchor), []).append(name)
            else:
                self._running.add(name)
                ready.append(Ready(node, self._t0_ns + node.arrival_ns))
        return ready

    def reach(self, request_id: str, anchor: Anchor, now_ns: int) -> list[Ready]:
        """A released node reached an anchor. A later anchor implies the earlier ones; repeating one changes nothing."""
        if anchor == "end":
            self._running.discard(request_id)
        if not self._waiters:
            return []
        ready: list[Ready] = []
        for passed in _IMPLIED[anchor]:
            for child in self._waiters.pop((request_id, passed), ()):
                self._meet(child, now_ns, ready)
        return ready

    def _meet(self, child: str, now_ns: int, ready: list[Ready]) -> None:
        left = self._pending.get(child)
        if left is None:  # skipped meanwhile
            return
        latest = max(self._latest.get(child, now_ns), now_ns)
        if left > 1:
            self._pending[child] = left - 1
            self._latest[child] = latest
            return
        del self._pending[child]
        self._latest.pop(child, None)
        self._running.add(child)
        node = self._nodes[child]
        ready.append(Ready(node, latest + node.delay_ns))

    def fail(self, request_id: str) -> list[Node]:
        """A released node ended badly. Returns the nodes that now can never run, in order of discovery."""
        self._running.discard(request_id)
        skipped: list[Node] = []
        lost = [request_id]
        while lost:
            name = lost.pop()
            for anchor in _ORDER:
                for child in self._waiters.pop((name, anchor), ()):
                    if self._pending.pop(child, None) is not None:
                        self._latest.pop(child, None)
                        skipped.append(self._nodes[child])
                        lost.append(child)
        return skipped

    def abandon(self) -> list[Node]:
        """Give up every node not yet released (the run stops, or a cycle holds them for ever), in file order."""
        left = [self._nodes[name] for name in self._pending]
        self._pending.clear()
        self._waiters.clear()
        self._latest.clear()
        return left

    @property
    def awaited(self) -> bool:
        """Some node still waits for an anchor of another."""
        return bool(self._waiters)

    @property
    def busy(self) -> bool:
        """A released node has not ended yet."""
        return bool(self._running)

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._running and not self._pending

    @property
    def stuck(self) -> bool:
        """Nodes wait although nothing runs: their graph has a cycle."""
        return bool(self._pending) and not self._running


class Solo:
    """The walk of a workflow that is one node without dependencies: most requests of a request trace are such."""

    __slots__ = ("_node", "_t0_ns", "awaited", "busy", "stuck", "workflow")

    def __init__(self, workflow: Workflow, t0_ns: int) -> None:
        self.workflow = workflow
        self._node = workflow.nodes[0]
        self._t0_ns = t0_ns
        self.busy = self.awaited = self.stuck = False

    def start(self) -> list[Ready]:
        """As Walk.start."""
        self.busy = True
        return [Ready(self._node, self._t0_ns + self._node.arrival_ns)]

    def reach(self, request_id: str, anchor: Anchor, now_ns: int) -> list[Ready]:
        """As Walk.reach: nobody waits."""
        if anchor == "end":
            self.busy = False
        return []

    def fail(self, request_id: str) -> list[Node]:
        """As Walk.fail."""
        self.busy = False
        return []

    def abandon(self) -> list[Node]:
        """As Walk.abandon: nothing waits to be released."""
        return []

    @property
    def finished(self) -> bool:
        """As Walk.finished."""
        return not self.busy


def walk_of(workflow: Workflow, t0_ns: int) -> Walk | Solo:
    """The walk for a workflow: the cheap one where it is the same."""
    nodes = workflow.nodes
    return Solo(workflow, t0_ns) if len(nodes) == 1 and not nodes[0].deps else Walk(workflow, t0_ns)
