"""Spans of any dialect (OTLP/JSON, flat JSON) in one plain shape, with what GenAI and OpenInference call things.

Lives here: attribute names, old and new, of OpenTelemetry GenAI and of OpenInference. May not know: files, graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import an_object, objects
from traces.importers.link import words
from traces.importers.tracelab import iso_ns

_LLM_OPERATIONS = frozenset({"chat", "text_completion", "generate_content", "completion", "responses", "message"})


@dataclass(frozen=True, slots=True)
class Span:
    """One span. ids as text, times in ns since 1970."""

    where: Where
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[dict[str, Any], ...] = ()
    """{trace_id, span_id, attributes}"""
    failed: bool = False
    resource: dict[str, Any] = field(default_factory=dict)
    otlp: bool = False

    def first(self, *names: str) -> Any:
        """The first of these attributes that is there."""
        return next((self.attributes[n] for n in names if self.attributes.get(n) is not None), None)

    @property
    def kind(self) -> str | None:
        """llm, tool, agent, or None for spans that are none of these."""
        inference = str(self.attributes.get("openinference.span.kind") or "").upper()
        operation = self.attributes.get("gen_ai.operation.name")
        operation = operation if operation is None else str(operation)
        if operation == "execute_tool" or inference == "TOOL":
            return "tool"
        if operation in _LLM_OPERATIONS or inference == "LLM":
            return "llm"
        if operation in ("invoke_agent", "create_agent") or inference in ("AGENT", "CHAIN"):
            return "agent"
        return "llm" if operation is None and self.first("gen_ai.request.model", "llm.model_name") is not None else None


def of_otlp(where: Where, document: dict[str, Any]) -> Iterator[Span]:
    """The spans of one OTLP/JSON object {resourceSpans: ...}."""
    for block in objects(where, document, "resourceSpans"):
        resource = attributes(where, an_object(where, block, "resource"))
        for scope in objects(where, block, "scopeSpans"):
            for raw in objects(where, scope, "spans"):
                yield _otlp_span(where, raw, resource)


def _otlp_span(where: Where, raw: dict[str, Any], resource: dict[str, Any]) -> Span:
    start = _nano(where, raw, "startTimeUnixNano")
    return Span(
        where,
        str(raw.get("traceId") or ""),
        str(raw.get("spanId") or ""),
        str(raw["parentSpanId"]) if raw.get("parentSpanId") else None,
        str(raw.get("name") or ""),
        start,
        max(start, _nano(where, raw, "endTimeUnixNano")),
        attributes(where, raw),
        tuple(
            {"trace_id": link.get("traceId"), "span_id": link.get("spanId"), "attributes": attributes(where, link)}
            for link in objects(where, raw, "links")
        ),
        (raw.get("status") or {}).get("code") in (2, "STATUS_CODE_ERROR"),
        resource,
        True,
    )


def _nano(where: Where, raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.isdigit())):
        raise UserError(where.fault(name, value, "give nanoseconds since 1970"))
    return int(value)


def attributes(where: Where, holder: dict[str, Any]) -> dict[str, Any]:
    """OTLP's list of {key, value: {stringValue|...}} as a plain dict."""
    found = objects(where, holder, "attributes")
    return {str(a["key"]): _value(where, str(a["key"]), a.get("value")) for a in found if "key" in a}


