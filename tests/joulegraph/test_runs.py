"""Whole runs as a user starts them: replay in virtual time, demo in real time, interruption, kill -9 and finish."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import orjson
import pytest

from traces.trace import write_trace
from traces.workloads import Stream, generate, manifest

PROFILE = "h100-llama8b"


def joulegraph(*argv: str, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "joulegraph", *argv],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON line on stdout."""
    assert done.stdout.count("\n") == 1, done.stderr
    row = orjson.loads(done.stdout)
    assert isinstance(row, dict)
    return row


def closes(row: dict[str, Any]) -> None:
    """The ledger adds up to the counter, exactly."""
    parts = ("attributed_uj", "idle_uj", "tail_uj", "foreign_uj", "unmeasured_uj")
    assert sum(row[name] for name in parts) == row["measured_uj"]
    assert row["closure_uj"] == 0
    assert row["measured_uj"] > 0


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small agentic and interactive mix: diamonds, barriers, shared prefixes."""
    path = tmp_path_factory.mktemp("trace") / "mix.jsonl"
    streams = [
        Stream("agentic", count=3, params={"files": 2, "rounds": 1}, rate=0.5),
        Stream("interactive", count=12, params={"prefix": 256, "query": "20-80", "output": "10-60"}, rate=2.0),
    ]
    write_trace(path, manifest("test"), list(generate(streams, seed=3)))
    return path


def raw_delta_uj(run: Path, source: str) -> int:
    """Last minus first raw counter reading in the power journals."""
    values = [
        row["value"]
        for path in sorted(run.glob("power*.jsonl"))
        for line in path.read_bytes().splitlines()
        if (row := orjson.loads(line)).get("source") == source and row.get("value") is not None and "t0_ns" in row
    ]
    return int(values[-1] - values[0])


@pytest.mark.parametrize("proxied", [False, True])
def test_virtual_replay_is_exact_and_the_same_every_time(trace: Path, tmp_path: Path, proxied: bool) -> None:
    rows = []
    for name in ("a", "b"):
        flags = ["--proxy"] if proxied else []
        out = str(tmp_path / name)
        done = joulegraph("replay", str(trace), "--embedded", PROFILE, "--out", out, "--no-report", "--json", *flags)
        assert done.returncode == 0, done.stderr
        rows.append(summary(done))
    first = rows[0]
    closes(first)
    assert first["classes"] == {"agentic": 3, "interactive": 12}
    assert (first["errors"], first["rejected"]) == (0, 0)
    assert first["measured_uj"] == raw_delta_uj(tmp_path / "a", "sim.gpu0.energy")
    assert first["truth_error"]["median"] < 0.2
    varying = ("run", "wall_s")
    assert {k: v for k, v in rows[0].items() if k not in varying} == {
        k: v for k, v in rows[1].items() if k not in varying
    }
    journal = (tmp_path / "a" / "dispatch.0.jsonl").read_bytes()
    assert journal == (tmp_path / "b" / "dispatch.0.jsonl").read_bytes()
    usage = [orjson.loads(line) for line in journal.splitlines()[1:]]
    assert all(u["prompt_tokens"] == u["planned_input_tokens"] for u in usage if u.get("kind", "llm") == "llm")


def test_rows_beyond_the_context_are_rejected_not_errors(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    row = b'{"timestamp": %d, "input_length": %d, "output_length": 4, "hash_ids": []}\n'
    path.write_bytes(b"".join(row % (i * 100, 100 if i % 2 else 9000) for i in range(10)))
    flags = ["--max-model-len", "4096", "--out", str(tmp_path / "r"), "--no-report", "--json"]
    done = joulegraph("replay", str(path), "--embedded", PROFILE, *flags)
    assert done.returncode == 0, done.stderr
    row_out = summary(done)
    assert (row_out["requests"], row_out["rejected"], row_out["errors"]) == (10, 5, 0)
    closes(row_out)


def test_a_recording_is_a_trace_again(trace: Path, tmp_path: Path) -> None:
    first = joulegraph(
        "replay", str(trace), "--embedded", PROFILE, "--proxy", "--out", str(tmp_path / "a"), "--no-report", "--json"
    )
    again = joulegraph(
        "replay", str(tmp_path / "a"), "--embedded", PROFILE, "--out", str(tmp_path / "b"), "--no-report", "--json"
    )
    assert again.returncode == 0, again.stderr
    assert summary(again)["requests"] == summary(first)["requests"]
    assert summary(again)["errors"] == 0


def test_dry_run_sends_nothing(trace: Path, tmp_path: Path) -> None:
    done = joulegraph("replay", str(trace), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert summary(done)["workflows"] == 15


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for another process without taking the processor from it."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        Event().wait(0.02)


def under_way(process: subprocess.Popen[bytes], run: Path) -> bool:
    """Whether some requests of a run that goes on are in its journal."""
    assert process.poll() is None
    journal = run / "dispatch.0.jsonl"
    return journal.exists() and journal.read_bytes().count(b"\n") > 4


@pytest.fixture
def running(trace: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real-time replay under way, some requests done."""
    argv = ["replay", str(trace), "--embedded", PROFILE, "--real-time", "--proxy", "--speed", "0.2", "--no-report"]
    process = subprocess.Popen(
        [sys.executable, "-m", "joulegraph", *argv, "--out", str(tmp_path / "r")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: under_way(process, tmp_path / "r"), 60)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.mark.slow
def test_after_kill_9_finish_completes_the_run_and_no_child_is_left(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.wait()
    until(lambda: not any(_alive(pid) for pid in children), 20)
    assert not [pid for pid in children if _alive(pid)]
    done = joulegraph("finish", str(tmp_path / "r"), "--json")
    assert done.returncode == 0, done.stderr
    row = summary(done)
    assert row["state"] == "interrupted"
    assert row["requests"] > 0
    closes(row)


@pytest.mark.slow
def test_first_ctrl_c_drains_and_saves(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    assert running.wait(60) == 130
    info = orjson.loads((tmp_path / "r" / "run.json").read_bytes())
    assert info["state"] == "interrupted"
    assert info["load"]["errors"] == 0
    closes(orjson.loads((tmp_path / "r" / "summary.json").read_bytes()))


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_in_virtual_time_too_the_first_drains_and_the_second_leaves(
    tmp_path: Path, number: signal.Signals, times: int
) -> None:
    path = tmp_path / "long.jsonl"
    params = {"prefix": 256, "query": "20-80", "output": "100-200"}
    write_trace(
        path, manifest("test"), generate([Stream("interactive", count=4_000, params=params, rate=10.0)], seed=1)
    )
    argv = ["replay", str(path), "--embedded", PROFILE, "--no-report", "--out", str(tmp_path / "r")]
    with subprocess.Popen(
        [sys.executable, "-m", "joulegraph", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: under_way(process, tmp_path / "r"), 60)  # type: ignore[arg-type]
        process.send_signal(number)
        assert process.stderr is not None
        said = ""
        while times == 2 and "draining" not in said and (line := process.stderr.readline()):
            said += line
        if times == 2:
            process.send_signal(number)
        said += process.stderr.read()
    assert process.returncode == 130, said
    info = orjson.loads((tmp_path / "r" / "run.json").read_bytes())
    assert info["state"] == "interrupted"
    if times == 1:
        assert 0 < info["load"]["requests"] < 4_000
        closes(orjson.loads((tmp_path / "r" / "summary.json").read_bytes()))
    else:
        assert f"joulegraph finish {tmp_path / 'r'} completes it" in said
        done = joulegraph("finish", str(tmp_path / "r"), "--json")
        assert done.returncode == 0, done.stderr
        closes(summary(done))


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_demo_ends_in_time_with_books_that_close(tmp_path: Path) -> None:
    done = joulegraph("demo", "--out", str(tmp_path / "r"), "--json")
    row = summary(done)
    if done.returncode == 1:  # a machine too busy for the generator's bounds says so; the books close all the same
        assert row["state"] == "invalid"
        assert "p99" in row["why"]
    else:
        assert done.returncode == 0, done.stderr
        assert row["truth_error"]["median"] < 0.2
    closes(row)
    assert row["requests"] >= 200
    assert set(row["classes"]) == {"sequential", "interactive", "agentic", "composite"}
    assert row["unmeasured_uj"] <= 0.01 * row["measured_uj"]
    assert row["measured_uj"] == raw_delta_uj(tmp_path / "r", "sim.gpu0.energy")
    assert row["wall_s"] < 60
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000
