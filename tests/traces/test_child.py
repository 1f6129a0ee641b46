"""Children leave when their parent's end of the lifeline closes, also when the parent is killed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from traces.child import spawn

IDLE = """
from threading import Event
from traces.child import on_lifeline_end
def work(lifeline):
    left = Event()
    lifeline.send("ready")
    on_lifeline_end(lifeline, left.set)
    left.wait()
"""
PARENT = """
import sys
from traces.child import spawn
if __name__ == "__main__":
    import idle_child
    child = spawn(idle_child.work, name="idle")
    child.lifeline.recv()
    print(child.process.pid, flush=True)
    sys.stdin.read()
"""


def test_a_child_reports_and_leaves_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "idle_child.py").write_text(IDLE)
    monkeypatch.syspath_prepend(tmp_path)
    child = spawn(importlib.import_module("idle_child").work, name="idle")
    assert child.lifeline.recv() == "ready"
    assert child.process.is_alive()
    assert child.stop() == 0


LATE = """
def work(lifeline):
    lifeline.poll(None)  # the parent leaves while this one still starts
    lifeline.send("ready")
"""
WRONG = """
import os
def work(lifeline):
    read, write = os.pipe()
    os.close(read)
    os.write(write, b"x")
"""


@pytest.mark.parametrize(("code", "exit_code"), [(LATE, 0), (WRONG, 1)])
def test_a_child_whose_parent_left_before_it_could_speak_ends_without_a_word(
    code: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = f"child_{exit_code}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    child = spawn(importlib.import_module(name).work, name="late")
    if exit_code:
        child.process.join()  # a pipe of its own that breaks is a bug, and shown
    assert child.stop() == exit_code
    assert ("BrokenPipeError" in capfd.readouterr().err) == bool(exit_code)


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


def test_kill_9_of_the_parent_leaves_no_orphan(tmp_path: Path) -> None:
    (tmp_path / "idle_child.py").write_text(IDLE)
    leaves_with(PARENT, tmp_path)


def test_nor_does_a_child_that_still_imports(tmp_path: Path) -> None:
    """Under load that takes seconds, in which nothing of the child's own can watch the lifeline yet."""
    (tmp_path / "slow_to_import.py").write_text(SLOW)
    leaves_with(SLOW_PARENT, tmp_path)


def leaves_with(code: str, modules: Path) -> None:
    """The parent tells its child's pid; a kill -9 of the one ends the other."""
    paths = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
    words, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline:
            os.sched_yield()
        assert not alive(pid)
