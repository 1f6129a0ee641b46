"""Which sequences a step serves: queues, chunks, blocks, preemption, as vLLM V1's scheduler decides.

Each step takes every running sequence first (decodes one token each, unfinished prefills a chunk of what is left of
max_num_batched_tokens), then admits waiting ones in order of arrival. Where blocks run out the last admitted is
preempted and recomputed later. A decoding sequence is touched only when it needs a block or ends: steps in between
cost the same for one sequence as for 256.
May not know: time's cost, energy, HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engines.embedded.kvcache import BlockPool
from engines.embedded.sequence import Chunk, Seq
from engines.embedded.types import Limits


@dataclass(frozen=True, slots=True)
class Plan:
    """The batch of a step."""

    members: tuple[Seq, ...]
    """decoding sequences"""
    context: int
    """context tokens that they read together"""
    chunks: list[Chunk]
    preempted: int


class Scheduler:
    """Queues and blocks of one replica. step_index and t_last_ns (end of the last step) are kept by finish_step."""

    def __init__(self, limits: Limits, pool: BlockPool, left_decode: Callable[[Seq], None]) -> None:
        """left_decode is told of every sequence that decodes no longer (finished, preempted, aborted)."""
        self._limits = limits
        self._pool = pool
        self._left_decode = left_decode
        self.waiting: deque[Seq] = deque()
        self.running: dict[Seq, None] = {}  # in order of admission
        self._prefilling: dict[Seq, None] = {}
        self._decoding: dict[Seq, None] = {}
        self._members: tuple[Seq, ...] | None = ()  # snapshot of _decoding; None when it changed
        self.width = 1 + limits.num_speculative_tokens  # tokens that a decode computes in a step
        self._context_offset = 0  # sum of offsets of the decoding: their context in step s is paces x s - this
        self._paces = 0
        self._due: list[dict[Seq, None]] = [{} for _ in range(limits.block_size)]
        self._ends: dict[int, list[Seq]] = {}
        self._changes = 0  # grows whenever blocks were freed or prompts computed: only then can the head's luck change
        self._stuck: tuple[Seq, int] | None = None
        self.step_index = 0
        self.t_last_ns = 0

    def plan(self, now_ns: int) -> Plan | None:
        """The next batch; None when there is nothing to do."""
        preempted = self._grow_decodes()
        chunks, more = self._continue_prefills()
        preempted += more
        if not preempted and self.waiting:
            self._admit(chunks, now_ns)
        if not chunks and not self._decoding:
            if self.running:
                raise RuntimeError("sequences run but none could be scheduled")
            return None
        if self._members is None:
            self._members = tuple(self._decoding)
        context = self._paces * self.step_index - self._context_offset
        return Plan(self._members, context, chunks, preempted)

    def ending(self) -> list[Seq]:
        """Decoding sequences whose last token is this step's."""
        return [seq for seq in self._ends.pop(self.step_index, ()) if seq.end_step == self.step_index]

    def join_decode(self, seq: Seq, t_ns: int) -> None:
        """The step in flight completed the prefill and gave a token; the next one decodes."""
        del self._prefilling[seq]
        seq.first_token(t_ns, self.step_index)
        self._decoding[seq] = None
        self._members = None
        self._context_offset += seq.offset
        self._paces += seq.pace
        self._due[seq.offset % self._limits.block_size][seq] = None
        if seq.end_step > self.step_index:
            self._ends.setdefault(seq.end_step, []).append(seq)

    def finish_step(self, t_end_ns: int) -> None:
        """The step in flight is over."""
        self.t_last_ns = t_end_ns
        self.step_index += 1

    def _grow_decodes(self) -> int:
        """A block for each decoding sequence whose last one is full; returns how many were preempted for it."""
        # With drafts a sequence may need blocks in any step, and several; without, when it is due, and one.
        due = self._due[self.step_index % self._limits.block_size] if self.width == 1 else self._decoding
        if not due:
            return 0
        preempted = 0
        for seq in list(due):
            need = 1 if self.width == 1 else self._lacking(seq)
            while need and seq in due and self._pool.free_blocks < need:
                self._preempt()
                preempted += 1
            if need and seq in due:
                self._register(seq, seq.context(self.step_index))
                seq.blocks += self._pool.allocate(need)
        return preempted

    def _lacking(self, seq: Seq) -> int:
        """Blocks that a decoding sequence lacks for the tokens of this step, drafts among them."""
        tokens = min(seq.context(self.step_index) + self.width, seq.n_prompt + len(seq.out))
        return max(0, self._blocks(tokens) - len(seq.blocks))

    def _continue_prefills(self) -> tuple[list[Chunk], int]:
        chunks: list[Chunk] = []
        preempted = 0
        budget = self._limits.max_num_batched_tokens - len(self._decoding) * self.width
        for seq in list(self._prefilling):
            tokens = min(seq.known - seq.computed, budget)
            if tokens < 1 or seq not in self._prefilling:
                continue
            need = self._blocks(seq.computed + tokens) - len(seq.blocks)
            while seq in self._prefilling and need > self._pool.free_blocks:
                self._preempt()
                preempted += 1
            if seq in self._prefilling:
                self._take(seq, tokens, need, chunks)
                budget -= tokens
        return chunks, preempted

    def _admit(self, chunks: list[Chunk], now_ns: int) -> None:
        limits = self._limits
        budget = limits.max_num_batched_tokens - len(self._decoding) * self.width - sum(c.tokens for c in chunks)
        while self.waiting and budget > 0 and len(self.running) < limits.max_num_seqs:
            seq = self.waiting[0]
            if self._stuck == (seq, self._changes):
                return
            # The last token is always computed: its logits are what the step is for.
            usable = (seq.known - 1) // limits.block_size
            hits = self._pool.lookup(seq.hashes[:usable]) if limits.enable_prefix_caching else 0
            cached = hits * limits.block_size
            tokens = min(seq.known - cached, budget)
            need = self._blocks(cached + tokens) - hits
            ids = self._pool.ids_of(seq.hashes[:hits]) if need <= self._pool.free_blocks else None
            if ids is None or need + self._pool.unreferenced(ids) > self._pool.free_blocks:
                self._stuck = (seq, self._changes)
                return
            self.waiting.popleft()
            self._pool.touch(ids)
            seq.admit(ids.tolist(), cached, now_ns)
            self.running[seq] = None
            self._prefilling[seq] = None
            self._take(seq, tokens, need, chunks)
            budget -= tokens

    def _take(self, seq: Seq, tokens: int, need: int, chunks: list[Chunk]) -> None:
        if need:
            seq.blocks += self._pool.allocate(need)
        chunks.append(Chunk(seq, tokens, seq.computed))
        self._changes += 1
        # As in vLLM, blocks count as cached when they are scheduled: a later sequence of the same step may use them.
        self._register(seq, seq.computed + tokens)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_size)

    def _register(self, seq: Seq, tokens: int) -> None:
        full = tokens // self._limits.block_size
        if full > seq.registered and self._limits.enable_prefix_caching:
            self._pool.register(seq.blocks[seq.registered : full], seq.hashes[seq.registered : full])
            seq.registered = full

    def _preempt(self) -> None:
        """Send the last admitted back to the head of the queue; it keeps its tokens and loses its blocks."""
        seq = next(reversed(self.running))
        self.release(seq, self.step_index, self.t_last_ns)
        seq.preempt()
        self.waiting.appendleft(seq)

    def release(self, seq: Seq, steps: int, t_last_ns: int) -> None:
        """Take a sequence out of the batch and free its blocks; the steps before number `steps`,
        the last of which ended at t_last_ns, gave it tokens."""
        del self.running[seq]
        if seq in self._decoding:
            del self._decoding[seq]
            del self._due[seq.offset % self._limits.block_size][seq]
            self._members = None
            self._context_offset -= seq.offset
            self._paces -= seq.pace
            seq.leave_decode(steps, t_last_ns)
            self._left_decode(seq)
        else:
            del self._prefilling[seq]
        self._register(seq, seq.computed)
        self._pool.free(seq.blocks)
        self._changes += 1
        seq.blocks = []
