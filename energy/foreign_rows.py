"""Fields of JSON rows of a recording, checked one by one: what each must be, and one sentence where it is not.

Numbers that a tool wrote as 12.0 are whole, names that it wrote as numbers are names. May not know: what rows mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from energy.foreign_text import LARGEST
from traces.errors import UserError

LAYOUT = "docs/attribution.md has the layout"


class _Wrong(ValueError):
    """What the field needs to be."""


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        raise _Wrong("a number")
    return value


def _whole(value: Any) -> int:
    number = _number(value)
    if number != number // 1:
        raise _Wrong("a whole number")
    return int(number)


def _time(value: Any) -> int:
    return round(_number(value))


def _count(value: Any) -> int:
    if (number := _whole(value)) < 0:
        raise _Wrong("a whole number, 0 or more")
    return number


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Wrong("a name")
    return str(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong("an object")
    return value


def _gaps(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong("a list of numbers")
    for one in value:
        _number(one)
    return value


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _Wrong("a list")
    return value


Spec = dict[str, tuple[Callable[[Any], Any], bool]]
"""field, dotted where inside another -> (check, needed)"""
REQUEST: Spec = {
    "id": (_name, True), "t_send_ns": (_time, True), "t_end_ns": (_time, False), "t_first_ns": (_time, False),
    "token_dt_us": (_gaps, False), "n_in": (_count, False), "n_out": (_count, False), "status": (_whole, False),
    "deps": (_list, False), **dict.fromkeys(("workflow", "node", "agent", "kind", "phase", "engine"), (_name, False)),
    "usage": (_object, False), "usage.prompt_tokens": (_count, False), "usage.completion_tokens": (_count, False),
    "usage.prompt_tokens_details": (_object, False), "usage.prompt_tokens_details.cached_tokens": (_count, False),
    "metrics": (_object, False),
    **{f"metrics.{n}_ms": (_number, False) for n in ("queue_time", "time_to_first_token", "generation_time")},
}  # fmt: skip
COUNTS = ("num_ctx_requests", "num_ctx_tokens", "num_generation_requests", "num_generation_tokens")
STEP: Spec = {
    "t_ns": (_time, True), "run": (_count, False), "wait": (_count, False), "kv": (_number, False),
    "prompt": (_count, False), "cached": (_count, False), "preempted": (_count, False), "engine": (_count, False),
}  # fmt: skip
ITERATION: Spec = dict.fromkeys(COUNTS, (_count, True))


def checked(row: dict[str, Any], spec: Spec, where: str) -> dict[str, Any]:
    """The row with its fields as the spec has them; fields it does not name are kept. UserError with field and value of
    the first that is wrong."""
    out = dict(row)
    for field, (check, needed) in spec.items():
        *path, last = field.split(".")
        inside: Any = out
        for name in path:
            inside = inside.get(name) if inside is not None else None
        if inside is None or (inside.get(last) is None and not needed):
            continue
        if inside.get(last) is None:
            raise UserError(f"{where}: field {field!r} is missing; {LAYOUT}")
        try:
            inside[last] = check(inside[last])
        except _Wrong as wrong:
            value = repr(inside[last])
            said = value if len(value) <= 60 else value[:57] + "..."
            raise UserError(f"{where}: field {field!r} is {said}, needs {wrong}; {LAYOUT}") from wrong
    return out
