"""The pure engine: continuous batching as vLLM V1 schedules it, over the step model and the block pool.

Each step takes every running sequence first (decodes one token each, unfinished prefills a chunk of what is left of
max_num_batched_tokens), then admits waiting ones in order of arrival. Where blocks run out the last admitted is
preempted and recomputed later. A decoding sequence is touched only when it needs a block or ends: steps in between
cost the same for one sequence as for 256.
May not know: HTTP, clocks, sensors. now_ns and the steps' real instants come in as arguments.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from engines.embedded.kvcache import BlockPool
from engines.embedded.power import Batch, StepModel
from engines.embedded.profiles import COMPONENTS, Profile
from engines.embedded.sequence import Chunk, Emission, Flight, Seq, plan_step
from engines.embedded.tokens import BlockHasher, output_key, plan_output, token_array
from engines.embedded.truth import Truth
from engines.embedded.types import EngineRequest, FinishReason, Limits, RequestStats, Step, TokenOut
from traces.errors import UserError
from traces.records import StepRecord, TruthRecord, TruthTotals


class EngineCore:
    """One replica. Order of calls: add/abort at any time; schedule -> complete, one step in flight at most."""

    def __init__(self, profile: Profile, limits: Limits, replica: int = 0) -> None:
        _check(limits)
        self.profile, self.limits, self.replica = profile, limits, replica
        blocks = limits.kv_blocks or profile.kv_blocks(limits.block_size, limits.tensor_parallel_size)
        self.kv = BlockPool(blocks, prefix_caching=limits.enable_prefix_caching)
        self.model = StepModel(
            profile,
            tensor_parallel=limits.tensor_parallel_size,
            replicas=limits.replicas,
            power_cap_w=limits.power_cap_w,
        )
        self.energy = Truth(self.model)
        self._hasher = BlockHasher(limits.block_size)
        self._seqs: dict[str, Seq] = {}
        self._done: dict[str, Seq] = {}
        self._waiting: deque[Seq] = deque()
        self._running: dict[Seq, None] = {}  # in order of admission
        self._prefilling: dict[Seq, None] = {}
        self._decoding: dict[Seq, None] = {}
        self._members: tuple[Seq, ...] | None = ()  # snapshot of _decoding; None when it changed
        self._context_offset = 0  # sum of offsets of the decoding: their context in step s is len x s - this
        self._due: list[dict[Seq, None]] = [{} for _ in range(limits.block_size)]
        self._ends: dict[int, list[Seq]] = {}
        self._flight: Flight | None = None
        self._changes = 0  # grows whenever blocks were freed or prompts computed: only then can the head's luck change
        self._stuck: tuple[Seq, int] | None = None
        self._left: list[str] = []
        self._last: StepRecord | None = None
        self._t_last_ns = 0  # end of the last completed step
        self.step_index = 0
        self.tokens_out = 0
        self.preemptions = 0
        self.throttled_ns = 0
        """busy time under a clock that the power cap or the board's own limit lowered"""
        self.busy_ns = 0

    # -- what it shows ------------------------------------------------------------------------------------------

    @property
    def gpus(self) -> int:
        """GPUs of the tensor-parallel group."""
        return self.limits.tensor_parallel_size

    @property
    def running(self) -> int:
        """Admitted sequences (prefilling or decoding)."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences not yet admitted, or preempted."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0..1."""
        return self.kv.usage

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output that this engine can hold: the server rejects what is longer."""
        return min(self.limits.max_model_len, self.profile.context_length, self.kv.total * self.limits.block_size)

    def stats(self, request_id: str) -> RequestStats:
        """Counts and instants of a request, running or ended. KeyError when unknown or forgotten."""
        seq = self._done.get(request_id) or self._seqs[request_id]
        return seq.stats(self.step_index, self._t_last_ns)

    def step_record(self, t_ns: int) -> StepRecord:
        """The last completed step as vLLM's iteration stream would show it at t_ns."""
        if self._last is None:
            raise ValueError("no step has completed yet")
        last = self._last
        return StepRecord(
            t_ns, last.running, last.waiting, last.kv_usage, last.num_ctx_requests, last.num_ctx_tokens,
            last.num_generation_requests, last.num_generation_tokens, last.prompt_tokens, last.cached_tokens,
            last.preempted, last.engine,
        )  # fmt: skip

    def truth(self, request_id: str) -> list[TruthRecord]:
        """True energy of a request, one record per component; final once the request has ended."""
        done = self._done.get(request_id)
        if done is not None and done.truth is not None:
            return done.truth
        return self.energy.figures(self._seqs[request_id].account, request_id)

    def totals(self, t_ns: int) -> list[TruthTotals]:
        """What the replica drew up to t_ns, one record per component."""
        return self.energy.totals(t_ns)

    def energy_uj(self, t_ns: int) -> dict[str, int]:
        """Cumulative true energy by domain at t_ns (up to 5 s back), idle included; hbm is inside gpu."""
        return {c: int(x) for c, x in zip(COMPONENTS, np.floor(self.energy.energy_j(t_ns) * 1e6 + 0.5))}

    # -- requests -----------------------------------------------------------------------------------------------

    def why_not(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why a request can never be served, None when it can."""
        if prompt_tokens < 1:
            return "the prompt is empty; send at least one token"
        if max_tokens < 1:
            return f"max_tokens is {max_tokens}; ask for at least one token"
        if prompt_tokens + max_tokens > self.max_model_len:
            return (
                f"prompt ({prompt_tokens} tokens) plus max_tokens ({max_tokens}) exceed what the engine holds "
                f"({self.max_model_len}); shorten the request"
            )
        return None

    def add(self, request: EngineRequest, now_ns: int) -> None:
        """Queue a request. UserError when it can never fit; ValueError when its id is in use."""
        if request.request_id in self._seqs or request.request_id in self._done:
            raise ValueError(f"request id {request.request_id!r} is in use")
        prompt = token_array(request.prompt)
        problem = self.why_not(len(prompt), request.max_tokens)
        if problem:
            raise UserError(f"request {request.request_id}: {problem}")
        profile = self.profile
        out, reason = plan_output(
            output_key(self.limits.seed, request),
            request,
            vocab_size=profile.vocab_size,
            eos_token_id=profile.eos_token_id,
            eos_mean_tokens=profile.eos_mean_tokens,
        )
        hashes: list[int] = []
        if self.limits.enable_prefix_caching:
            hashes = self._hasher.hashes(np.concatenate((prompt, out)), request.cache_salt)
        self.energy.idle_until(now_ns)
        seq = Seq(request.request_id, now_ns, len(prompt), out.tolist(), reason, hashes, self.energy.open())
        self._seqs[request.request_id] = seq
        self._waiting.append(seq)

    def abort(self, request_id: str, now_ns: int) -> None:
        """The client left. A sequence in the step in flight ends with that step; unknown ids are ignored."""
        seq = self._seqs.get(request_id)
        if seq is None or seq.aborted:
            return
        self.energy.idle_until(now_ns)
        seq.aborted = True
        if seq not in self._running:
            self._waiting.remove(seq)
            self._end(seq, "abort")
        elif self._flight is None:
            self._release(seq, self.step_index, self._t_last_ns)
            self._end(seq, "abort")
        else:
            self._left.append(request_id)

    def forget(self, request_id: str) -> None:
        """Drop what is kept of an ended request."""
        self._done.pop(request_id, None)

    # -- a step -------------------------------------------------------------------------------------------------

    def schedule(self, now_ns: int) -> Step | None:
        """Form the next batch; None when there is nothing to do."""
        if self._flight is not None:
            raise RuntimeError("a step is in flight: complete it first")
        self.energy.idle_until(now_ns)
        preempted = self._grow_decodes()
        chunks, more = self._continue_prefills()
        preempted += more
        if not preempted and self._waiting:
            self._admit(chunks, now_ns)
        if not chunks and not self._decoding:
            if self._running:
                raise RuntimeError("sequences run but none could be scheduled")
            return None
        if self._members is None:
            self._members = tuple(self._decoding)
        context = len(self._decoding) * self.step_index - self._context_offset
        batch = Batch(len(self._members), context, tuple((c.tokens, c.context) for c in chunks))
        cost = self.model.cost(batch, self.energy.celsius)
        step = plan_step(self.step_index, self.replica, self._members, chunks, cost)
        self._flight = Flight(step, batch, cost, self._members, chunks, preempted)
        self.preemptions += preempted
        self.energy.begin(cost, now_ns)
        return step

    def complete(self, step: Step, t_start_ns: int, t_end_ns: int) -> list[TokenOut]:
        """The step ran in [t_start_ns, t_end_ns]: what each sequence got, decodes first."""
        return self.advance(step, t_start_ns, t_end_ns).outputs()

    def advance(self, step: Step, t_start_ns: int, t_end_ns: int) -> Emission:
        """complete() without an object per token: see Emission."""
        flight = self._flight
        if flight is None or step is not flight.step:
            raise RuntimeError("complete() wants the step in flight")
        self._flight = None
        accounts = [chunk.seq.account for chunk in flight.chunks]
        self.energy.settle(flight.batch, flight.cost, accounts, self.step_index, t_start_ns, t_end_ns)
        self.busy_ns += t_end_ns - t_start_ns
        self.throttled_ns += (t_end_ns - t_start_ns) if step.throttled else 0
        finished: list[tuple[Seq, FinishReason]] = []
        emitted = Emission(self.step_index, t_end_ns, flight.members, [], finished)
        for seq in self._ends.pop(self.step_index, ()):
            if seq.end_step == self.step_index:
                self._finish(seq, t_end_ns, finished)
        for chunk in flight.chunks:
            self._prefilled(chunk, t_end_ns, emitted)
        for request_id in self._left:
            left = self._seqs.get(request_id)
            if left is not None:
                self._release(left, self.step_index, self._t_last_ns)
                self._end(left, "abort")
        self._left.clear()
        self._t_last_ns = t_end_ns
        self._record(flight, emitted, t_end_ns)
        self.tokens_out += len(emitted)
        self.step_index += 1
        return emitted

    # -- scheduling ---------------------------------------------------------------------------------------------

    def _grow_decodes(self) -> int:
        """A block for each decoding sequence whose last one is full; returns how many were preempted for it."""
        due = self._due[self.step_index % self.limits.block_size]
        if not due:
            return 0
        preempted = 0
        for seq in list(due):
            while seq in due and self.kv.free_blocks < 1:
                self._preempt()
                preempted += 1
            if seq in due:
                self._register(seq, self.step_index - seq.offset)
                seq.blocks += self.kv.allocate(1)
        return preempted

    def _continue_prefills(self) -> tuple[list[Chunk], int]:
        chunks: list[Chunk] = []
        preempted = 0
        budget = self.limits.max_num_batched_tokens - len(self._decoding)
        for seq in list(self._prefilling):
            tokens = min(seq.known - seq.computed, budget)
            if tokens < 1 or seq not in self._prefilling:
                continue
            need = self._blocks(seq.computed + tokens) - len(seq.blocks)
            while seq in self._prefilling and need > self.kv.free_blocks:
                self._preempt()
                preempted += 1
            if seq in self._prefilling:
                self._take(seq, tokens, need, chunks)
                budget -= tokens
        return chunks, preempted

    def _admit(self, chunks: list[Chunk], now_ns: int) -> None:
        limits = self.limits
        budget = limits.max_num_batched_tokens - len(self._decoding) - sum(c.tokens for c in chunks)
        while self._waiting and budget > 0 and len(self._running) < limits.max_num_seqs:
            seq = self._waiting[0]
            if self._stuck == (seq, self._changes):
                return
            # The last token is always computed: its logits are what the step is for.
            usable = (seq.known - 1) // limits.block_size
            hits = self.kv.lookup(seq.hashes[:usable]) if limits.enable_prefix_caching else 0
            cached = hits * limits.block_size
            tokens = min(seq.known - cached, budget)
            need = self._blocks(cached + tokens) - hits
            ids = self.kv.ids_of(seq.hashes[:hits]) if need <= self.kv.free_blocks else None
            if ids is None or need + self.kv.unreferenced(ids) > self.kv.free_blocks:
                self._stuck = (seq, self._changes)
                return
            self._waiting.popleft()
            self.kv.touch(ids)
            seq.admit(ids.tolist(), cached, now_ns)
            self._running[seq] = None
            self._prefilling[seq] = None
            self._take(seq, tokens, need, chunks)
            budget -= tokens

    def _take(self, seq: Seq, tokens: int, need: int, chunks: list[Chunk]) -> None:
        if need:
            seq.blocks += self.kv.allocate(need)
        chunks.append(Chunk(seq, tokens, seq.computed))
        self._changes += 1
        # As in vLLM, blocks count as cached when they are scheduled: a later sequence of the same step may use them.
        self._register(seq, seq.computed + tokens)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _register(self, seq: Seq, tokens: int) -> None:
        full = tokens // self.limits.block_size
        if full > seq.registered and self.limits.enable_prefix_caching:
            self.kv.register(seq.blocks[seq.registered : full], seq.hashes[seq.registered : full])
            seq.registered = full

    def _preempt(self) -> None:
        """Send the last admitted back to the head of the queue; it keeps its tokens and loses its blocks."""
        seq = next(reversed(self._running))
        self._release(seq, self.step_index, self._t_last_ns)
        seq.preempt()
        self._waiting.appendleft(seq)

    def _release(self, seq: Seq, steps: int, t_last_ns: int) -> None:
        """Take a sequence out of the batch and free its blocks; the steps before number `steps`,
        the last of which ended at t_last_ns, gave it tokens."""
        del self._running[seq]
        if seq in self._decoding:
            del self._decoding[seq]
            del self._due[seq.offset % self.limits.block_size][seq]
            self._members = None
            self._context_offset -= seq.offset
            seq.leave_decode(steps, t_last_ns)
            self.energy.leave_decode(seq.account)
        else:
            del self._prefilling[seq]
        self._register(seq, seq.computed)
        self.kv.free(seq.blocks)
        self._changes += 1
        seq.blocks = []

    # -- results ------------------------------------------------------------------------------------------------

    def _prefilled(self, chunk: Chunk, t_end_ns: int, emitted: Emission) -> None:
        seq = chunk.seq
        seq.computed += chunk.tokens
        if seq.computed < seq.known or seq.aborted:
            return
        del self._prefilling[seq]
        emitted.first.append((seq, seq.emitted))
        seq.first_token(t_end_ns, self.step_index)
        self._decoding[seq] = None
        self._members = None
        self._context_offset += seq.offset
        self._due[seq.offset % self.limits.block_size][seq] = None
        self.energy.join_decode(seq.account, seq.offset)
        if seq.end_step == self.step_index:
            self._finish(seq, t_end_ns, emitted.finished)
        else:
            self._ends.setdefault(seq.end_step, []).append(seq)

    def _finish(self, seq: Seq, t_end_ns: int, finished: list[tuple[Seq, FinishReason]]) -> None:
        if seq.aborted:
            return
        self._release(seq, self.step_index + 1, t_end_ns)
        finished.append((seq, seq.reason))
        self._end(seq, seq.reason)

    def _end(self, seq: Seq, reason: FinishReason) -> None:
        seq.finish_reason = reason
        del self._seqs[seq.request_id]
        self._done[seq.request_id] = seq
        seq.truth = self.energy.close(seq.account, seq.request_id)
        seq.hashes = []

    def _record(self, step: Flight, emitted: Emission, t_end_ns: int) -> None:
        firsts = [seq for seq, index in emitted.first if index == 0]
        self._last = StepRecord(
            t_ns=t_end_ns,
            running=len(self._running),
            waiting=len(self._waiting),
            kv_usage=self.kv.usage,
            num_ctx_requests=len(step.chunks),
            num_ctx_tokens=sum(c.tokens for c in step.chunks),
            num_generation_requests=len(step.members),
            num_generation_tokens=len(step.members),
            prompt_tokens=sum(seq.n_prompt for seq in firsts),
            cached_tokens=sum(seq.cached_tokens for seq in firsts),
            preempted=step.preempted,
            engine=self.replica,
        )


def _check(limits: Limits) -> None:
    """UserError names the first launch setting that no engine can run with."""
    for name in ("max_num_seqs", "max_model_len", "block_size", "tensor_parallel_size", "replicas"):
        if getattr(limits, name) < 1:
            raise UserError(f"{name} is {getattr(limits, name)}; give at least 1")
    for name in ("kv_blocks", "power_cap_w"):
        value = getattr(limits, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give at least 1, or leave it out")
    if limits.max_num_batched_tokens < limits.max_num_seqs:
        raise UserError(
            f"max_num_batched_tokens ({limits.max_num_batched_tokens}) is below max_num_seqs "
            f"({limits.max_num_seqs}): every running sequence needs a token per step; raise the first"
        )
