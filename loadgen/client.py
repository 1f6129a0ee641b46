"""One request on the wire: head bytes, the reply's stamps, and how it ended. Every failure is data.

Lives here: the hot path between a rendered body and a DispatchRecord; every read is stamped before it is parsed (by the
connection) and counted here. May not know: the graph, arrivals, which request comes next. Never retries.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from engines import dialects
from engines.dialects import Observer
from engines.http1 import Connection
from loadgen.bodies import Body
from loadgen.target import Target
from traces import tags
from traces.records import DispatchRecord, Outcome
from traces.workflow import Node, dep_row


def wire_id(salt: str, node: Node) -> str:
    """X-Request-Id of a node in a run: the same in any shard, unique within the run, safe in a header."""
    name = f"{salt}\0{node.workflow_id}\0{node.request_id}".encode()
    return "jg-" + blake2b(name, digest_size=12).hexdigest()


class Heads:
    """Request heads for one target: what never changes is rendered once per path."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._fixed: dict[tuple[str, bool], str] = {}

    def request(self, body: Body, node: Node, class_name: str, wire: str) -> bytes:
        """The whole request: head, tags, body."""
        fixed = self._fixed.get((body.path, body.stream))
        if fixed is None:
            fixed = self._fixed[(body.path, body.stream)] = self._render_fixed(body)
        tag = tags.Tag(
            workflow_id=tags.clean(node.workflow_id),
            node_id=tags.clean(node.request_id),
            parents=tuple(d for d in node.deps if tags.clean(d.on)) if node.deps else (),
            agent_id=tags.clean(node.agent_id),
            class_name=tags.clean(class_name),
        )
        lines = "".join([f"{name}: {value}\r\n" for name, value in tags.to_headers(tag)])
        head = f"{fixed}{lines}x-request-id: {wire}\r\ncontent-length: {len(body.data)}\r\n\r\n"
        return head.encode() + body.data

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


class Exchange:
    """One request from due to its end. The connection calls head, body, done, lost; `on_end` is called exactly once."""

    __slots__ = (
        "body_form", "class_name", "connection", "due_ns", "end_ns", "error", "first_byte_ns", "first_token_ns",
        "last_read_ns", "last_token_ns", "node", "observer", "on_end", "on_first", "outcome", "owner", "read_dt_ns",
        "read_tokens", "reused", "sent_ns", "status", "wire",
    )  # fmt: skip

    def __init__(
        self,
        node: Node,
        due_ns: int,
        wire: str,
        owner: Any,
        on_first: Callable[[Exchange, int], None],
        on_end: Callable[[Exchange], None],
    ) -> None:
        self.node = node
        self.due_ns = due_ns
        self.wire = wire
        self.owner = owner
        self.on_first = on_first
        self.on_end = on_end
        self.class_name = "workflow"
        self.body_form: Body | None = None
        self.connection: Connection | None = None
        self.reused: bool | None = None
        self.observer: Observer | None = None
        self.outcome: Outcome | None = None
        self.error: str | None = None
        self.status: int | None = None
        self.sent_ns: int | None = None
        self.end_ns = 0
        self.first_byte_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.last_read_ns = 0
        self.read_dt_ns: list[int] = []
        self.read_tokens: list[int] = []

    # ------------------------------------------------------------------ the connection's side

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status = status
        self.first_byte_ns = now_ns
        body = self.body_form
        assert body is not None and self.observer is not None
        if status != 200 or (body.stream and not _is_events(headers)):
            self.observer = dialects.observer(body.api, False)

    def body(self, data: bytes, now_ns: int) -> None:
        tokens = self.observer.feed(data)  # type: ignore[union-attr]
        self.read_dt_ns.append(now_ns - self.last_read_ns)
        self.last_read_ns = now_ns
        self.read_tokens.append(tokens)
        if tokens:
            self.last_token_ns = now_ns
            if self.first_token_ns is None:
                self.first_token_ns = now_ns
                self.on_first(self, now_ns)

    def done(self, now_ns: int) -> None:
        observer = self.observer
        assert observer is not None and self.status is not None
        observer.finish()
        outcome, error = judge(self.status, observer)
        self.finish(outcome, error, now_ns)

    def lost(self, why: str, now_ns: int) -> None:
        if self.observer is not None:
            self.observer.finish()
        self.connection = None
        self.finish("error" if "not valid HTTP" in why else "upstream_died", why, now_ns)

    # ------------------------------------------------------------------ the owner's side

    def give_up(self, outcome: Outcome, why: str, now_ns: int) -> None:
        """Our own doing: timeout, cancellation, stop. Drops the connection."""
        if self.outcome is None:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.abort()
            self.finish(outcome, why, now_ns)

    def finish(self, outcome: Outcome, error: str | None, now_ns: int) -> None:
        """The end, whatever it was."""
        if self.outcome is None:
            self.outcome, self.error, self.end_ns = outcome, error, now_ns
            self.on_end(self)

    def record(self) -> DispatchRecord:
        """The plan and the deed, after the end."""
        node, observer, body = self.node, self.observer, self.body_form
        assert self.outcome is not None
        usage = None if observer is None else observer.usage
        metrics = None if observer is None else observer.metrics
        return DispatchRecord(
            request_id=node.request_id,
            workflow_id=node.workflow_id,
            wire_id=self.wire,
            outcome=self.outcome,
            due_ns=self.due_ns,
            t_end_ns=self.end_ns,
            class_name=self.class_name,
            agent_id=node.agent_id,
            kind=node.kind,
            deps=tuple([dep_row(d) for d in node.deps]) if node.deps else (),
            api=None if body is None else body.api,
            model=None if body is None else body.model,
            delay_ns=node.delay_ns,
            t_sent_ns=self.sent_ns,
            t_first_byte_ns=self.first_byte_ns,
            t_first_token_ns=self.first_token_ns,
            t_last_token_ns=self.last_token_ns,
            status=self.status,
            finish_reason=None if observer is None else observer.finish_reason,
            error=self.error,
            planned_input_tokens=node.input_length,
            planned_output_tokens=node.output_length,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            engine_queue_ns=None if metrics is None else metrics.queue_ns,
            engine_prefill_ns=None if metrics is None else metrics.prefill_ns,
            engine_decode_ns=None if metrics is None else metrics.decode_ns,
            read_dt_ns=tuple(self.read_dt_ns),
            read_tokens=tuple(self.read_tokens),
            connection_reused=self.reused,
        )


def judge(status: int, observer: Observer) -> tuple[Outcome, str | None]:
    """What a complete reply amounts to. 4xx: refused by rule; anything else that is no whole answer: error."""
    if 400 <= status < 500:
        return "rejected", f"{status}: {observer.error or 'no reason given'}"
    if not 200 <= status < 300:
        return "error", f"{status}: {observer.error or 'no reason given'}"
    if observer.error is not None:
        return "error", observer.error
    if observer.malformed:
        return "error", f"{observer.malformed} events of the reply are not what the dialect promises"
    if not observer.ended and observer.finish_reason is None:
        return "error", "the reply ended without its end marker"
    return "ok", None


def _is_events(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.lower().startswith(b"text/event-stream")
    return True
