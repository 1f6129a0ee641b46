"""The pure engine: continuous batching as vLLM V1 schedules it, over the step model and the block pool.

The scheduler says whom a step serves, the step model what it takes, the truth who caused it; here they meet, and each
request's tokens and instants come out.
May not know: HTTP, clocks, sensors. now_ns and the steps' real instants come in as arguments.
"""

from __future__ import annotations

import numpy as np

from engines.embedded.kvcache import BlockPool
from engines.embedded.power import Batch, StepModel
from engines.embedded.profiles import COMPONENTS, Profile
from engines.embedded.scheduler import Scheduler
from engines.embedded.sequence import Chunk, Emission, Flight, Seq, plan_step
from engines.embedded.tokens import BlockHasher, accepted_drafts, output_key, plan_output, token_array
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
        self._scheduler = Scheduler(limits, self.kv, self._left_decode)
        self._flight: Flight | None = None
        self._left: list[str] = []
        self._last: StepRecord | None = None
        self.tokens_out = 0
        self.preemptions = 0
        self.throttled_ns = 0
        """busy time under a clock that the power cap or the board's own limit lowered"""
        self.busy_ns = 0

    # -- what it shows ------------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int:
        """Number of the next step to complete."""
        return self._scheduler.step_index

    @property
    def gpus(self) -> int:
        """GPUs of the tensor-parallel group."""
        return self.limits.tensor_parallel_size

    @property
    def running(self) -> int:
        """Admitted sequences (prefilling or decoding)."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences not yet admitted, or preempted."""
        return len(self._scheduler.waiting)

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
        return seq.stats(self.step_index, self._scheduler.t_last_ns, self.limits.num_speculative_tokens)

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
        profile, key = self.profile, output_key(self.limits.seed, request)
        out, reason = plan_output(
            key,
            request,
            vocab_size=profile.vocab_size,
            eos_token_id=profile.eos_token_id,
            eos_mean_tokens=profile.eos_mean_tokens,
        )
        hashes: list[int] = []
        if self.limits.enable_prefix_caching:
            hashes = self._hasher.hashes(np.concatenate((prompt, out)), request.cache_salt)
        self.energy.idle_until(now_ns)
        pace = 1 + accepted_drafts(key, self.limits.num_speculative_tokens, self.limits.acceptance)
        account = self.energy.open()
        seq = Seq(request.request_id, now_ns, len(prompt), out.tolist(), reason, hashes, account, pace)
        self._seqs[request.request_id] = seq
        self._scheduler.waiting.append(seq)

    def abort(self, request_id: str, now_ns: int) -> None:
        """The client left. A sequence in the step in flight ends with that step; unknown ids are ignored."""
        seq = self._seqs.get(request_id)
        if seq is None or seq.aborted:
            return
        self.energy.idle_until(now_ns)
        seq.aborted = True
        if seq not in self._scheduler.running:
            self._scheduler.waiting.remove(seq)
            self._end(seq, "abort")
        elif self._flight is None:
            self._scheduler.release(seq, self.step_index, self._scheduler.t_last_ns)
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
        plan = self._scheduler.plan(now_ns)
        if plan is None:
            return None
        chunks, width = tuple((c.tokens, c.context) for c in plan.chunks), self._scheduler.width
        batch = Batch(len(plan.members), plan.context, chunks, width)
        cost = self.model.cost(batch, self.energy.celsius)
        step = plan_step(self.step_index, self.replica, plan.members, plan.chunks, cost, width)
        self._flight = Flight(step, batch, cost, plan.members, plan.chunks, plan.preempted)
        self.preemptions += plan.preempted
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
        emitted = Emission(self.step_index, t_end_ns, flight.members, [], finished, self._scheduler.width)
        for seq in self._scheduler.ending():
            self._finish(seq, t_end_ns, finished)
        for chunk in flight.chunks:
            self._prefilled(chunk, t_end_ns, emitted)
        for request_id in self._left:
            left = self._seqs.get(request_id)
            if left is not None:
                self._scheduler.release(left, self.step_index, self._scheduler.t_last_ns)
                self._end(left, "abort")
        self._left.clear()
        self._record(flight, emitted, t_end_ns)
        self.tokens_out += len(emitted)
        self._scheduler.finish_step(t_end_ns)
        return emitted

    # -- results ------------------------------------------------------------------------------------------------

    def _prefilled(self, chunk: Chunk, t_end_ns: int, emitted: Emission) -> None:
        seq = chunk.seq
        seq.computed += chunk.tokens
        if seq.computed < seq.known or seq.aborted:
            return
        emitted.first.append((seq, seq.emitted))
        self._scheduler.join_decode(seq, t_end_ns)
        self.energy.join_decode(seq.account, seq.offset, seq.pace)
        if seq.end_step == self.step_index:
            self._finish(seq, t_end_ns, emitted.finished)

    def _left_decode(self, seq: Seq) -> None:
        self.energy.leave_decode(seq.account)

    def _finish(self, seq: Seq, t_end_ns: int, finished: list[tuple[Seq, FinishReason]]) -> None:
        if seq.aborted:
            return
        self._scheduler.release(seq, self.step_index + 1, t_end_ns)
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
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_usage=self.kv.usage,
            num_ctx_requests=len(step.chunks),
            num_ctx_tokens=sum(c.tokens for c in step.chunks),
            num_generation_requests=len(step.members),
            num_generation_tokens=len(step.members) * self._scheduler.width,
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
    if limits.num_speculative_tokens < 0 or not 0 <= limits.acceptance <= 1:
        raise UserError(
            f"num_speculative_tokens is {limits.num_speculative_tokens}, acceptance {limits.acceptance}: "
            "give 0 or more, and a share from 0 to 1"
        )
    most = limits.max_num_seqs * (1 + limits.num_speculative_tokens)
    if limits.max_num_batched_tokens < most:
        drafts = f" x {1 + limits.num_speculative_tokens} (one and its drafts)" if limits.num_speculative_tokens else ""
        raise UserError(
            f"max_num_batched_tokens ({limits.max_num_batched_tokens}) is below max_num_seqs "
            f"({limits.max_num_seqs}{drafts}): every running sequence needs a token per step; raise the first"
        )
