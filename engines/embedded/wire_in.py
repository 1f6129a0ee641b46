"""Request bodies of the four dialects into one plan: what vLLM checks, in its order and with its words.

Lives here: defaults, limits, validation, prompts to token ids. May not know: sockets, the scheduler, replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import orjson
from numpy.typing import NDArray

from engines.embedded import errors
from engines.embedded.tokenizer import Tokenizer

MAX_N = 16_384


@dataclass(frozen=True, slots=True)
class Tool:
    """The tool call that the reply will be."""

    name: str
    arguments: dict[str, Any]


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


_INT = ("int_parsing", "Input should be a valid integer, unable to parse string as an integer", "int_type")
_FLOAT = ("float_parsing", "Input should be a valid number, unable to parse string as a number", "float_type")
_NUMBERS: dict[str, tuple[tuple[str, str, str], type]] = {
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "seed", "priority"), (_INT, int)
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), (_FLOAT, float)
    ),
}


def number_problems(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Fields that must be numbers and are not; numeric strings are converted in place, as pydantic does."""
    problems = []
    for name, ((parsing, text, kind), convert) in _NUMBERS.items():
        value = body.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            continue
        if isinstance(value, float) and (convert is float or value.is_integer()):
            body[name] = convert(value)
            continue
        if isinstance(value, str):
            try:
                body[name] = convert(value)
            except ValueError:
                problems.append(errors.problem(parsing, f"body.{name}", text, value))
            continue
        short = text.split(",")[0]
        problems.append(errors.problem(kind, f"body.{name}", short, value))
    return problems


