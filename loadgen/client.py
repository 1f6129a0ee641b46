"""One request on the wire: head bytes, the reply's stamps, and how it ended. Every failure is data.

Lives here: the hot path between a rendered body and a DispatchRecord; every read is stamped before it is parsed (by the
connection) and counted here. May not know: the graph, arrivals, which request comes next. Never retries.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from engines import dialects
from engines.dialects import EngineMetrics, Observer
from engines.http1 import Connection
from loadgen.bodies import Body
from traces.records import Outcome
from traces.workflow import Node, dep_row

if TYPE_CHECKING:
    from loadgen.run import Run
    from loadgen.shell import Shell

Row = dict[str, Any]
"""A DispatchRecord (traces.records) as its journal row. Built as a dict because that halves its cost on the hot path;
`traces.records.from_row(DispatchRecord, row)` gives the record."""


class Exchange:
    """One request from due to its end. The connection calls head, body, done, lost; `on_end` is called exactly once."""

    __slots__ = (
        "attempt", "body_form", "connection", "due_ns", "end_ns", "error", "first_byte_ns", "first_token_ns",
        "last_read_ns", "last_token_ns", "node", "observer", "outcome", "read_dt_ns", "read_tokens", "reused", "run",
        "sent_ns", "shell", "status", "wire",
    )  # fmt: skip

    def __init__(
        self, shell: Shell, run: Run, node: Node, due_ns: int, wire: str, body: Body, observer: Observer, attempt: int
    ) -> None:
        self.shell = shell
        self.run = run
        self.node = node
        self.due_ns = due_ns
        self.wire = wire
        self.body_form = body
        self.observer = observer
        self.attempt = attempt
        """which sending of this node it is, from 1"""
        self.read_dt_ns: list[int] = []
        self.read_tokens: list[int] = []
        self.connection: Connection | None = None
        self.outcome: Outcome | None = None
        self.error: str | None = None
        self.status: int | None = None
        self.sent_ns: int | None = None
        self.reused: bool | None = None
        self.first_byte_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.last_read_ns = 0
        self.end_ns = 0

    # ------------------------------------------------------------------ the connection's side

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status = status
        self.first_byte_ns = now_ns
        shell, body = self.shell, self.body_form
        if status == 200 and headers is shell.event_headers:  # the connection gives equal heads as the same object
            return
        if status != 200 or (body.stream and not _is_events(headers)):
            self.observer = dialects.observer(body.api, False)
        elif body.stream:
            shell.event_headers = headers

    def body(self, data: bytes, now_ns: int) -> None:
        tokens = self.observer.feed(data)
        self.read_dt_ns.append(now_ns - self.last_read_ns)
        self.last_read_ns = now_ns
        self.read_tokens.append(tokens)
        if tokens:
            self.last_token_ns = now_ns
            if self.first_token_ns is None:
                self.first_token_ns = now_ns
                if self.run.walk.awaited:
                    self.shell.first_token(self, now_ns)

    def done(self, now_ns: int) -> None:
        observer = self.observer
        observer.finish()
        outcome, error = judge(self.status or 0, observer)
        self.finish(outcome, error, now_ns)

    def lost(self, why: str, now_ns: int) -> None:
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
            self.shell.exchange_ended(self)

    @property
    def repeatable(self) -> bool:
        """It failed before anything of an answer came, or the server asked for patience."""
        if self.outcome == "unreachable" or (self.outcome == "upstream_died" and self.first_byte_ns is None):
            return True
        return self.status in (429, 503)

    def record(self) -> Row:
        """The plan and the deed, after the end: a DispatchRecord as its journal row."""
        node, body, observer = self.node, self.body_form, self.observer
        usage = observer.usage
        row = base_row(node, self.run.class_name, self.wire, self.outcome or "error", self.due_ns, self.end_ns)
        row |= {
            "api": body.api,
            "model": body.model,
            "t_sent_ns": self.sent_ns,
            "connection_reused": self.reused,
            "t_first_byte_ns": self.first_byte_ns,
            "status": self.status,
            "t_first_token_ns": self.first_token_ns,
            "t_last_token_ns": self.last_token_ns,
            "read_dt_ns": self.read_dt_ns,
            "read_tokens": self.read_tokens,
            "finish_reason": observer.finish_reason,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if usage.cached_tokens is not None:
            row["cached_tokens"] = usage.cached_tokens
        if observer.metrics is not None:
            _add_metrics(row, observer.metrics)
        if self.attempt > 1:
            row["attempts"] = self.attempt
        if self.outcome != "ok" or self.first_token_ns is None:  # something is missing: only what there is
            row["error"] = self.error
            return {name: value for name, value in row.items() if value is not None and value != []}
        return row


def base_row(node: Node, class_name: str, wire: str, outcome: Outcome, due_ns: int, end_ns: int) -> Row:
    """What every dispatch row has: whose it is, what was planned, when it was due, how it ended."""
    row: Row = {
        "request_id": node.request_id,
        "workflow_id": node.workflow_id,
        "wire_id": wire,
        "outcome": outcome,
        "due_ns": due_ns,
        "t_end_ns": end_ns,
        "class_name": class_name,
        "kind": node.kind,
        "delay_ns": node.delay_ns,
        "planned_input_tokens": node.input_length,
        "planned_output_tokens": node.output_length,
    }
    _add_graph(row, node)
    return row


def _add_metrics(row: Row, metrics: EngineMetrics) -> None:
    row["engine_queue_ns"] = metrics.queue_ns
    row["engine_prefill_ns"] = metrics.prefill_ns
    row["engine_decode_ns"] = metrics.decode_ns
    if metrics.draft_tokens is not None:
        row["draft_tokens"] = metrics.draft_tokens
        row["accepted_tokens"] = metrics.accepted_tokens


def _add_graph(row: Row, node: Node) -> None:
    if node.deps:
        row["deps"] = [dep_row(d) for d in node.deps]
    if node.agent_id is not None:
        row["agent_id"] = node.agent_id


def judge(status: int, observer: Observer) -> tuple[Outcome, str | None]:
    """What a complete reply amounts to. 4xx: refused by rule; anything else that is no whole answer: error."""
    if status == 200 and observer.error is None and not observer.malformed:
        return _whole(observer)
    if 400 <= status < 500:
        return "rejected", f"{status}: {observer.error or 'no reason given'}"
    if not 200 <= status < 300:
        return "error", f"{status}: {observer.error or 'no reason given'}"
    if observer.error is not None:
        return "error", observer.error
    if observer.malformed:
        return "error", f"{observer.malformed} events of the reply are not what the dialect promises"
    return _whole(observer)


def _whole(observer: Observer) -> tuple[Outcome, str | None]:
    """An answer says how it ended; its end marker alone, with neither a token nor a usage, answers nothing."""
    if observer.finish_reason is not None:
        return "ok", None
    if not observer.ended:
        return "error", "the reply ended without its end marker"
    if not observer.tokens and observer.usage.completion_tokens is None:
        return "error", "the reply ended without an answer: no token, no usage, no finish reason"
    return "ok", None


def _is_events(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            return value[:17].lower() == b"text/event-stream"
    return True


def unsent(node: Node, class_name: str, wire: str, outcome: Outcome, why: str | None, due_ns: int, end_ns: int) -> Row:
    """The row of a node that put nothing on the wire: skipped, or a tool call that only takes time."""
    row = base_row(node, class_name, wire, outcome, due_ns, end_ns)
    if why is not None:
        row["error"] = why
    if outcome == "ok":
        row["t_sent_ns"] = due_ns
    return row


def chosen(wire: str, share: float) -> bool:
    """Whether a request belongs to a share (0..1) of all, by its wire id alone."""
    return int.from_bytes(blake2b(wire.encode(), digest_size=6).digest(), "little") < share * (1 << 48)
