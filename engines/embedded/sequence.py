"""One sequence's state, one planned step, and what a step gave: the plain values that the scheduler moves about.

A decoding sequence is described by its pace (output tokens per step: 1, and the drafts accepted) and two offsets: in
step s its context is pace x s - offset and it gets the output tokens from pace x s - emit_offset on. Nothing of it
changes from step to step.
May not know: the queues, the block pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from engines.embedded.power import Batch, Cost
from engines.embedded.truth import Account
from engines.embedded.types import FinishReason, RequestStats, SeqWork, Step, TokenOut
from traces.records import TruthRecord


class Seq:
    """A request inside the engine. Its output is fixed when it arrives (see tokens.plan_output)."""

    __slots__ = (
        "aborted", "accepted", "account", "blocks", "cached_tokens", "computed", "emit_offset", "emitted", "end_step",
        "finish_reason", "hashes", "joined_step", "n_prompt", "offset", "out", "pace", "preemptions", "reason",
        "registered", "request_id", "spec_steps", "t_arrival_ns", "t_first_ns", "t_last_ns", "t_scheduled_ns", "truth",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        t_arrival_ns: int,
        n_prompt: int,
        out: list[int],
        reason: FinishReason,
        hashes: list[int],
        account: Account,
        pace: int = 1,
    ) -> None:
        self.request_id = request_id
        self.t_arrival_ns = t_arrival_ns
        self.n_prompt = n_prompt
        self.out = out
        self.reason: FinishReason = reason
        self.hashes = hashes
        self.account = account
        self.pace = pace
        self.joined_step = 0
        self.spec_steps = self.accepted = 0  # steps, and drafts accepted, of decode phases that are over
        self.blocks: list[int] = []
        self.registered = 0  # leading blocks whose content is registered in the pool
        self.computed = 0  # tokens in the KV cache (while prefilling)
        self.emitted = 0  # output tokens before the present decode phase
        self.offset = self.emit_offset = 0
        self.end_step = -1
        self.cached_tokens = 0
        self.preemptions = 0
        self.aborted = False
        self.finish_reason: FinishReason | None = None
        self.t_scheduled_ns: int | None = None
        self.t_first_ns: int | None = None
        self.t_last_ns: int | None = None
        self.truth: list[TruthRecord] | None = None

    @property
    def known(self) -> int:
        """Tokens to prefill: the prompt and, after a preemption, what was generated before it."""
        return self.n_prompt + self.emitted

    @property
    def decoding(self) -> bool:
        return self.end_step >= 0

    def admit(self, blocks: list[int], cached: int, now_ns: int) -> None:
        """Enter the batch with these cached blocks."""
        self.blocks = blocks
        self.registered = len(blocks)
        self.computed = cached
        if self.t_scheduled_ns is None:
            self.t_scheduled_ns = now_ns
            self.cached_tokens = cached

    def first_token(self, t_ns: int, step_index: int) -> None:
        """The prefill is complete: step_index gave a token, the next step decodes."""
        if self.t_first_ns is None:
            self.t_first_ns = t_ns
        self.t_last_ns = t_ns
        pace = self.pace
        self.joined_step = step_index + 1
        self.offset = pace * (step_index + 1) - self.known
        self.emit_offset = pace * (step_index + 1) - self.emitted - 1
        self.end_step = step_index - (self.emitted + 1 - len(self.out)) // pace

    def leave_decode(self, step_index: int, t_last_ns: int) -> None:
        """Steps before step_index were the sequence's last ones in this decode phase; they ended at t_last_ns."""
        self.t_last_ns = t_last_ns
        steps = step_index - self.joined_step
        self.spec_steps += steps
        self.accepted += self._accepted(step_index, steps)
        self.emitted = self.output_tokens(step_index)
        self.computed = self.known - 1
        self.end_step = -1

    def _accepted(self, step_index: int, steps: int) -> int:
        """Drafts accepted in this decode phase: what it gave beyond a token per step and the prefill's one."""
        return self.output_tokens(step_index) - self.emitted - 1 - steps

    def preempt(self) -> None:
        """Lose the KV cache, keep the tokens."""
        self.preemptions += 1
        self.computed = self.registered = 0

    def output_tokens(self, step_index: int) -> int:
        """Tokens given before step_index."""
        return self.given(step_index).start if self.decoding else self.emitted

    def given(self, step_index: int) -> range:
        """Indices of the output tokens that this step of its decode phase gives it."""
        begin = self.pace * step_index - self.emit_offset
        return range(min(begin, len(self.out)), min(begin + self.pace, len(self.out)))

    def context(self, step_index: int) -> int:
        """Tokens in the KV cache at the start of this step of its decode phase."""
        return self.pace * step_index - self.offset

    def stats(self, step_index: int, t_last_step_ns: int, drafts: int = 0) -> RequestStats:
        """Counts and instants so far; drafts: draft tokens that a decode verifies in each step."""
        steps, accepted = self.spec_steps, self.accepted
        if self.decoding:
            more = step_index - self.joined_step
            steps, accepted = steps + more, accepted + self._accepted(step_index, more)
        return RequestStats(
            request_id=self.request_id,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens(step_index),
            t_arrival_ns=self.t_arrival_ns,
            t_scheduled_ns=self.t_scheduled_ns,
            t_first_token_ns=self.t_first_ns,
            t_last_token_ns=t_last_step_ns if self.decoding else self.t_last_ns,
            preemptions=self.preemptions,
            draft_tokens=drafts * steps if drafts else None,
            accepted_tokens=accepted if drafts else None,
            spec_steps=steps if drafts else None,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A prefill chunk of a step."""

    seq: Seq
    tokens: int
    context: int


class Work(Sequence[SeqWork]):
    """SeqWork of a step, made when read. Read it before the next step is scheduled."""

    def __init__(self, index: int, members: tuple[Seq, ...], chunks: Sequence[Chunk], width: int) -> None:
        self._index, self._members, self._chunks, self._width = index, members, chunks, width

    def __len__(self) -> int:
        return len(self._members) + len(self._chunks)

    @overload
    def __getitem__(self, i: int) -> SeqWork: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[SeqWork]: ...
    def __getitem__(self, i: int | slice) -> SeqWork | Sequence[SeqWork]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = range(len(self))[i]
        if k < len(self._members):
            seq = self._members[k]
            return SeqWork(seq.request_id, 0, self._width, seq.context(self._index))
        chunk = self._chunks[k - len(self._members)]
        return SeqWork(chunk.seq.request_id, chunk.tokens, 0, chunk.context)


@dataclass(frozen=True, slots=True)
class Flight:
    """A step in flight and what the core needs to settle it."""

    step: Step
    batch: Batch
    cost: Cost
    members: tuple[Seq, ...]
    """decoding sequences"""
    chunks: list[Chunk]
    preempted: int


def plan_step(
    index: int, replica: int, members: tuple[Seq, ...], chunks: list[Chunk], cost: Cost, width: int = 1
) -> Step:
    """The step as the shell sees it."""
    return Step(
        index=index,
        replica=replica,
        duration_ns=max(1, round(cost.seconds * 1e9)),
        work=Work(index, members, chunks, width),
        clock=cost.rates.clock,
        throttled=cost.throttled,
    )


@dataclass(slots=True)
class Emission:
    """What a step gave, without an object per token. Read it before the next step completes."""

    step_index: int
    t_ns: int
    members: tuple[Seq, ...]
    """decoding sequences: a token each, and those of their drafts that were accepted (aborted ones excepted)"""
    first: list[tuple[Seq, int]]
    """sequences whose prefill ended in this step, with the index of the output token they got"""
    finished: list[tuple[Seq, FinishReason]]

    width: int = 1

    def __len__(self) -> int:
        if self.width == 1:
            return len(self.members) + len(self.first) - sum(seq.aborted for seq in self.members)
        return len(self.first) + sum(len(seq.given(self.step_index)) for seq in self.members if not seq.aborted)

    def tokens(self) -> Iterator[tuple[str, int]]:
        """(request_id, token) of every sequence that got one."""
        step = self.step_index
        for seq in self.members:
            if not seq.aborted:
                for at in seq.given(step):
                    yield seq.request_id, seq.out[at]
        for seq, index in self.first:
            yield seq.request_id, seq.out[index]

    def outputs(self) -> list[TokenOut]:
        """One TokenOut per token."""
        ends = {seq.request_id: reason for seq, reason in self.finished}
        given = list(self.tokens())
        last = {request_id: k for k, (request_id, _) in enumerate(given)}
        return [
            TokenOut(request_id, token, ends.get(request_id) if last[request_id] == k else None)
            for k, (request_id, token) in enumerate(given)
        ]