def _xargs_problems(body: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = (("string_type", "string"), ("int_type", "integer"), ("float_type", "number"), ("list_type", "list"))
    return [
        errors.problem(kind, f"body.vllm_xargs.{key}", f"Input should be a valid {name}", value)
        for key, value in (body.get("vllm_xargs") or {}).items()
        if isinstance(value, dict)
        for kind, name in kinds
    ]


def parse(api: str, body: dict[str, Any], context: Context) -> Plan:
    """One request body as a plan. Raises errors.ApiError."""
    problems = number_problems(body) + _xargs_problems(body)
    if problems:
        raise errors.invalid(*problems)
    required = {"chat": "messages", "messages": "messages", "responses": "input", "completions": "prompt"}[api]
    if required not in body:
        raise errors.missing(required, body)
    if api == "messages" and "max_tokens" not in body:
        raise errors.missing("max_tokens", body)
    model = body.get("model")
    if model is not None and model != context.model:
        raise errors.unknown_model(str(model), context.model)
    stream = bool(body.get("stream"))
    if body.get("stream_options") is not None and not stream:
        raise errors.about("Stream options can only be defined when `stream=True`.", "stream_options")
    if body.get("cache_salt") == "":
        raise errors.about("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        raise errors.about(
            f"temperature must be non-negative, got {float(temperature)}.", "temperature", float(temperature)
        )
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
    if not 1 <= plan.n <= MAX_N:
        raise errors.about(f"n must be between 1 and {MAX_N}, got {plan.n}.", "n", plan.n)
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
        return _completion_prompts(body["prompt"], context)
    turns = {"chat": chat_turns, "responses": response_turns, "messages": message_turns}[api](body)
    return [np.array(context.tokenizer.chat(turns), dtype=np.int64)], False


def _completion_prompts(prompt: Any, context: Context) -> tuple[list[NDArray[np.int64]], bool]:
    tokenizer = context.tokenizer
    if isinstance(prompt, str):
        return [_not_empty(np.array(tokenizer.encode(prompt), dtype=np.int64))], False
    if not isinstance(prompt, list):
        raise errors.invalid(
            errors.problem("string_type", "body.prompt", "Input should be a valid string", prompt),
            errors.problem("list_type", "body.prompt", "Input should be a valid list", prompt),
        )
    if not prompt:
        raise errors.refused("You must pass at least one prompt")
    if isinstance(prompt[0], str):
        return [_not_empty(np.array(tokenizer.encode(str(text)), dtype=np.int64)) for text in prompt], False
    rows = prompt if isinstance(prompt[0], list) else [prompt]
    out = []
    for row in rows:
        try:
            array, bad = tokenizer.check(row)
        except (ValueError, TypeError, OverflowError):
            raise errors.invalid(
                errors.problem("int_type", "body.prompt", "Input should be a valid integer", row)
            ) from None
        if array is None or array.ndim != 1:
            raise errors.refused(f"Token id {bad} is out of vocabulary")
        out.append(_not_empty(array))
    return out, True


def _not_empty(prompt: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(prompt):
        raise errors.refused("The decoder prompt cannot be empty")
    return prompt


def chat_turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a chat request; tools come first, as templates put them."""
    turns = [(str(m.get("role", "user")), _chat_text(m)) for m in _objects(body["messages"], "messages")]
    return _with_tools(body, turns)


def _with_tools(body: dict[str, Any], turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    tools = body.get("tools")
    return [("system", _dump(tools)), *turns] if tools else turns


def _dump(value: Any) -> str:
    return orjson.dumps(value).decode()


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise errors.invalid(errors.problem("list_type", f"body.{name}", "Input should be a valid list", value))
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise errors.invalid(
                errors.problem("dict_type", f"body.{name}.{i}", "Input should be a valid dictionary", item)
            )
    return value


def _chat_text(message: dict[str, Any]) -> str:
    text = content_text(message.get("content"))
    calls = message.get("tool_calls")
    return text + _dump(calls) if calls else text


def content_text(content: Any) -> str:
    """Text of a content member: a string, or parts with a text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    return ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        text = part.get("text")
        return text if isinstance(text, str) else _dump({k: v for k, v in part.items() if k != "cache_control"})
    return ""


def response_turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a Responses request; `_history` (set by the server) holds the earlier turns it continues."""
    given = body["input"]
    turns: list[tuple[str, str]] = list(body.get("_history") or ())
    if body.get("instructions"):
        turns.insert(0, ("system", str(body["instructions"])))
    if isinstance(given, str):
        turns.append(("user", given))
    else:
        for item in _objects(given, "input"):
            text = content_text(item["content"]) if "content" in item else _dump(item)
            turns.append((str(item.get("role", "tool")), text))
    return _with_tools(body, turns)


def message_turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of an Anthropic request."""
    turns = [
        (str(m.get("role", "user")), content_text(m.get("content"))) for m in _objects(body["messages"], "messages")
    ]
    if body.get("system"):
        turns.insert(0, ("system", content_text(body["system"])))
    return _with_tools(body, turns)


# ---------------------------------------------------------------------------------------------- tools


def choose_tool(api: str, body: dict[str, Any]) -> Tool | None:
    """The tool a reply calls: the named one; the first where a call is required, or (auto) until a result is there."""
    tools = [_function(tool) for tool in body.get("tools") or () if isinstance(tool, dict)]
    tools = [tool for tool in tools if tool.get("name")]
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none" or choice == {"type": "none"}:
        return None
    name = choice.get("name") or (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    forced = name is not None or choice == "required" or choice == {"type": "any"}
    if not forced and _has_result(api, body):
        return None
    chosen = next((tool for tool in tools if tool["name"] == name), None) if name else tools[0]
    if chosen is None:
        raise errors.refused(f"The tool specified in `tool_choice` does not match any of the specified `tools`: {name}")
    return Tool(str(chosen["name"]), arguments(chosen.get("parameters") or {}))


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    inner = tool.get("function")
    if isinstance(inner, dict):
        return inner
    return {"name": tool.get("name"), "parameters": tool.get("parameters") or tool.get("input_schema")}


def _has_result(api: str, body: dict[str, Any]) -> bool:
    """The conversation already ends in a tool's result: an agent's next turn answers."""
    items = body["input"] if api == "responses" else body["messages"]
    if not isinstance(items, list) or not items:
        return False
    last = items[-1]
    if last.get("role") == "tool" or last.get("type") == "function_call_output":
        return True
    content = last.get("content")
    return isinstance(content, list) and any(isinstance(p, dict) and p.get("type") == "tool_result" for p in content)


_SAMPLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "integer": lambda schema: 1,
    "number": lambda schema: 1.5,
    "boolean": lambda schema: True,
    "array": lambda schema: [sample(schema.get("items") or {})],
    "object": lambda schema: arguments(schema),
    "null": lambda schema: None,
}


def sample(schema: dict[str, Any]) -> Any:
    """A value that fits a JSON schema, the simplest there is."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return _SAMPLES[str(kind)](schema) if str(kind) in _SAMPLES else "bakedo"


def arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a tool: its required properties, or all where none is marked."""
    properties: dict[str, Any] = schema.get("properties") or {}
    names: Sequence[str] = schema.get("required") or list(properties)
    return {name: sample(properties.get(name) or {}) for name in names}
