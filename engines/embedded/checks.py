"""What vLLM refuses before it looks at a prompt, in its words: types of members, ranges of sampling parameters.

Checked against a real vLLM 0.32 (docs/engines.md says where the lines differ). May not know: prompts, plans, replies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engines.embedded import errors

Problem = dict[str, Any]
_INTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "seed", "priority")
_FLOATS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_BOOLS = ("stream", "ignore_eos", "echo", "return_token_ids", "include_stop_str_in_output")
_TRUE = {"true": True, "1": True, "yes": True, "on": True, "y": True, "t": True}
_FALSE = {"false": False, "0": False, "no": False, "off": False, "n": False, "f": False}
_WORDS = _TRUE | _FALSE
_REQUIRED = {
    "chat": ("messages",),
    "messages": ("model", "messages", "max_tokens"),
    "responses": ("input",),
    "count": ("model", "messages"),
}
_MESSAGE_KINDS = ("Developer", "System", "User", "Assistant", "Tool", "Function")


def schema(api: str, body: dict[str, Any]) -> None:
    """Types of all members. Converts numeric strings and the like in place, as pydantic does. Raises ApiError."""
    size = {**body, "request_id": None} if api == "responses" else body
    problems = [
        errors.problem("missing", f"body.{name}", "Field required", size)
        for name in _REQUIRED.get(api, ())
        if name not in body
    ]
    problems += _members(body)
    if api == "messages" and isinstance(body.get("max_tokens"), int) and body["max_tokens"] < 1:
        text = "max_tokens must be positive"
        row = errors.problem("value_error", "body.max_tokens", f"Value error, {text}", body["max_tokens"])
        problems.append(row | {"ctx": {"error": ValueError(text)}})
    if "messages" in body:
        problems += _messages(api, body["messages"])
    problems += _xargs(body)
    if problems:
        raise errors.invalid(*problems)


def _members(body: dict[str, Any]) -> Iterator[Problem]:
    if not isinstance(body.get("model", ""), str | None):
        yield errors.problem("string_type", "body.model", "Input should be a valid string", body["model"])
    for names, convert in ((_INTS, _integer), (_FLOATS, _number), (_BOOLS, _boolean)):
        for name in names:
            if body.get(name) is not None:
                body[name], trouble = convert(body[name])
                if trouble is not None:
                    kind, text = trouble
                    yield errors.problem(kind, f"body.{name}", text, body[name])
    stop = body.get("stop")
    if stop is not None and not isinstance(stop, str | list):
        yield errors.problem("string_type", "body.stop", "Input should be a valid string", stop)
        yield errors.problem("list_type", "body.stop", "Input should be a valid list", stop)


Trouble = tuple[str, str] | None


def _integer(value: Any) -> tuple[Any, Trouble]:
    text = "Input should be a valid integer"
    if isinstance(value, float):
        if value.is_integer():
            return int(value), None
        return value, ("int_from_float", f"{text}, got a number with a fractional part")
    if isinstance(value, str):
        try:
            return int(value), None
        except ValueError:
            return value, ("int_parsing", f"{text}, unable to parse string as an integer")
    return (int(value), None) if isinstance(value, int) else (value, ("int_type", text))


def _number(value: Any) -> tuple[Any, Trouble]:
    text = "Input should be a valid number"
    if isinstance(value, int | float):
        return float(value), None
    if isinstance(value, str):
        try:
            return float(value), None
        except ValueError:
            return value, ("float_parsing", f"{text}, unable to parse string as a number")
    return value, ("float_type", text)


def _boolean(value: Any) -> tuple[Any, Trouble]:
    text = "Input should be a valid boolean"
    if isinstance(value, bool):
        return value, None
    if isinstance(value, int | float | str):
        found = _WORDS.get(str(value).lower())
        return (value, ("bool_parsing", f"{text}, unable to interpret input")) if found is None else (found, None)
    return value, ("bool_type", text)


def _messages(api: str, messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list):
        yield errors.problem("list_type", "body.messages", "Input should be a valid list", messages)
        return
    for i, message in enumerate(messages):
        if isinstance(message, dict):
            if "role" not in message:
                yield errors.problem("missing", f"body.messages.{i}.role", "Field required", message)
            continue
        kinds = [f"ChatCompletion{kind}MessageParam" for kind in _MESSAGE_KINDS] + ["CustomChatCompletionMessageParam"]
        for kind in kinds if api == "chat" else ():
            loc = f"body.messages.{i}.{kind}"
            yield errors.problem("dict_type", loc, "Input should be a valid dictionary", message)
        text = "Input should be a valid dictionary or object to extract fields from"
        loc = f"body.messages.{i}.Message" if api == "chat" else f"body.messages.{i}"
        yield errors.problem("model_attributes_type", loc, text, message)


def _xargs(body: dict[str, Any]) -> list[Problem]:
    given = body.get("vllm_xargs") or {}
    kinds = (("string_type", "string"), ("int_type", "integer"), ("float_type", "number"), ("list_type", "list"))
    return [
        errors.problem(kind, f"body.vllm_xargs.{key}", f"Input should be a valid {name}", value)
        for key, value in (given.items() if isinstance(given, dict) else ())
        if isinstance(value, dict)
        for kind, name in kinds
    ]


def prompt_ids(rows: list[Any]) -> None:
    """A prompt that begins like token ids but is none: the problems of each kind of prompt vLLM takes."""
    problems: list[Problem] = []
    for i, value in enumerate(rows):
        if isinstance(value, int) and value < 0:
            text = "Input should be greater than or equal to 0"
            problems.append(errors.problem("greater_than_equal", f"body.prompt.{i}", text, value) | {"ctx": {"ge": 0}})
        elif not isinstance(value, int):
            _, trouble = _integer(value)
            if trouble is not None:
                problems.append(errors.problem(trouble[0], f"body.prompt.{i}", trouble[1], value))
    if not problems:
        return
    shown = rows[:20]  # vLLM lists every element
    lists = [(i, v) for i, v in enumerate(shown) if not isinstance(v, list)]
    strings = [(i, v) for i, v in enumerate(shown) if not isinstance(v, str)]
    problems += [errors.problem("list_type", f"body.prompt.{i}", "Input should be a valid list", v) for i, v in lists]
    problems.append(errors.problem("string_type", "body.prompt", "Input should be a valid string", rows))
    for i, v in strings:
        problems.append(errors.problem("string_type", f"body.prompt.{i}", "Input should be a valid string", v))
    raise errors.invalid(*problems)


def prompt_kind(prompt: Any) -> None:
    """A prompt that is neither text nor a list."""
    if isinstance(prompt, str | list):
        return
    kinds = ("list", "list", "string", "list")
    rows = [errors.problem(f"{k}_type", "body.prompt", f"Input should be a valid {k}", prompt) for k in kinds]
    raise errors.invalid(*rows)


def sampling(body: dict[str, Any]) -> None:
    """Ranges of the sampling parameters. Raises ApiError."""
    if body.get("stream_options") is not None and not body.get("stream"):
        raise errors.about("Stream options can only be defined when `stream=True`.", "stream_options")
    if body.get("cache_salt") == "":
        raise errors.about("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if (n := body.get("n")) is not None and n < 1:
        raise errors.refused(f"n must be at least 1, got {n}.")
    for name in ("presence_penalty", "frequency_penalty"):
        if (value := body.get(name)) is not None and not -2 <= value <= 2:
            raise errors.refused(f"{name} must be in [-2, 2], got {value}.")
    if (heat := body.get("temperature")) is not None and heat < 0:
        raise errors.about(f"temperature must be non-negative, got {heat}.", "temperature", heat)
    if heat is not None and heat > 2:
        raise errors.about(f"temperature must be in [0, 2], got {heat}.", "temperature", heat)
    if (top_p := body.get("top_p")) is not None and not 0 < top_p <= 1:
        raise errors.about(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)


def tokens(body: dict[str, Any]) -> list[int]:
    """The ids of a /detokenize request; ids past the vocabulary are allowed, they have no text."""
    given = body["tokens"]
    if not isinstance(given, list):
        raise errors.invalid(errors.problem("list_type", "body.tokens", "Input should be a valid list", given))
    problems: list[Problem] = []
    out = []
    for i, value in enumerate(given):
        token, trouble = _integer(value)
        if trouble is not None:
            problems.append(errors.problem(trouble[0], f"body.tokens.{i}", trouble[1], value))
        elif token < 0:
            text = "Input should be greater than or equal to 0"
            problems.append(errors.problem("greater_than_equal", f"body.tokens.{i}", text, value) | {"ctx": {"ge": 0}})
        else:
            out.append(int(token))
    if problems:
        raise errors.invalid(*problems)
    return out
