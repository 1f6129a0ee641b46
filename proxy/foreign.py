"""Tags of other tools on the wire, in a fixed order of precedence: one scheme wins, never mixed, its name recorded.

Values are hints, never authorisation (traces.tags.clean bounds them). docs/proxy.md lists the schemes in this order.
End-user identifiers (`user`, `safety_identifier`) are left alone on purpose: they name people, not workflows.
May not know: sockets, our own records, clocks, earlier requests (proxy/lineage.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from traces import tags
from traces.tags import Tag, clean
from traces.workflow import Dep

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HeaderScheme:
    """A scheme that lives in headers alone: which header gives what. Of `workflow` the first that is there counts."""

    source: str
    workflow: tuple[str, ...]
    agent: str | None = None
    parent_agent: str | None = None
    class_name: str | None = None
    node: str | None = None
    parent_node: str | None = None
    nested: bool = False
    """the workflow header names a session that may itself have a parent session"""

    def headers(self) -> tuple[str, ...]:
        """Every header it reads."""
        rest = (self.agent, self.parent_agent, self.class_name, self.node, self.parent_node)
        return (*self.workflow, *(name for name in rest if name is not None))

    def read(self, headers: Headers) -> Tag | None:
        """The tag, when the scheme's main header is usable."""
        found = next((v for v in (clean(headers.get(name)) for name in self.workflow) if v is not None), None)
        if found is None:
            return None
        parent = _get(headers, self.parent_agent)
        above = _get(headers, self.parent_node)
        return Tag(
            workflow_id=parent if self.nested and parent is not None else found,
            node_id=_get(headers, self.node),
            parents=(Dep(above, "control", provenance="declared"),) if above is not None else (),
            agent_id=found if self.nested else _get(headers, self.agent),
            parent_agent_id=parent,
            class_name=_get(headers, self.class_name),
            session_id=found,
            source=self.source,
        )


DYNAMO: Final = HeaderScheme("dynamo", ("x-dynamo-session-id",), parent_agent="x-dynamo-parent-session-id", nested=True)
CLAUDE_CODE: Final = HeaderScheme(
    "claude-code",
    ("x-claude-code-session-id",),
    agent="x-claude-code-agent-id",
    parent_agent="x-claude-code-parent-agent-id",
)
CODEX: Final = HeaderScheme(
    "codex", ("session-id", "session_id"), agent="thread-id", parent_agent="x-codex-parent-thread-id"
)
OPENCODE: Final = HeaderScheme(
    "opencode", ("x-session-id", "x-session-affinity"), parent_agent="x-parent-session-id", nested=True
)
LITELLM: Final = HeaderScheme("litellm", ("x-litellm-session-id", "x-litellm-trace-id"))
HELICONE: Final = HeaderScheme(
    "helicone", ("helicone-session-id",), agent="helicone-session-path", class_name="helicone-session-name"
)
PORTKEY: Final = HeaderScheme(
    "portkey", ("x-portkey-trace-id",), node="x-portkey-span-id", parent_node="x-portkey-parent-span-id"
)
LANGTRACE: Final = HeaderScheme("langtrace", ("x-langtrace-session-id",))
CAGENT: Final = HeaderScheme("cagent", ("x-cagent-session-id",))
GATEWAY_API: Final = HeaderScheme("gateway-api", ("x-gateway-inference-fairness-id",))
_ALL: Final = (DYNAMO, CLAUDE_CODE, CODEX, OPENCODE, LITELLM, HELICONE, PORTKEY, LANGTRACE, CAGENT, GATEWAY_API)

TAG_HEADERS: Final = frozenset({"baggage", "traceparent", *(name for scheme in _ALL for name in scheme.headers())})
"""headers that may carry a tag and go on to the engine untouched"""

_BODY_FIELDS: Final = frozenset(
    {"metadata", "nvext", "vllm_xargs", "program_id", "job_id", "conversation", "prompt_cache_key"}
)
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_OLD_USER_ID: Final = re.compile(r"user_[0-9a-f]+_account_[0-9a-f-]*_session_([0-9a-f-]{36})\Z")


def read_tag(headers: Headers, body: Any) -> Tag | None:
    """The winning tag of one request, or None. `body` is the parsed JSON body, None where there is none."""
    fields = body if isinstance(body, dict) else {}
    if not headers and _BODY_FIELDS.isdisjoint(fields):
        return None
    for scheme in PRECEDENCE:
        tag = scheme(headers, fields)
        if tag is not None:
            return tag
    return None


def _get(headers: Headers, name: str | None) -> str | None:
    return clean(headers.get(name)) if name is not None else None


def _own_headers(headers: Headers, _: dict[str, Any]) -> Tag | None:
    return tags.from_headers(headers)


def _own_metadata(_: Headers, body: dict[str, Any]) -> Tag | None:
    metadata = body.get("metadata")
    return tags.from_metadata(metadata) if isinstance(metadata, dict) else None


