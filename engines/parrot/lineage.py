"""Workflows, nodes and edges of a Parrot, read off the client's exchange alone; the same for proxy and tests.

A workflow is (core incarnation, session id, n-th registration): session ids are handed out again at once, so the id
alone names nothing. A node is one semantic call; its output variable, named as an input of a later call, is an edge.
Pure: events with now_ns in, values out. May not know: sockets, bodies' syntax (protocol), records.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.parrot.protocol import Call
from traces.workflow import Dep

JOIN_CHARS = 16
"""shorter values may be equal by chance"""


@dataclass(slots=True)
class CallNode:
    """One semantic call of one workflow. Instants are monotonic ns, None until they happened."""

    workflow: OpenWorkflow
    node_id: str
    request_id: int
    output: str | None
    """variable it produces"""
    deps: tuple[Dep, ...]
    t_active_ns: int | None = None
    """first GET on it or on anything downstream, or its submission with a criteria"""
    criteria: str | None = None
    t_ready_ns: int | None = None
    """a GET on its output ended"""
    parents: tuple[CallNode, ...] = ()
    exact_output: int | None = None
    """tokens of its output, where the call itself fixes them: a token engine told to ignore the end of sequence"""
    empty: bool = False
    """its value was the empty text: whatever it had fixed, nothing was made of it"""
    external: tuple[str, ...] = ()
    """names of inputs that came from outside: registered variables (values pasted in are no variables)"""

    def needs(self, other: CallNode) -> bool:
        """Whether the other call's value went into this one, directly or through calls between."""
        waiting, seen = list(self.parents), {id(self)}
        while waiting:
            at = waiting.pop()
            if at is other:
                return True
            if id(at) not in seen:
                seen.add(id(at))
                waiting += at.parents
        return False


@dataclass(slots=True)
class OpenWorkflow:
    """One registration of a session."""

    workflow_id: str
    session_id: int
    class_name: str | None = None
    told: dict[str, str] = field(default_factory=dict)
    """value the client was given -> node that produced it"""
    nodes: dict[str, CallNode] = field(default_factory=dict)
    """by produced variable"""
    external: dict[str, int | None] = field(default_factory=dict)
    """registered variable -> instant it was set"""
    t_close_ns: int | None = None
    end: str | None = None
    """deleted | lost (core died) | replaced (its id was handed out again) | expired (the core no longer knows it)"""


class Lineage:
    """What the exchange has told so far: open workflows by session id."""

    def __init__(self, prefix: str = "parrot") -> None:
        self.incarnation = 0
        self.open: dict[int, OpenWorkflow] = {}
        self._prefix = prefix
        self._registered = 0

    def opened(self, session_id: int, now_ns: int, workflow_id: str | None = None) -> OpenWorkflow | None:
        """A session was registered. Returns the workflow whose id it took over, if one was still thought open."""
        replaced = self.closed(session_id, now_ns, "replaced")
        name = workflow_id or f"{self._prefix}-{self.incarnation}-{session_id}-{self._registered}"
        self._registered += 1
        self.open[session_id] = OpenWorkflow(name, session_id)
        return replaced

    def closed(self, session_id: int, now_ns: int, end: str) -> OpenWorkflow | None:
        """A session is over."""
        workflow = self.open.pop(session_id, None)
        if workflow is not None:
            workflow.t_close_ns, workflow.end = now_ns, end
        return workflow

    def core_died(self, now_ns: int) -> list[OpenWorkflow]:
        """The core is gone: everything open is lost, and session ids begin anew. A core that is still gone when
        somebody asks again has not died again."""
        lost = [w for s in list(self.open) if (w := self.closed(s, now_ns, "lost")) is not None]
        if self._registered:
            self.incarnation += 1
            self._registered = 0
        return lost

    def called(
        self, call: Call, request_id: int, variables: dict[str, str], now_ns: int, node_id: str | None = None
    ) -> CallNode | None:
        """A call was accepted; `variables`: parameter name -> var_id as the reply says. None: session not seen."""
        workflow = self.open.get(call.session_id)
        if workflow is None:
            return None
        label = f"{call.func_name}.{request_id}" if call.func_name else f"call.{request_id}"
        deps: dict[str, Dep] = {}
        parents: list[CallNode] = []
        external: list[str] = []
        for parameter in call.parameters:
            if parameter.is_output:
                continue
            if parameter.var_id is None:
                on = workflow.told.get(parameter.value or "")
                if on is not None and on not in deps:
                    deps[on] = Dep(on, "data", provenance="inferred:value")
                continue
            maker = workflow.nodes.get(parameter.var_id)
            if maker is None:
                external.append(parameter.name)
            elif maker.node_id not in deps:
                deps[maker.node_id] = Dep(maker.node_id, "data", provenance="recorded")
                parents.append(maker)
        output = next((variables[p.name] for p in call.outputs if p.name in variables), None)
        node = CallNode(
            workflow, node_id or label, request_id, output, tuple(deps.values()), parents=tuple(parents),
            exact_output=_exact(call), external=tuple(external),
        )  # fmt: skip
        if output is not None:
            workflow.nodes[output] = node
        if call.criteria is not None:
            self._activate(node, call.criteria, now_ns)
        return node

    def registered(self, session_id: int, var_id: str) -> None:
        """A variable from outside was announced."""
        if (workflow := self.open.get(session_id)) is not None:
            workflow.external[var_id] = None

    def was_set(self, session_id: int, var_id: str, now_ns: int) -> None:
        """A variable from outside got its value."""
        if (workflow := self.open.get(session_id)) is not None:
            workflow.external[var_id] = now_ns

    def told(self, node: CallNode, content: object) -> None:
        """The client was given a value; if it pastes it into a later call, that is an edge too."""
        node.empty = content == ""
        if isinstance(content, str) and len(content) >= JOIN_CHARS:
            node.workflow.told[content] = node.node_id

    def find(self, session_id: int | None, var_id: str) -> CallNode | None:
        """Who produces a variable, None when nobody seen does."""
        workflow = self.open.get(session_id) if session_id is not None else None
        return workflow.nodes.get(var_id) if workflow is not None else None

    def asked(self, node: CallNode, criteria: str, now_ns: int) -> list[CallNode]:
        """A GET on the node's output goes on: what it activates, itself included, in no order."""
        return self._activate(node, criteria, now_ns)

    def _activate(self, node: CallNode, criteria: str, now_ns: int) -> list[CallNode]:
        found: list[CallNode] = []
        waiting = [node]
        while waiting:
            at = waiting.pop()
            if at.t_active_ns is None:  # what is active has activated what it needs
                at.t_active_ns, at.criteria = now_ns, criteria
                found.append(at)
                waiting += at.parents
        return found


def _exact(call: Call) -> int | None:
    """Of 1 the builtin engine makes 2, and the openai engine does not pass the wish on."""
    fixed = call.ignore_eos and call.model_type == "token_id" and call.max_gen_length > 1
    return call.max_gen_length if fixed else None
