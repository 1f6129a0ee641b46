"""Request heads: what never changes for a target is rendered once, tags and ids are put in per request.

May not know: sockets, replies, time. Text in, bytes out.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from loadgen.bodies import Body
from loadgen.target import Target
from traces import tags
from traces.workflow import Node


def wire_id(salt: str, node: Node) -> str:
    """X-Request-Id of a node in a run: the same in any shard, unique within the run, safe in a header."""
    name = f"{salt}\0{node.workflow_id}\0{node.request_id}".encode()
    return "jg-" + blake2b(name, digest_size=12).hexdigest()


class Heads:
    """Request heads for one target: what never changes is rendered once per path."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._fixed: dict[tuple[str, bool, str, str | None], str] = {}
        """lines that come again: by path, streaming, class and agent"""

    def request(self, body: Body, node: Node, class_name: str, wire: str) -> bytes:
        """The whole request: head, tags, body."""
        kind = (body.path, body.stream, class_name, node.agent_id)
        fixed = self._fixed.get(kind) or self._remember(kind, body)
        workflow, name, data = tags.clean(node.workflow_id), _clean(node.request_id), body.data
        own = f"{tags.WORKFLOW}: {workflow}\r\n" if workflow is not None else ""
        if name is not None:
            own += f"{tags.NODE}: {name}\r\n"
        if node.deps:
            parents = tags.format_parents(tuple(d for d in node.deps if tags.clean(d.on)))
            own += f"{tags.PARENTS}: {parents}\r\n" if parents else ""
        head = f"{fixed}{own}{tags.REQUEST_ID}: {wire}\r\ncontent-length: {len(data)}\r\n\r\n"
        return head.encode() + data

    def _remember(self, kind: tuple[str, bool, str, str | None], body: Body) -> str:
        if len(self._fixed) >= _KINDS:
            self._fixed.clear()
        fixed = self._render_fixed(body)
        for name, value in ((tags.AGENT, tags.clean(kind[3])), (tags.CLASS, tags.clean(kind[2]))):
            if value is not None:
                fixed += f"{name}: {value}\r\n"
        self._fixed[kind] = fixed
        return fixed

    def _render_fixed(self, body: Body) -> str:
        target = self._target
        lines = [
            f"POST {body.path} HTTP/1.1",
            f"host: {target.authority}",
            "content-type: application/json",
            f"accept: {'text/event-stream' if body.stream else 'application/json'}",
            "user-agent: joulegraph",
        ]
        if target.api_key is not None:
            lines.append(f"authorization: Bearer {target.api_key}")
        if body.api == "messages":
            lines.append("anthropic-version: 2023-06-01")
            if target.api_key is not None:
                lines.append(f"x-api-key: {target.api_key}")
        return "\r\n".join(lines) + "\r\n"


_KINDS = 1024
_clean = lru_cache(4096)(tags.clean)
"""Names of nodes come again with every workflow of a pattern."""
