"""Error bodies of the embedded engine, as vLLM words them. Each is an ApiError that the server turns into a reply.

Lives here: wording, shape, status. May not know: aiohttp, the engine.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


class ApiError(Exception):
    """A refusal on the wire: status and JSON body."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param
        self.semantic = kind != "Bad Request"
        """refused by meaning, not by schema: /v1/messages words these in Anthropic's shape"""

    def body(self, api: str | None = None) -> bytes:
        """The reply's bytes; api is that of the route."""
        if api == "messages" and self.semantic:
            return orjson.dumps({"type": "error", "error": {"type": self.kind, "message": self.message}})
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})


def refused(message: str, param: str | None = None) -> ApiError:
    """400: understood and not possible."""
    return ApiError(400, message, "BadRequestError", param)


def about(message: str, param: str, value: object = None) -> ApiError:
    """400 with the parameter named in the sentence, as vLLM does."""
    shown = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
    return refused(f"{message} ({shown})", param)


def unknown_model(model: str, served: str) -> ApiError:
    """404."""
    return ApiError(404, f"The model `{model}` does not exist. Valid aliases: {served}.", "NotFoundError", "model")


def no_response(response_id: str) -> ApiError:
    """404 of an earlier response."""
    return ApiError(404, f"Response with id '{response_id}' not found.", "invalid_request_error", "response_id")


def invalid(*problems: dict[str, Any]) -> ApiError:
    """400 by schema: one line per problem."""
    count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:"
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ApiError(400, count + lines, "Bad Request", problems[0]["loc"])


def problem(kind: str, loc: str, msg: str, value: object) -> dict[str, Any]:
    """One validation problem; containers are shown by their size, never by their content."""
    return {"type": kind, "loc": loc, "msg": msg, "input": shown(value)}


def shown(value: object) -> object:
    """A value as an error may show it."""
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def missing(field: str, body: dict[str, Any]) -> ApiError:
    """A required field is not there."""
    return invalid(problem("missing", f"body.{field}", "Field required", body))


def bad_json(raw: bytes) -> ApiError:
    """The body is not JSON."""
    if not raw:
        return invalid(problem("missing", "body", "Field required", None))
    try:
        json.loads(raw)
        at, why = 0, "Invalid JSON"
    except json.JSONDecodeError as error:
        at, why = error.pos, error.msg
    return invalid({**problem("json_invalid", f"body.{at}", "JSON decode error", {}), "ctx": {"error": why}})


def not_an_object(value: object) -> ApiError:
    """The body is JSON, but no object."""
    text = "Input should be a valid dictionary or object to extract fields from"
    return invalid(problem("model_attributes_type", "body", text, value))


def wrong_media_type() -> ApiError:
    """Only application/json is taken."""
    text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return ApiError(400, text, "Bad Request")


def too_long(limit: int, tokens: int, *, exact: bool) -> ApiError:
    """The prompt alone fills the context. Where vLLM tokenizes text it stops one past the limit ("at least")."""
    count = f"{tokens}" if exact else f"at least {limit + 1}"
    value = tokens if exact else limit + 1
    return about(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains {count} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
        "input_tokens",
        value,
    )
