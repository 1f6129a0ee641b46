"""Virtual points played side by side: each worker is a process that takes one task after another.

Their figures do not depend on what runs beside them, since virtual time is computed. A worker ignores Ctrl-C (the sweep
decides) and leaves at once when the sweep is gone. May not know: order, outcomes, points in real time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from threading import Thread

from joulegraph.sweep.plan import Slot
from joulegraph.sweep.play import NO_WORD, Task, play_virtual
from traces.child import Child, spawn
from traces.errors import UserError


def worker_process(lifeline: Connection) -> None:
    """Target of traces.child.spawn: for each Task sends None when it was played, or the sentence that says why not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), name="parent", daemon=True).start()
    while True:
        try:
            task = lifeline.recv()
        except EOFError:
            return
        said: str | None = None
        try:
            play_virtual(task)
        except UserError as error:
            said = str(error)
        lifeline.send(said)


@dataclass
class Workers:
    """Up to `most` worker processes, started as they are needed."""

    most: int
    idle: list[Child] = field(default_factory=list)
    busy: dict[int, tuple[Child, Slot]] = field(default_factory=dict)
    """by the worker's pid"""

    def give(self, slot: Slot, task: Task) -> None:
        """Start a point; the caller sees to it that fewer than `most` are under way."""
        child = self.idle.pop() if self.idle else spawn(worker_process, name="sweep worker")
        child.lifeline.send(task)
        self.busy[child.process.pid or 0] = (child, slot)

    def ended(self, timeout_s: float = 1.0) -> list[tuple[Slot, str | None]]:
        """Points that ended meanwhile, with why they did not run (None: they did). Waits for one up to timeout_s."""
        ready = wait([child.lifeline for child, _ in self.busy.values()], timeout_s)
        found = []
        for pid, (child, slot) in list(self.busy.items()):
            if child.lifeline not in ready:
                continue
            del self.busy[pid]
            try:
                said = child.lifeline.recv()
                self.idle.append(child)
            except EOFError:
                said = f"{NO_WORD} (exit code {child.stop(1.0)}); look at its lines above"
            found.append((slot, said))
        return found

    def close(self) -> None:
        """Workers that wait leave; a point still under way is given up (it is run again)."""
        for child in (*self.idle, *(child for child, _ in self.busy.values())):
            child.stop(0.5)
        self.idle, self.busy = [], {}
