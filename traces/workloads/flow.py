"""Flow: the small language in which workloads are written. A workload is a function that makes calls on a flow:

    def telephone(flow, *, players=4, message="40-80"):
        rules = flow.shared("rules", 200)
        said = flow.call("player-0", [rules, flow.text(message)], message)
        for n in range(1, players):
            said = flow.call(f"player-{n}", [rules, said], message, agent=f"player-{n}")

What a call reads it depends on: an earlier call in its prompt is a data edge and its output counts as prompt tokens.
Pure and seeded. May not know: files, HTTP, arrival processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from traces.errors import UserError
from traces.workflow import Api, Dep, DepKind, Node, Workflow
from traces.workloads.blocks import Blocks, Memo
from traces.workloads.spread import Amount, parse

_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of prompt. Equal keys are equal tokens; a shared piece is equal in every workflow of the trace."""

    key: tuple[object, ...]
    tokens: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the workflow; in the prompt of a later call it stands for its output."""

    request_id: str
    output: int
    parts: tuple[Text | Call, ...]
    input: int


Part = Text | Call


@dataclass(frozen=True, slots=True)
class Wire:
    """How every call of a trace is sent."""

    api: Api = "completions"
    model: str | None = None
    stream: bool = True


@dataclass(slots=True)
class Flow:
    """One workflow in the making. `rng` is seeded per workflow, so workflows do not depend on one another."""

    workflow_id: str
    arrival_ns: int
    rng: Random
    blocks: Blocks
    seed: str = "0"
    """of the whole trace: what shared pieces are drawn with"""
    class_name: str = "workflow"
    session_id: str | None = None
    wire: Wire = field(default_factory=Wire)
    scale: float = 1.0
    """multiplies every length of text (prompt pieces and outputs), not counts or times"""
    _nodes: list[Node] = field(default_factory=list)
    _memo: Memo = field(default_factory=dict)
    _pieces: int = 0

    def draw(self, amount: Amount) -> int:
        """A whole number from an amount: fan-out, rounds, turns (traces.workloads.spread)."""
        return round(parse(amount).draw(self.rng))

    def shared(self, name: str, tokens: Amount) -> Text:
        """Text that is the same in every workflow: system prompts, tool descriptions, few-shot examples."""
        drawn = parse(tokens).draw(Random(f"{self.seed}:shared:{name}"))
        length = self._scaled(drawn)
        return Text(("shared", name, length), length, shared=True)

    def text(self, tokens: Amount) -> Text:
        """Text of this workflow alone. Reuse the object to say the same text again."""
        self._pieces += 1
        length = self._scaled(parse(tokens).draw(self.rng))
        return Text(("own", self._pieces), length)

    def call(
        self,
        name: str,
        prompt: Sequence[Part],
        output: Amount,
        *,
        agent: str | None = None,
        parent_agent: str | None = None,
        continues: Call | None = None,
        after: Sequence[Call] = (),
        spawned_by: Call | None = None,
        think_ms: Amount = 0,
        tool_ms: Amount = 0,
    ) -> Call:
        """Add one LLM call and give a handle to it.

        continues: this prompt is that call's prompt and output, then `prompt` (a conversation edge).
        after: calls waited for but not read (barriers: control edges). spawned_by: the call that started this agent.
        think_ms, tool_ms: time between the last dependency and this call, drawn per call.
        """
        parts = (*continues.parts, continues, *prompt) if continues else tuple(prompt)
        tokens = max(1, self._scaled(parse(output).draw(self.rng)))
        state = self.blocks.root
        for part in parts:
            if isinstance(part, Call):
                state = self.blocks.extend(state, ("out", part.request_id), part.output, self._memo, shared=False)
            elif part.tokens:
                state = self.blocks.extend(state, part.key, part.tokens, self._memo, shared=part.shared)
        if not state.tokens:
            raise UserError(f"call {name!r} has an empty prompt: give at least one token of text or a parent's output")
        deps = self._deps(prompt, continues, after, spawned_by)
        tool_ns, think_ns = (round(parse(ms).draw(self.rng) * _MS) for ms in (tool_ms, think_ms))
        made = Call(f"{self.workflow_id}:{name}", tokens, parts, state.tokens)
        self._nodes.append(
            Node(
                workflow_id=self.workflow_id,
                request_id=made.request_id,
                arrival_ns=self.arrival_ns,
                input_length=state.tokens,
                output_length=tokens,
                session_id=self.session_id,
                agent_id=agent,
                parent_agent_id=parent_agent,
                delay_ns=tool_ns + think_ns,
                tool_wait_ns=tool_ns,
                think_ns=think_ns,
                deps=deps,
                hash_ids=self.blocks.ids(state),
                model=self.wire.model,
                api=self.wire.api,
                stream=self.wire.stream,
            )
        )
        return made

    def workflow(self) -> Workflow:
        """The finished workflow."""
        if not self._nodes:
            raise UserError(
                f"workflow {self.workflow_id!r} has no calls: its function must call flow.call at least once"
            )
        names = [n.request_id for n in self._nodes]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise UserError(f"call {twice!r} was made twice: give every call of a workflow its own name")
        return Workflow(self.workflow_id, tuple(self._nodes), self.class_name)

    def _scaled(self, tokens: float) -> int:
        return max(1, round(tokens * self.scale)) if tokens else 0

    @staticmethod
    def _deps(
        prompt: Sequence[Part], continues: Call | None, after: Sequence[Call], spawned_by: Call | None
    ) -> tuple[Dep, ...]:
        """The first reason given to wait for a call is the edge's kind; one edge per call waited for."""
        wanted: list[tuple[Call | None, DepKind]] = [
            (continues, "conversation"),
            (spawned_by, "spawn"),
            *((part, "data") for part in prompt if isinstance(part, Call)),
            *((call, "control") for call in after),
        ]
        deps: dict[str, Dep] = {}
        for call, kind in wanted:
            if call is not None:
                deps.setdefault(call.request_id, Dep(on=call.request_id, kind=kind, provenance="declared"))
        return tuple(deps.values())