def _own_baggage(headers: Headers, _: dict[str, Any]) -> Tag | None:
    return tags.from_baggage(headers["baggage"]) if "baggage" in headers else None


def _agent_context(_: Headers, body: dict[str, Any]) -> Tag | None:
    """Dynamo's body form: nvext.agent_context."""
    extension = body.get("nvext")
    context = extension.get("agent_context") if isinstance(extension, dict) else None
    if not isinstance(context, dict):
        return None
    session, trajectory = clean(context.get("session_id")), clean(context.get("trajectory_id"))
    if session is None and trajectory is None:
        return None
    return Tag(
        workflow_id=session or trajectory,
        agent_id=trajectory,
        parent_agent_id=clean(context.get("parent_trajectory_id")),
        class_name=clean(context.get("session_type_id")),
        session_id=session,
        source="dynamo",
    )


def _agentic_context(_: Headers, body: dict[str, Any]) -> Tag | None:
    """vllm_xargs.agentic_context: an object, or the JSON of one (vLLM takes no nested values)."""
    extra = body.get("vllm_xargs")
    context = extra.get("agentic_context") if isinstance(extra, dict) else None
    if isinstance(context, str):
        context = _json(context)
    if not isinstance(context, dict):
        return None
    program, root = clean(context.get("program_id")), clean(context.get("root_program_id"))
    session, parent = clean(context.get("session_id")), clean(context.get("parent_program_id"))
    workflow = root or parent or program or session
    if workflow is None:
        return None
    return Tag(
        workflow_id=workflow,
        agent_id=program or clean(context.get("agent_id")),
        parent_agent_id=parent,
        class_name=clean(context.get("task_id")),
        session_id=session,
        source="agentic_context",
    )


def _program(_: Headers, body: dict[str, Any]) -> Tag | None:
    """ThunderAgent's program_id, Continuum's job_id."""
    for name in ("program_id", "job_id"):
        value = clean(body.get(name))
        if value is not None:
            return Tag(workflow_id=value, session_id=value, source=name)
    return None


def _claude_user_id(_: Headers, body: dict[str, Any]) -> Tag | None:
    """Claude Code's metadata.user_id: a JSON string since 2.1.78, one long name before."""
    metadata = body.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str) or len(user) > 1024:
        return None
    inner = _json(user) if user.startswith("{") else None
    old = _OLD_USER_ID.match(user)
    session = clean(inner.get("session_id")) if isinstance(inner, dict) else clean(old[1]) if old else None
    return Tag(workflow_id=session, session_id=session, source="claude-code") if session is not None else None


def _session_baggage(headers: Headers, _: dict[str, Any]) -> Tag | None:
    """OpenTelemetry's baggage with session.id but none of our members."""
    found = re.search(r"(?:^|,)\s*session\.id\s*=\s*([^,;]+)", headers.get("baggage", ""))
    session = clean(found[1]) if found else None
    return Tag(workflow_id=session, session_id=session, source="baggage-session") if session is not None else None


def _traceparent(headers: Headers, _: dict[str, Any]) -> Tag | None:
    """W3C: the trace id names the workflow. The parent span is the caller's, not an earlier request: no edge."""
    found = _TRACEPARENT.match(headers.get("traceparent", ""))
    if found is None or set(found[1]) == {"0"}:
        return None
    return Tag(workflow_id=found[1], source="traceparent")


def _conversation(_: Headers, body: dict[str, Any]) -> Tag | None:
    """OpenAI bodies: conversation, metadata.session_id and the like, then prompt_cache_key."""
    conversation = body.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    metadata = body.get("metadata")
    given = metadata if isinstance(metadata, dict) else {}
    choices = [("conversation", conversation), ("prompt_cache_key", body.get("prompt_cache_key"))]
    choices[1:1] = [("metadata-session", given.get(k)) for k in ("session_id", "conversation_id", "thread_id")]
    for source, value in choices:
        session = clean(value)
        if session is not None:
            return Tag(workflow_id=session, session_id=session, source=source)
    return None


def _in_headers(scheme: HeaderScheme) -> Callable[[Headers, dict[str, Any]], Tag | None]:
    return lambda headers, _: scheme.read(headers)


PRECEDENCE: Final[tuple[Callable[[Headers, dict[str, Any]], Tag | None], ...]] = (
    _own_headers,
    _own_metadata,
    _own_baggage,
    _in_headers(DYNAMO),
    _agent_context,
    _agentic_context,
    _program,
    _in_headers(CLAUDE_CODE),
    _claude_user_id,
    _in_headers(CODEX),
    _in_headers(OPENCODE),
    _in_headers(LITELLM),
    _in_headers(HELICONE),
    _in_headers(PORTKEY),
    _in_headers(LANGTRACE),
    _in_headers(CAGENT),
    _in_headers(GATEWAY_API),
    _session_baggage,
    _traceparent,
    _conversation,
)
"""the order of docs/proxy.md; the first that finds a usable value wins alone"""


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
