"""Our own tags on the wire: X-Workflow-* headers, OpenAI metadata, W3C baggage. The only place with these names.

Values are hints, never authorisation: at most 256 printable characters, else the tag is dropped (None) and said so.
Foreign schemes (Dynamo, Claude Code, ...) are the proxy's business (proxy/foreign.py). May not know: HTTP, sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from traces.workflow import DEP_KINDS, Dep

WORKFLOW: Final = "x-workflow-id"
NODE: Final = "x-workflow-node"
PARENTS: Final = "x-workflow-parents"
AGENT: Final = "x-workflow-agent"
CLASS: Final = "x-workflow-class"
REQUEST_ID: Final = "x-request-id"
OWN_HEADERS: Final = frozenset({WORKFLOW, NODE, PARENTS, AGENT, CLASS})
MAX_VALUE: Final = 256
MAX_PARENTS: Final = 64


class Tag(NamedTuple):
    """Who a request says it is. parents: Deps with provenance "declared". A tuple: made for every tagged request."""

    workflow_id: str | None = None
    node_id: str | None = None
    parents: tuple[Dep, ...] = ()
    agent_id: str | None = None
    class_name: str | None = None
    source: str | None = None
    session_id: str | None = None
    parent_agent_id: str | None = None


def clean(value: object) -> str | None:
    """A tag value as it may be used: 1 to 256 printable characters, else None."""
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if 0 < len(value) <= MAX_VALUE and value.isprintable() else None


def parse_parents(value: str) -> tuple[Dep, ...]:
    """`n1, n2;kind=data` -> Deps. Unknown kinds become data; unusable entries are dropped."""
    deps: list[Dep] = []
    for entry in value.split(",")[:MAX_PARENTS]:
        name, *params = [p.strip() for p in entry.split(";")]
        on = clean(unquote(name))
        if on is None:
            continue
        given = dict(p.split("=", 1) for p in params if "=" in p)
        kind = given.get("kind", "data")
        deps.append(Dep(on=on, kind=kind if kind in DEP_KINDS else "data", provenance="declared"))  # type: ignore[arg-type]
    return tuple(deps)


def format_parents(deps: tuple[Dep, ...]) -> str:
    """The header value for parents; the inverse of parse_parents for declared Deps."""
    return ",".join(
        quote(d.on, safe="!#$&'()*+-./:<>?@[]^_`{|}~") + (f";kind={d.kind}" if d.kind != "data" else "") for d in deps
    )


def to_headers(tag: Tag) -> list[tuple[str, str]]:
    """Header pairs for an outgoing request."""
    pairs = [
        (WORKFLOW, tag.workflow_id),
        (NODE, tag.node_id),
        (PARENTS, format_parents(tag.parents) if tag.parents else None),
        (AGENT, tag.agent_id),
        (CLASS, tag.class_name),
    ]
    return [(name, value) for name, value in pairs if value]


def from_headers(headers: Mapping[str, str]) -> Tag | None:
    """Our own headers (lower-case names), or None when no usable workflow id or node is there."""
    workflow, node = clean(headers.get(WORKFLOW)), clean(headers.get(NODE))
    if workflow is None and node is None:
        return None
    return Tag(
        workflow,
        node,
        parse_parents(headers[PARENTS]) if PARENTS in headers else (),
        clean(headers[AGENT]) if AGENT in headers else None,
        clean(headers[CLASS]) if CLASS in headers else None,
        "x-workflow",
    )


def from_metadata(metadata: Mapping[str, Any]) -> Tag | None:
    """OpenAI `metadata` {workflow_id, workflow_node, workflow_parents, workflow_agent, workflow_class}."""
    workflow, node = clean(metadata.get("workflow_id")), clean(metadata.get("workflow_node"))
    if workflow is None and node is None:
        return None
    parents = metadata.get("workflow_parents")
    return Tag(
        workflow_id=workflow,
        node_id=node,
        parents=parse_parents(parents) if isinstance(parents, str) else (),
        agent_id=clean(metadata.get("workflow_agent")),
        class_name=clean(metadata.get("workflow_class")),
        source="metadata",
    )


def from_baggage(baggage: str) -> Tag | None:
    """W3C baggage `workflow.id=w1,workflow.node=n2,workflow.parents=a%2Cb` (percent-decoded)."""
    items: dict[str, str] = {}
    for member in baggage.split(","):
        key, _, value = member.split(";", 1)[0].partition("=")
        items[key.strip().lower()] = unquote(value.strip())
    workflow, node = clean(items.get("workflow.id")), clean(items.get("workflow.node"))
    if workflow is None and node is None:
        return None
    return Tag(
        workflow_id=workflow,
        node_id=node,
        parents=parse_parents(items.get("workflow.parents", "")),
        agent_id=clean(items.get("workflow.agent")),
        class_name=clean(items.get("workflow.class")),
        source="baggage",
    )