def _value(where: Where, key: str, value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise UserError(where.fault(key, value, "give {stringValue|intValue|...: ...}"))
    name, inner = next(iter(value.items()))
    match name:
        case "intValue":
            if isinstance(inner, bool) or not re.fullmatch(r"-?\d{1,19}", str(inner)):
                raise UserError(where.fault(key, inner, "give a whole number of at most 64 bits"))
            return int(inner)
        case "arrayValue":
            return [_value(where, key, v) for v in objects(where, {key: (inner or {}).get("values")}, key)]
        case "kvlistValue":
            return attributes(where, {"attributes": (inner or {}).get("values")})
    return inner


def of_flat(where: Where, document: dict[str, Any]) -> Iterator[Span]:
    """The spans of one flat object {trace_id, spans: [{span_id, start_time, attributes, ...}]}."""
    for raw in objects(where, document, "spans"):
        held = raw.get("attributes")
        if not isinstance(held, dict):
            raise UserError(where.fault("attributes", held, "give an object"))
        start = iso_ns(where, "start_time", raw.get("start_time"))
        status = raw.get("status")
        code = status.get("code") if isinstance(status, dict) else status
        yield Span(
            where,
            str(raw.get("trace_id") or document.get("trace_id") or ""),
            str(raw.get("span_id") or ""),
            str(raw["parent_span_id"]) if raw.get("parent_span_id") else None,
            str(raw.get("name") or ""),
            start,
            max(start, iso_ns(where, "end_time", raw.get("end_time"))),
            held,
            failed=code in (2, "ERROR", "STATUS_CODE_ERROR"),
            resource=an_object(where, raw, "resource_attributes"),
        )


def messages(span: Span) -> list[dict[str, Any]] | None:
    """The prompt's messages {role, content, tool_calls?, tool_call_id?}, or None when the span does not hold them."""
    given = parsed(span.first("gen_ai.input.messages", "gen_ai.prompt"))
    if isinstance(given, list):
        found = [_message(m) for m in given if isinstance(m, dict)]
        system = parsed(span.first("gen_ai.system_instructions"))
        return [{"role": "system", "content": words(system)}, *found] if system else found
    return _indexed(span.attributes, "llm.input_messages") or None


def output(span: Span) -> str | None:
    """The reply's text, or None when the span does not hold it."""
    given = parsed(span.first("gen_ai.output.messages", "gen_ai.completion"))
    if isinstance(given, list) and given:
        return "\n".join(str(_message(m)["content"]) for m in given if isinstance(m, dict)) or None
    if isinstance(given, dict):
        return words(given) or None
    plain = span.first("gen_ai.output.text")
    if plain is not None:
        return words(plain)
    indexed = _indexed(span.attributes, "llm.output_messages")
    return "\n".join(str(m["content"]) for m in indexed) or None if indexed else None


def tool_calls(span: Span) -> list[str]:
    """Ids of the tool calls in the reply."""
    given = parsed(span.first("gen_ai.output.messages"))
    made = [_message(m) for m in given if isinstance(m, dict)] if isinstance(given, list) else []
    made += _indexed(span.attributes, "llm.output_messages")
    return [str(c["id"]) for m in made for c in m.get("tool_calls") or () if c.get("id")]


def parsed(value: Any) -> Any:
    """JSON text of a list or object as its value; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _message(raw: dict[str, Any]) -> dict[str, Any]:
    """A message of the GenAI convention (parts) or of OpenAI (content) in the latter's shape."""
    out: dict[str, Any] = {"role": str(raw.get("role") or "user")}
    calls, texts = list(raw.get("tool_calls") or ()), []
    parts = raw.get("parts")
    for part in parts if isinstance(parts, list) else ():
        match part.get("type") if isinstance(part, dict) else None:
            case "tool_call":
                function = {"name": part.get("name"), "arguments": _text(part.get("arguments"))}
                calls.append({"id": part.get("id"), "type": "function", "function": function})
            case "tool_call_response":
                out["tool_call_id"] = part.get("id")
                texts.append(_text(part.get("response", part.get("result"))))
            case _:
                texts.append(words(part))
    out["content"] = "\n".join(texts) if isinstance(parts, list) else words(raw.get("content"))
    if calls:
        out["tool_calls"] = calls
    if raw.get("tool_call_id"):
        out["tool_call_id"] = raw["tool_call_id"]
    return out


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()


_INDEX = re.compile(r"\.(\d+)\.(message|tool_call|message_content)\.(.+)")


def _indexed(held: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """OpenInference's flattened messages: llm.input_messages.0.message.role and so on."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in held.items():
        match = _INDEX.fullmatch(name[len(prefix) :]) if name.startswith(prefix + ".") else None
        if match is not None and match[2] == "message" and int(match[1]) < 10_000:
            _place(found.setdefault(int(match[1]), {"role": "user", "content": ""}), match[3], value)
    for message in found.values():
        calls = message.pop("calls", None)
        if calls:
            message["tool_calls"] = [calls[i] for i in sorted(calls)]
    return [found[i] for i in sorted(found)]


def _place(message: dict[str, Any], path: str, value: Any) -> None:
    """One flattened attribute into its message."""
    if path in ("role", "content", "tool_call_id", "name"):
        message[path] = words(value) if path == "content" else str(value)
    elif path.startswith("contents.") and path.endswith(".message_content.text"):
        message["content"] = f"{message['content']}\n{value}" if message["content"] else str(value)
    elif path.startswith("tool_calls."):
        _, index, rest = path.split(".", 2)
        call = message.setdefault("calls", {}).setdefault(index, {"type": "function", "function": {}})
        if rest == "tool_call.id":
            call["id"] = str(value)
        elif rest.startswith("tool_call.function."):
            call["function"][rest.rsplit(".", 1)[1]] = value
