"""Children leave when their parent's end of the lifeline closes, also when the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


SLOW = """
import multiprocessing, os, time
def work(lifeline):
    pass
if multiprocessing.parent_process() is not None:
    print(os.getpid(), flush=True)
    time.sleep(30)
"""
SLOW_PARENT = """
import sys
from traces.child import spawn
if __name__ == "__main__":
    import slow_to_import
    spawn(slow_to_import.work, name="slow")
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
        leaves_with(parent)


def test_nor_does_a_child_that_still_imports(tmp_path: Path) -> None:
    """Under load that takes seconds, in which nothing of the child's own can watch the lifeline yet."""
    (tmp_path / "slow_to_import.py").write_text(SLOW)
    words = [sys.executable, "-c", SLOW_PARENT]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as parent:
        leaves_with(parent)


def leaves_with(parent: subprocess.Popen[bytes]) -> None:
    """The parent tells its child's pid; a kill -9 of the one ends the other."""
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        os.sched_yield()
    assert not alive(pid)
