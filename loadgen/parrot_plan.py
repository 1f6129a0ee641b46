"""A trace's workflow as Parrot calls: which node is which call, its template, its inputs, its criteria. Pure.

Why: the client of a Parrot hands over the graph instead of walking it, so everything but times is decided here. A call
may be submitted as soon as the calls it needs were, unless the client has to wait itself (`timed`): a delay, a tool, or
another anchor than the end. Prompts are words, one token each in a whitespace tokenizer and in those that keep common
words whole; docs/parrot.md gives their layout. May not know: sockets, clocks, what a server answers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from engines.parrot.protocol import Criteria, mark
from loadgen.prompts import Words, segments
from traces.workflow import Manifest, Node, Workflow

CriteriaRule = Literal["pattern", "latency", "throughput"]
"""pattern: what a client asks for is latency; what runs beside others before it is throughput, started at once, because
a latency call caps its engine at four"""
SEPARATOR, TAIL = " the", " of"
REMEMBERED = 1 << 16


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One node as a call."""

    node: Node
    template: str
    inputs: tuple[tuple[str, str], ...]
    """placeholder -> node whose output fills it"""
    own: str | None
    """text of the placeholder `own`"""
    prompt_tokens: int
    """what the prompt will have, one token per word, outputs as planned"""
    timed: bool
    """the client waits for what it needs before it submits"""
    asked: bool
    """the client waits for its value; what is not asked is read beside, once something asked has activated it"""
    at_once: Criteria | None
    """activated by its submission"""
    criteria: Criteria
    """of a GET that may activate it"""

    def body(self, session_id: int, var_ids: dict[str, str], wire_id: str) -> dict[str, Any]:
        """The body of POST /v1/semantic_call. var_ids: node -> variable of its output. wire_id: goes along
        to the engine."""
        parameters: list[dict[str, Any]] = [
            {"name": name, "is_output": False, "var_id": var_ids[node]} for name, node in self.inputs
        ]
        if self.own is not None:
            parameters.append({"name": "own", "is_output": False, "value": self.own})
        sampling = {
            "temperature": float(self.node.sampling.get("temperature", 1.0)),
            "top_p": float(self.node.sampling.get("top_p", 1.0)),
            "max_gen_length": self.node.output_length,
            "ignore_tokenizer_eos": True,
            "stop_str": mark(wire_id),
        }
        parameters.append({"name": "out", "is_output": True, "sampling_config": sampling})
        return {
            "session_id": session_id,
            "session_auth": "1",
            "func_name": self.node.request_id,
            "template": self.template,
            "parameters": parameters,
            "model_type": "token_id",
            "cache_prefix": True,
            "output_criteria": self.at_once,
        }


class Prefixes:
    """Blocks met so far, the latest kept: a block met before is worth being leading constant text."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._met: OrderedDict[int, str] = OrderedDict()

    def shared(self, node: Node) -> int:
        """How many leading blocks of a node another node had."""
        count = 0
        me = f"{node.workflow_id}\0{node.request_id}"
        for block in node.hash_ids or ():
            if self._met.get(block, me) == me:
                break
            count += 1
        return count

    def learn(self, node: Node) -> None:
        """A node's blocks; the first that has one owns it."""
        me = f"{node.workflow_id}\0{node.request_id}"
        for block in node.hash_ids or ():
            if self._met.setdefault(block, me) != me:
                self._met[block] = ""  # two have it: shared for all
            self._met.move_to_end(block)
        while len(self._met) > self._limit:
            self._met.popitem(last=False)


def plan_calls(
    workflow: Workflow, manifest: Manifest, words: Words, prefixes: Prefixes, rule: CriteriaRule = "pattern"
) -> dict[str, PlannedCall]:
    """The calls of a workflow by node id, in topological order; tools and pauses have none. Nodes of a cycle are
    left out, and so is what needs them."""
    nodes = {n.request_id: n for n in workflow.nodes}
    order = _topological(nodes)
    calls = [nodes[name] for name in order if nodes[name].kind == "llm"]
    for node in calls:
        prefixes.learn(node)
    timed = {n.request_id for n in calls if _is_timed(n, nodes)}
    children: dict[str, list[Node]] = {name: [] for name in order}
    for name in order:
        for dep in nodes[name].blocking:
            if dep.on in children:
                children[dep.on].append(nodes[name])
    asked = {
        name
        for name, after in children.items()
        if not after or any(c.kind != "llm" or c.request_id in timed for c in after)
    }
    beside = _beside(order, nodes)
    out: dict[str, PlannedCall] = {}
    for node in calls:
        name = node.request_id
        if rule == "pattern":
            criteria: Criteria = "latency" if name in asked else "throughput"
            at_once: Criteria | None = "throughput" if name not in asked and beside else None
        else:
            criteria, at_once = rule, None
        template, inputs, own, tokens = _prompt(node, nodes, manifest, words, prefixes)
        out[name] = PlannedCall(
            node, template, inputs, own, tokens, name in timed, name in asked, at_once,
            "latency" if rule == "pattern" and not beside else criteria,
        )  # fmt: skip
    return out


def _is_timed(node: Node, nodes: dict[str, Node]) -> bool:
    deps = [d for d in node.blocking if d.on in nodes]
    return bool(deps) and (node.delay_ns > 0 or any(d.anchor != "end" or nodes[d.on].kind != "llm" for d in deps))


def _topological(nodes: dict[str, Node]) -> list[str]:
    needs = {name: {d.on for d in n.blocking if d.on in nodes and d.on != name} for name, n in nodes.items()}
    order: list[str] = []
    done: set[str] = set()
    waiting = list(nodes)
    while waiting:
        ready = [name for name in waiting if needs[name] <= done]
        if not ready:
            break
        order += ready
        done |= set(ready)
        waiting = [name for name in waiting if name not in done]
    return order


def _beside(order: list[str], nodes: dict[str, Node]) -> bool:
    """Whether calls of this workflow can run side by side at the same depth."""
    depth: dict[str, int] = {}
    widths: dict[int, int] = {}
    for name in order:
        at = depth[name] = 1 + max((depth[d.on] for d in nodes[name].blocking if d.on in depth), default=-1)
        if nodes[name].kind == "llm":
            widths[at] = widths.get(at, 0) + 1
    return any(width > 1 for width in widths.values())


def _prompt(
    node: Node, nodes: dict[str, Node], manifest: Manifest, words: Words, prefixes: Prefixes
) -> tuple[str, tuple[tuple[str, str], ...], str | None, int]:
    """Template, inputs, own text, tokens: shared constant, each input with a word after it, own text, one last word."""
    makers = [d.on for d in node.blocking if d.on in nodes and nodes[d.on].kind == "llm" and d.anchor == "end"]
    makers = list(dict.fromkeys(makers))
    given = sum(nodes[m].output_length for m in makers)
    room = max(0, node.input_length - given - len(makers) - 1)
    parts = segments(node, manifest, room) if room else []
    leading = min(prefixes.shared(node), sum(p.shared for p in parts))
    constant = words.text(parts[:leading])
    own = words.text(parts[leading:]) or None
    inputs = tuple((f"in_{k}", maker) for k, maker in enumerate(makers))
    template = constant + "".join(f"{{{{{name}}}}}{SEPARATOR}" for name, _ in inputs)
    template += ("{{own}}" if own is not None else "") + TAIL + "{{out}}"
    return template, inputs, own, room + given + len(makers) + 1
