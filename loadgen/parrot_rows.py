"""What a replay onto a Parrot writes down and how it names its requests: dispatch rows, wire ids, tags.

Rows are those of the other replays (loadgen.client), so both compare point by point. May not know: sockets, tasks.
"""

from __future__ import annotations

from loadgen.client import Row, base_row, unsent
from loadgen.heads import wire_id
from loadgen.parrot_plan import PlannedCall
from loadgen.parrot_run import Run, Step
from loadgen.parrot_wire import Answer
from loadgen.target import Target
from traces import tags
from traces.records import Outcome
from traces.seams import NowNs
from traces.workflow import Node


class Rows:
    """Rows of one replay: its target, its salt, its clock."""

    def __init__(self, target: Target, salt: str, now_ns: NowNs) -> None:
        self._target, self._salt, self._now_ns = target, salt, now_ns

    def wire(self, node: Node) -> str:
        """The request id that travels."""
        return wire_id(self._salt, node)

    def tags(self, run: Run, node: Node | None) -> list[tuple[str, str]]:
        """Headers that say whose request it is; our proxy reads them, a Parrot does not. None: the session's own."""
        tag = tags.Tag(tags.clean(run.workflow.workflow_id), class_name=tags.clean(run.workflow.class_name))
        if node is None:
            return tags.to_headers(tag)
        parents = tuple(d for d in node.deps if tags.clean(d.on))
        mine = tags.Tag(
            tag.workflow_id, tags.clean(node.request_id), parents, tags.clean(node.agent_id), tag.class_name
        )
        return [*tags.to_headers(mine), (tags.REQUEST_ID, self.wire(node))]

    def called(
        self,
        run: Run,
        step: Step,
        answer: Answer,
        outcome: Outcome,
        error: str | None,
        due_ns: int,
        sent_ns: int | None,
    ) -> Row:
        """A call that was asked for, whatever came of it."""
        end = max(answer.end_ns, due_ns)
        row = base_row(step.node, run.workflow.class_name, self.wire(step.node), outcome, due_ns, end)
        row["api"], row["model"] = "parrot", self._target.model
        for name, value in (
            ("t_sent_ns", sent_ns), ("status", answer.status), ("error", error),
            ("connection_reused", answer.reused),
        ):  # fmt: skip
            if value is not None:
                row[name] = value
        return row

    def plain(self, run: Run, step: Step, outcome: Outcome, why: str, due_ns: int) -> Row:
        """A node for which nothing was sent."""
        node, now = step.node, self._now_ns()
        return unsent(node, run.workflow.class_name, self.wire(node), outcome, why, due_ns, max(now, due_ns))

    def count(self, row: Row, call: PlannedCall, content: object) -> None:
        """Lengths in words: of the answer as read, of the prompt as composed. Words are tokens where the tokenizer has
        one per word (target.exact), and only then are they written down as such."""
        if not self._target.exact or not isinstance(content, str):
            return
        row["completion_tokens"] = len(content.split())
        row["prompt_tokens"] = call.prompt_tokens
        row["finish_reason"] = "length"
