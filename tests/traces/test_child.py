"""Children leave when their parent's end of the lifeline closes, also when the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from traces.child import idle_child, spawn


def test_a_child_reports_and_leaves_with_its_parent() -> None:
    child = spawn(idle_child, name="idle")
    assert child.lifeline.recv() == "ready"
    assert child.process.is_alive()
    assert child.stop() == 0


PARENT = """
import sys
from traces.child import idle_child, spawn
if __name__ == "__main__":
    child = spawn(idle_child, name="idle")
    child.lifeline.recv()
    print(child.process.pid, flush=True)
    sys.stdin.read()
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_kill_9_of_the_parent_leaves_no_orphan() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline:
            os.sched_yield()
    assert not alive(pid)
