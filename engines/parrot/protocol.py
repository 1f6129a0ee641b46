"""Parrot's public API as values: bodies in, parsed calls or the reason against them out.

Lives here: paths, templates, parameters, and which bodies the server itself refuses, in which words. May not know:
sockets, clocks, who produced what (lineage), what would hang or kill it (hazards), scheduling (serve). Facts after the
protocol as observed on ParrotServe `main`; docs/parrot.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

Criteria = Literal["latency", "throughput"]
CRITERIA = ("latency", "throughput")
MODEL_TYPES = ("token_id", "text")
SESSION, CALL, NATIVE, VAR = "/v1/session", "/v1/semantic_call", "/v1/py_native_call", "/v1/semantic_var"
SESSION_AUTH = "1"
"""what every session is given; never checked by the server"""
DEFAULT_MAX_GEN = 512
LATENCY_TASKS = 4
"""a latency task goes only to an engine with fewer tasks than this, and caps it there while it runs"""
MARK = "joulegraph:"
"""what begins the stop string that names a call: see `mark`"""
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_]*)\}\}")
_PARAMETER_KEYS = {"name", "is_output", "var_id", "value", "sampling_config"}
_SAMPLING_KEYS = {
    "temperature", "top_p", "max_gen_length", "ignore_tokenizer_eos", "stop_token_ids", "stop_str", "presence_penalty",
    "frequency_penalty", "n", "best_of", "logit_bias", "repetition_penalty", "length_penalty",
}  # fmt: skip
RouteKind = Literal["session_open", "session_close", "call", "native", "var_new", "var_set", "var_get", "other"]


@dataclass(frozen=True, slots=True)
class Route:
    """Which operation a request is, and the id in its path (session or variable)."""

    kind: RouteKind
    name: str = ""


def route(method: str, path: str) -> Route:
    """The operation of a request line. `path` without query; one trailing slash is what the server redirects."""
    path = path[:-1] if path.endswith("/") and len(path) > 1 else path
    match (method, path):
        case ("POST", "/v1/session"):
            return Route("session_open")
        case ("POST", "/v1/semantic_call"):
            return Route("call")
        case ("POST", "/v1/py_native_call"):
            return Route("native")
        case ("POST", "/v1/semantic_var"):
            return Route("var_new")
    head, _, name = path.rpartition("/")
    match (method, head):
        case ("DELETE", "/v1/session"):
            return Route("session_close", name)
        case ("POST", "/v1/semantic_var"):
            return Route("var_set", name)
        case ("GET", "/v1/semantic_var"):
            return Route("var_get", name)
    return Route("other")


@dataclass(frozen=True, slots=True)
class Fault:
    """A body the server refuses: `user` is answered as JSON with the error's type and text, else as bare text."""

    text: str
    user: str | None = None
    """Python type the server names, e.g. ValueError; None: 500 "Internal Server Error" """

    def body(self) -> tuple[str, bytes]:
        """Content type and body of the 500."""
        if self.user is None:
            return "text/plain; charset=utf-8", b"Internal Server Error"
        error = f"ParrotError(type=<class '{self.user}'>, msg={self.text})"
        return "application/json", orjson.dumps({"error": error, "traceback": ""})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One placeholder's filling. An input has a var_id or a value, an output neither."""

    name: str
    is_output: bool
    var_id: str | None = None
    value: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One semantic call as submitted. `parts` are the template's pieces in order: constant text or parameters."""

    session_id: int
    parts: tuple[str | Parameter, ...]
    func_name: str | None = None
    models: tuple[str, ...] = ()
    model_type: str = "token_id"
    cache_prefix: bool = True
    criteria: Criteria | None = None
    fuse_fill: bool = False

    @property
    def parameters(self) -> list[Parameter]:
        """In template order."""
        return [p for p in self.parts if isinstance(p, Parameter)]

    @property
    def outputs(self) -> list[Parameter]:
        """One for a call that can run."""
        return [p for p in self.parameters if p.is_output]

    @property
    def max_gen_length(self) -> int:
        """Tokens of the output at most."""
        value = self.outputs[0].sampling.get("max_gen_length") if self.outputs else None
        return value if isinstance(value, int) and value > 0 else DEFAULT_MAX_GEN

    @property
    def ignore_eos(self) -> bool:
        """Whether the output has exactly max_gen_length tokens."""
        return bool(self.outputs and self.outputs[0].sampling.get("ignore_tokenizer_eos"))


