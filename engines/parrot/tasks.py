"""What an engine under a Parrot saw of one call: the core's session and task, and everything a proxy would have seen.

One record per generate, in the form of RequestRecord, so that readers of a run take it as a request. Joined with what
the client side recorded by request id where the call carried one (protocol.mark), else by session, length and time
(energy.calls). `response_id` is "<session>/<task>". Pure. May not know: HTTP, files.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from traces.records import RequestRecord

REMEMBERED = 1 << 16
"""tasks whose fills were seen and whose generation was not"""


@dataclass(frozen=True, slots=True)
class TaskKey:
    """Whose call it is: which registration of the engine with a core, and the core's own numbers."""

    incarnation: int
    session_id: int
    task_id: int

    @classmethod
    def of(cls, incarnation: int, body: dict[str, Any]) -> TaskKey:
        """From a fill or generate."""
        return cls(incarnation, int(body.get("session_id", -1)), int(body.get("task_id", -1)))

    @property
    def name(self) -> str:
        """The request id of a call that carries none."""
        return f"parrot-{self.incarnation}-{self.session_id}-{self.task_id}"

    @property
    def workflow(self) -> str:
        """The workflow of a call that nobody else knows."""
        return f"parrot-{self.incarnation}-session-{self.session_id}"

    @property
    def node(self) -> str:
        """Its node there."""
        return f"task-{self.task_id}"

    @property
    def response_id(self) -> str:
        """Session and task, as the record has them."""
        return f"{self.session_id}/{self.task_id}"


class Begun:
    """When each task sent its first fill; a task whose contexts were all there already sends none."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._first: OrderedDict[TaskKey, int] = OrderedDict()

    def fill(self, key: TaskKey, now_ns: int) -> None:
        """A fill came."""
        self._first.setdefault(key, now_ns)
        while len(self._first) > self._limit:
            self._first.popitem(last=False)

    def take(self, key: TaskKey, now_ns: int) -> int:
        """Its generation begins: the instant of its first fill, else now."""
        return self._first.pop(key, now_ns)


def task_record(key: TaskKey, request_id: str, began_ns: int, **seen: Any) -> RequestRecord:
    """The record of one task. seen: fields of RequestRecord; outcome and t_end_ns at least."""
    return RequestRecord(
        request_id=request_id,
        workflow_id=key.workflow,
        node_id=key.node,
        t_arrival_ns=began_ns,
        tag_source="parrot-bridge",
        session_id=str(key.session_id),
        path="/generate",
        api="parrot",
        response_id=key.response_id,
        **seen,
    )
