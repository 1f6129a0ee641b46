"""Request bodies of the four dialects into one plan: what vLLM checks, in its order and with its words.

Lives here: defaults, limits, validation, prompts to token ids. May not know: sockets, the scheduler, replies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from engines.embedded import checks, errors
from engines.embedded.tokenizer import Tokenizer
from engines.embedded.turns import Tool, chat_turns, choose_tool, message_turns, response_turns

MAX_N = 16_384


@dataclass(slots=True)
class Plan:
    """What to generate and how to word it."""

    api: str
    body: dict[str, Any]
    prompts: list[NDArray[np.int64]]
    max_tokens: list[int]
    """per prompt"""
    model: str
    stream: bool = False
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    cache_salt: str | None = None
    seeds: list[int | None] = field(default_factory=list)
    """per prompt: set where the output must not depend on the request's id"""
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    echo: bool = False
    tool: Tool | None = None
    wire_id: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What the checks need to know of the engine."""

    model: str
    max_model_len: int
    tokenizer: Tokenizer
    force_usage: bool = False


def parse(api: str, body: dict[str, Any], context: Context) -> Plan:
    """One request body as a plan. Raises errors.ApiError."""
    checks.schema(api, body)
    model = body.get("model")
    if model is not None and model != context.model:
        raise errors.unknown_model(str(model), context.model)
    checks.sampling(body)
    stream = bool(body.get("stream"))
    prompts, exact = _prompts(api, body, context)
    plan = Plan(api, body, prompts, [], model or context.model, stream=stream)
    plan.max_tokens = [_room(api, body, len(prompt), context, exact=exact) for prompt in prompts]
    _sampling(plan, body)
    _options(plan, body, context)
    if api in ("chat", "responses", "messages"):
        plan.tool = choose_tool(api, body)
    return plan


def _sampling(plan: Plan, body: dict[str, Any]) -> None:
    plan.min_tokens = int(body.get("min_tokens") or 0)
    smallest = min(plan.max_tokens)
    if plan.min_tokens < 0:
        raise errors.refused(f"min_tokens must be greater than or equal to 0, got {plan.min_tokens}.")
    if plan.min_tokens > smallest:
        raise errors.refused(f"min_tokens must be less than or equal to max_tokens={smallest}, got {plan.min_tokens}.")
    plan.ignore_eos = bool(body.get("ignore_eos"))
    plan.n = int(body.get("n") or 1)
    if plan.n > MAX_N:
        raise errors.about(f"n must be at most {MAX_N}, got {plan.n}.", "n", plan.n)
    stop = body.get("stop") or body.get("stop_sequences") or ()
    plan.stop = (stop,) if isinstance(stop, str) else tuple(map(str, stop))
    salt = body.get("cache_salt")
    plan.cache_salt = None if salt is None else str(salt)
    seed = body.get("seed")
    fixed = seed is not None or body.get("temperature") == 0
    # A seeded or greedy request says the same to the same prompt, whatever its id.
    plan.seeds = [crc32(prompt.tobytes(), int(seed or 0) & 0xFFFF_FFFF) if fixed else None for prompt in plan.prompts]


def _options(plan: Plan, body: dict[str, Any], context: Context) -> None:
    options = body.get("stream_options") or {}
    plan.include_usage = bool(options.get("include_usage")) or context.force_usage
    plan.continuous_usage = plan.include_usage and bool(options.get("continuous_usage_stats"))
    plan.return_token_ids = bool(body.get("return_token_ids"))
    plan.echo = bool(body.get("echo")) and plan.api == "completions"
    wire_id = body.get("request_id")
    plan.wire_id = str(wire_id) if wire_id else None


def _room(api: str, body: dict[str, Any], prompt: int, context: Context, *, exact: bool) -> int:
    """Tokens that may be generated: what was asked for, clipped to what the context leaves."""
    limit = context.max_model_len
    if prompt > limit:
        raise errors.too_long(limit, prompt, exact=exact)
    names = {"chat": ("max_completion_tokens", "max_tokens"), "responses": ("max_output_tokens",)}
    asked = next((body[name] for name in names.get(api, ("max_tokens",)) if body.get(name) is not None), None)
    if asked is None and api == "completions":
        asked = 16
    left = limit - prompt
    tokens = left if asked is None else min(int(asked), left)
    if tokens < 1:
        raise errors.about(f"max_tokens must be at least 1, got {tokens}.", "max_tokens", tokens)
    return tokens


# ---------------------------------------------------------------------------------------------- prompts


def _prompts(api: str, body: dict[str, Any], context: Context) -> tuple[list[NDArray[np.int64]], bool]:
    """Token ids per prompt; whether their number is exact for vLLM too (ids were sent)."""
    if api == "completions":
        return _completion_prompts(body.get("prompt"), context)
    talk = {"chat": chat_turns, "responses": response_turns, "messages": message_turns}[api](body)
    if not talk:
        raise errors.refused("Cannot apply chat template to an empty conversation. Provide at least one message.")
    return [np.array(context.tokenizer.chat(talk), dtype=np.int64)], False


def _completion_prompts(prompt: Any, context: Context) -> tuple[list[NDArray[np.int64]], bool]:
    tokenizer = context.tokenizer
    if prompt is None or prompt == "":
        raise errors.about("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    checks.prompt_kind(prompt)
    if isinstance(prompt, str):
        return [np.array(tokenizer.encode(prompt), dtype=np.int64)], False
    if not prompt:
        raise errors.refused("You must pass at least one prompt")
    if all(isinstance(text, str) for text in prompt):
        return [_not_empty(np.array(tokenizer.encode(text), dtype=np.int64)) for text in prompt], False
    nested = isinstance(prompt[0], list)
    rows = prompt if nested else [prompt]
    return [_not_empty(_ids(row, tokenizer)) for row in rows], True


def _ids(row: Any, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """One prompt of token ids."""
    try:
        array = np.asarray(row, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        array = None
    if array is None or array.ndim != 1 or (len(array) and array.min() < 0):
        checks.prompt_ids(row if isinstance(row, list) else [row])
        raise errors.invalid(errors.problem("int_type", "body.prompt", "Input should be a valid integer", row))
    bad = array[array >= tokenizer.limit]
    if len(bad):
        raise errors.refused(f"Token id {bad[0]} is out of vocabulary")
    return array


def _not_empty(prompt: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(prompt):
        raise errors.refused("The decoder prompt cannot be empty")
    return prompt