def parse_json(body: bytes) -> dict[str, Any] | None:
    """A request or reply body as an object, None when it is none."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def complaint(reply: Mapping[str, Any]) -> str | None:
    """What a core says went wrong, without the frame that it puts around it; None: nothing."""
    said = reply.get("error")
    if not isinstance(said, str):
        return None
    _, _, why = said.partition("msg=")
    return why.removesuffix(")") or said


def mark(request_id: str) -> str:
    """A stop_str that carries a call's X-Request-Id through the serve layer to the engine, which hears of a call only
    its sampling. Token engines of Parrot never look at it; our bridge takes it off."""
    return MARK + request_id


def marked(sampling: Mapping[str, Any]) -> str | None:
    """The request id that a sampling carries, None when it carries none."""
    value = sampling.get("stop_str")
    return value[len(MARK) :] if isinstance(value, str) and value.startswith(MARK) and len(value) > len(MARK) else None


def session_of(body: Mapping[str, Any]) -> int | None:
    """The session a body names."""
    value = body.get("session_id")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def split_template(template: str) -> list[tuple[str, bool]]:
    """(text, False) for constants and (name, True) for placeholders, in order; empty constants left out."""
    out: list[tuple[str, bool]] = []
    for i, piece in enumerate(_PLACEHOLDER.split(template)):
        if piece:
            out.append((piece, i % 2 == 1))
    return out


def _parameter(row: Any) -> Parameter | Fault:
    if not isinstance(row, dict):
        return Fault("parameter is not an object")
    for key in row:
        if key not in _PARAMETER_KEYS:
            why = f"SemanticFunctionParameter.__init__() got an unexpected keyword argument '{key}'"
            return Fault(why, "TypeError")
    name, is_output = row.get("name"), row.get("is_output")
    if not isinstance(name, str) or not isinstance(is_output, bool):
        return Fault("SemanticFunctionParameter.__init__() missing required arguments", "TypeError")
    var_id, value, sampling = row.get("var_id"), row.get("value"), row.get("sampling_config") or {}
    if is_output:
        if var_id is not None:
            return Fault("Output parameter should not have var_id.", "ValueError")
    elif (var_id is None) == (value is None):
        return Fault("Input parameter should have either var_id or value.", "ValueError")
    if not isinstance(sampling, dict):
        return Fault("sampling_config is not an object")
    for key in sampling:
        if key not in _SAMPLING_KEYS:
            return Fault(f"SamplingConfig.__init__() got an unexpected keyword argument '{key}'", "TypeError")
    if not isinstance(value, str | None) or not isinstance(var_id, str | None):
        return Fault("value and var_id must be strings")
    return Parameter(name, is_output, var_id, value, sampling)


def read_call(body: Mapping[str, Any]) -> Call | Fault:
    """A body of POST /v1/semantic_call, or what the server refuses it with. A call that is read may yet be a hazard."""
    session_id, template, rows = session_of(body), body.get("template"), body.get("parameters")
    if session_id is None or not isinstance(template, str) or not isinstance(rows, list):
        return Fault("session_id, template or parameters is missing or of the wrong type")
    named: dict[str, Parameter] = {}
    for row in rows:
        parameter = _parameter(row)
        if isinstance(parameter, Fault):
            return parameter
        named[parameter.name] = parameter
    parts: list[str | Parameter] = []
    for text, is_name in split_template(template):
        if not is_name:
            parts.append(text)
        elif text in named:
            parts.append(named[text])
        else:
            return Fault(f"placeholder {text} has no parameter")
    criteria = body.get("output_criteria")
    if criteria is not None and criteria not in CRITERIA:
        return Fault(f"output_criteria {criteria!r} is not one of {CRITERIA}")
    fault = _shape_fault(parts)
    if fault is not None:
        return fault
    models = body.get("models") or []
    return Call(
        session_id=session_id,
        parts=tuple(parts),
        func_name=body.get("func_name") if isinstance(body.get("func_name"), str) else None,
        models=tuple(map(str, models)) if isinstance(models, list) else (),
        model_type=str(body.get("model_type") or "token_id"),
        cache_prefix=bool(body.get("cache_prefix", True)),
        criteria=criteria,
        fuse_fill=bool(body.get("fuse_fill")),
    )


def read_native(body: Mapping[str, Any]) -> Call | Fault:
    """A body of POST /v1/py_native_call: no template, so its parameters in their own order."""
    session_id, rows = session_of(body), body.get("parameters")
    if session_id is None or not isinstance(rows, list):
        return Fault("session_id or parameters is missing or of the wrong type")
    parts: list[Parameter] = []
    for row in rows:
        parameter = _parameter(row)
        if isinstance(parameter, Fault):
            return parameter
        parts.append(parameter)
    criteria, name = body.get("output_criteria"), body.get("func_name")
    return Call(
        session_id,
        tuple(parts),
        func_name=name if isinstance(name, str) else None,
        criteria=criteria if criteria in CRITERIA else None,
    )


def _shape_fault(parts: list[str | Parameter]) -> Fault | None:
    if not any(isinstance(p, Parameter) for p in parts):
        return Fault("the template has no placeholder")
    first = parts[0]
    if isinstance(first, Parameter) and first.is_output:
        return Fault("the template begins with an output")
    return None
