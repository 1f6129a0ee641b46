"""The vocabulary between the pure engine core and its shells (HTTP server, virtual driver). Values only.

One engine step: `core.schedule(now_ns)` admits waiting sequences, forms a batch and says how long the step takes;
the shell waits; `core.complete(step, t_start_ns, t_end_ns)` with the instants as they really were returns what each
sequence got. Truth (true joules) is settled per step from those real instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate. prompt: token ids (numpy int array or list); lengths are in tokens."""

    request_id: str
    prompt: object
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    cache_salt: str | None = None
    seed: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SeqWork:
    """What one sequence did in one step."""

    request_id: str
    prefill_tokens: int
    """prompt tokens computed in this step (0 while decoding); recomputation after preemption counts here too"""
    decode_tokens: int
    context: int
    """tokens of context present at the start of the step"""


@dataclass(frozen=True, slots=True)
class Step:
    """A scheduled step: the batch and the model's duration at the present clock."""

    index: int
    replica: int
    duration_ns: int
    work: Sequence[SeqWork]
    """decodes first, then prefill chunks; made only when read (an hour of replay has millions)"""
    clock: float
    """SM clock as a share of the maximum, under the power cap"""
    throttled: bool = False
    """the power cap (or the board's own limit) lowered the clock of this step"""


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One sequence's result of one step: the token sampled (None while prefilling) and the end, if it came."""

    request_id: str
    token: int | None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class RequestStats:
    """Given with the end of a request; the embedded server turns it into usage and per-request metrics."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    t_arrival_ns: int
    t_scheduled_ns: int | None
    t_first_token_ns: int | None
    t_last_token_ns: int | None
    preemptions: int = 0
    draft_tokens: int | None = None
    """draft tokens verified for it, and those accepted; None where the engine does not speculate"""
    accepted_tokens: int | None = None
    spec_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Launch settings of the embedded engine, named as vLLM's flags."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131_072
    block_size: int = 16
    kv_blocks: int | None = None
    """None: what the profile's memory leaves"""
    enable_prefix_caching: bool = True
    tensor_parallel_size: int = 1
    replicas: int = 1
    power_cap_w: int | None = None
    num_speculative_tokens: int = 0
    """draft tokens that each decoding sequence verifies in each step; 0: no speculative decoding"""
    acceptance: float = 0.5
    """probability that a draft token is accepted, where those before it were: each request draws once how many of its
    drafts are accepted in every step"""
    seed: int = 0
    served_model_name: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
