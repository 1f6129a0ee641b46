"""In front of a Parrot: what must not reach it is refused, the rest passes, and its calls become records with edges.

A semantic call is answered at once and works later, so its record is held until its value was seen: by a GET of the
client, or by one of our own sent after the client's (`passive`, see docs/parrot.md). Lives here: the guard, the
watching of requests and replies, held records, passive reads. May not know: how bytes are relayed, what a Parrot is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.parrot.hazards import hazard
from engines.parrot.lineage import CallNode, Lineage, OpenWorkflow
from engines.parrot.protocol import (
    CRITERIA,
    Call,
    Route,
    complaint,
    parse_json,
    read_call,
    read_native,
    route,
)
from engines.parrot.protocol import session_of as session_in
from engines.pool import Pool
from proxy.callrow import conclude, describe, note
from proxy.config import parse_target
from proxy.content import unquoted
from proxy.document import ReplyBody
from proxy.exchange import Exchange
from proxy.passive import PassiveReads
from proxy.refusal import Refusal

if TYPE_CHECKING:
    from proxy.hub import Hub

Row = dict[str, Any]


@dataclass(slots=True)
class _Ask:
    """One request as the guard understood it."""

    route: Route
    body: Row
    reply: ReplyBody
    node: CallNode | None = None
    """of a GET: who produces the variable"""


class Parrot:
    """One worker's view of one core."""

    def __init__(self, hub: Hub, write: Callable[[Row], None], tls: Any) -> None:
        self._hub = hub
        self._write = write
        self._config = hub.config.parrot
        self._target = target = parse_target(hub.config.upstreams[0])
        self._pool = Pool(
            target.host, target.port, connect=hub.connect, now_ns=hub.now_ns, ssl=tls if target.tls else None
        )
        self.lineage = Lineage()
        self._asks: dict[Exchange, _Ask] = {}
        self._held: dict[int, tuple[CallNode, Row]] = {}
        """records of calls whose value was not seen yet, by id of their node"""
        key = hub.config.upstream_key
        self._reads = PassiveReads(self._pool, target.prefix, target.name, key, self._config.passive, self._was_read)
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ requests

    def judge(self, exchange: Exchange, body: bytes) -> Refusal | None:
        """A request is whole: refuse it, or watch it."""
        head = exchange.head
        asked = route(head.method, head.path)
        if asked.kind == "other":
            return None
        parsed = parse_json(body) or {}
        node = self.lineage.find(session_in(parsed), asked.name) if asked.kind == "var_get" else None
        ask = self._asks[exchange] = _Ask(asked, parsed, ReplyBody(), node)
        refusal = self._guard(asked, parsed, node) if self._config.guard else None
        if refusal is not None:
            return refusal
        exchange.watcher = ask.reply
        exchange.fresh = head.method == "POST"  # a POST sent twice is a call made twice
        if asked.kind == "var_get":
            exchange.deadline_ns = self._config.get_deadline_ns
            if node is not None and parsed.get("criteria") in CRITERIA:
                self._reads.later(exchange, self.lineage.asked(node, parsed["criteria"], self._hub.now_ns()), node)
        return None

    def _guard(self, asked: Route, body: Row, node: CallNode | None) -> Refusal | None:
        why = hazard(asked, body, allow_native=self._config.allow_native)
        if why is None and node is not None and node.t_active_ns is None and body.get("criteria") not in CRITERIA:
            why = f"criteria must be one of {', '.join(CRITERIA)}"
        return Refusal(400, "parrot_hazard", why) if why is not None else None

    # ------------------------------------------------------------------ replies

    def take(self, exchange: Exchange, row: Row) -> None:
        """An exchange ended: record it now, later (a call), or not at all (what only carried a call's life)."""
        ask = self._asks.pop(exchange, None)
        if row["outcome"] == "unreachable":
            self._core_died("the core could not be reached")
        elif row["outcome"] == "upstream_died":
            self._probe()
        if ask is None:
            self._write(row)
            return
        reply = ask.reply.json() if row["status"] is not None else None
        if reply is not None and (why := complaint(reply)) is not None:
            row["error"] = why if self._hub.keep_text else unquoted(why)
        self._session_gone(ask, row, reply)
        good = row["outcome"] == "ok" and row["status"] == 200 and reply is not None
        match ask.route.kind:
            case "call" | "native":
                self._took_call(exchange, ask, row, reply if good else None)
                return
            case "session_open" if good and reply is not None:
                self._opened(reply, row)
            case "session_close" if good and ask.route.name.isdigit():
                self._end_workflow(self.lineage.closed(int(ask.route.name), row["t_end_ns"], "deleted"))
            case "var_new" if good and reply is not None and isinstance(reply.get("var_id"), str):
                self.lineage.registered(session_in(ask.body) or 0, reply["var_id"])
            case "var_set" if good:
                self.lineage.was_set(session_in(ask.body) or 0, ask.route.name, row["t_end_ns"])
            case "var_get" if ask.node is not None:
                self._read(ask.node, row, reply if good else None)
        if row["outcome"] != "ok":
            row |= {"workflow_id": None, "node_id": None, "deps": [], "t_upstream_ns": None}
            self._write(row)  # it drew nothing, but it failed

    def _opened(self, reply: Row, row: Row) -> None:
        if isinstance(reply.get("session_id"), int):
            self._end_workflow(self.lineage.opened(reply["session_id"], row["t_end_ns"], row["workflow_id"]))
            self.lineage.open[reply["session_id"]].class_name = row["class_name"]

    def _session_gone(self, ask: _Ask, row: Row, reply: Row | None) -> None:
        """The core says that it does not know the session (any more)."""
        said = str(reply.get("error", "")) if reply is not None and row["status"] == 500 else ""
        if "Session (session_id=" in said:
            session = int(ask.route.name) if ask.route.name.isdigit() else session_in(ask.body)
            if session is not None:
                self._end_workflow(self.lineage.closed(session, row["t_end_ns"], "expired"))

    def _took_call(self, exchange: Exchange, ask: _Ask, row: Row, reply: Row | None) -> None:
        row["api"] = "parrot"
        call = read_call(ask.body) if ask.route.kind == "call" else read_native(ask.body)
        if reply is None or not isinstance(call, Call):
            self._failed_call(ask, row)
            return
        info = [p for p in reply.get("param_info") or [] if isinstance(p, dict)]
        variables = {str(p.get("parameter_name")): str(p.get("var_id")) for p in info}
        named = exchange.tag.node_id if exchange.tag is not None else None
        node = self.lineage.called(call, int(reply.get("request_id") or 0), variables, row["t_end_ns"], named)
        if node is None:
            exchange.add_note("its session was opened before this proxy watched")
            row["note"] = exchange.note
            row["t_upstream_ns"] = None
            self._write(row)
            return
        describe(row, call, node)
        self._held[id(node)] = (node, row)
        if node.t_active_ns is not None:
            self._reads.now([node])

    def _failed_call(self, ask: _Ask, row: Row) -> None:
        """A call that was refused, here or by the core: its workflow lacks it."""
        session = session_in(ask.body)
        workflow = self.lineage.open.get(session) if session is not None else None
        if workflow is not None:
            row["workflow_id"] = row["workflow_id"] or workflow.workflow_id
            row["class_name"] = row["class_name"] or workflow.class_name
            row["tag_source"] = row["tag_source"] or "parrot"
            row["node_id"] = row["node_id"] or row["request_id"]
        row["t_upstream_ns"] = None
        self._write(row)

    def _read(self, node: CallNode, row: Row, reply: Row | None) -> None:
        """A GET of the client on a call's output ended."""
        if reply is not None and "content" in reply:
            self.lineage.told(node, reply["content"])
            self._ready(node, row["t_end_ns"])
        elif row["outcome"] in ("client_left", "timeout", "cancelled") and node.t_active_ns is not None:
            self._reads.now([node])  # the core goes on with it all the same

    # ------------------------------------------------------------------ ends of calls

    def _ready(self, node: CallNode, now_ns: int) -> None:
        """A call's value was seen."""
        if node.t_ready_ns is None:
            node.t_ready_ns = now_ns
        self._finish(node)

    def _finish(self, node: CallNode, outcome: str = "ok", why: str | None = None) -> None:
        held = self._held.pop(id(node), None)
        if held is None:
            return
        row = held[1]
        conclude(row, node, outcome, why)
        self._write(row)

    def _end_workflow(self, workflow: OpenWorkflow | None) -> None:
        """A session is over: its calls are recorded as far as they were seen."""
        if workflow is None:
            return
        for node, row in [h for h in self._held.values() if h[0].workflow is workflow]:
            if not self._reads.reads(node):
                self._unseen(node, row, workflow)

    def _unseen(self, node: CallNode, row: Row, workflow: OpenWorkflow) -> None:
        """A call whose value nobody read. One that a finished call needed has ended, and no later than that began."""
        if node.t_active_ns is None:
            self._finish(node, "skipped", "its session ended before anything asked for it")
            return
        ends = [c.t_ready_ns for c in workflow.nodes.values() if c.t_ready_ns is not None and c.needs(node)]
        if ends:
            note(row, "its own end was not seen: t_end_ns is the latest it can have been")
            row["t_end_ns"] = min(ends)
            self._finish(node)
        else:
            row["t_end_ns"] = workflow.t_close_ns or self._hub.now_ns()
            why = "the core died" if workflow.end == "lost" else "its session ended before its value was read"
            self._finish(node, "upstream_died" if workflow.end == "lost" else "cancelled", why)

    def _core_died(self, why: str) -> None:
        self._reads.drop_all()
        lost = self.lineage.core_died(self._hub.now_ns())
        for workflow in lost:
            self._end_workflow(workflow)

    def _probe(self) -> None:
        """One connection broke: is the core still there?"""

        async def ask() -> None:
            try:
                connection = await self._pool.acquire(fresh=True)
            except OSError:
                self._core_died("the core closed a connection and takes no new one")
            else:
                connection.close()

        task = asyncio.get_running_loop().create_task(ask())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _was_read(self, node: CallNode, ready_ns: int | None) -> None:
        """A reading of our own ended."""
        if ready_ns is not None:
            self._ready(node, ready_ns)
        elif node.workflow.end is not None and (held := self._held.get(id(node))) is not None:
            self._unseen(node, held[1], node.workflow)

    # ------------------------------------------------------------------ end

    def close(self) -> None:
        """No more reads; what is held is recorded as far as it was seen."""
        self._reads.close()
        for task in self._tasks:
            task.cancel()
        for session in list(self.lineage.open):
            self._end_workflow(self.lineage.closed(session, self._hub.now_ns(), "unfinished"))
        for node, row in list(self._held.values()):
            self._unseen(node, row, node.workflow)
        self._pool.close()
