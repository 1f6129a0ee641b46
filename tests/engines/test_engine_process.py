"""The engine as a process: ready through its lifeline, journals closed at the end, one sentence on failure."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.embedded.process import EngineConfig, engine_process
from engines.embedded.replica import FORGIVE_NS
from engines.embedded.server import EngineOptions
from engines.embedded.types import Limits
from traces.child import spawn
from traces.journal import JournalReader
from traces.status import StatusReader

from .conformance.wire import fetch

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "joulegraph", "engine", *options]


def test_a_spawned_engine_serves_publishes_and_closes_its_journals(tmp_path: Path) -> None:
    config = EngineConfig(
        EngineOptions(tick_ns=5_000_000),
        truth=tmp_path / "truth.jsonl",
        steps=tmp_path / "engine.jsonl",
        status=tmp_path / "engine.status",
    )
    child = spawn(engine_process, config, name="engine")
    port = child.lifeline.recv()
    body = {"prompt": [1, 2, 3], "max_tokens": 20, "ignore_eos": True}
    usage = fetch("127.0.0.1", port, "/v1/completions", body, headers={"X-Request-Id": "one"}).json["usage"]
    assert usage["completion_tokens"] == 20
    page = StatusReader(config.status or Path())
    first = page.get("sim.gpu0.energy.value")
    until = time.monotonic() + 5
    while page.get("sim.gpu0.energy.value") == first:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert abs(time.monotonic_ns() - page.get("sim.gpu0.energy.t_ns")) < 2_000_000_000
    assert child.stop() == 0
    rows = list(JournalReader(tmp_path / "truth.jsonl"))
    assert [row["request_id"] for row in rows[:4]] == ["one"] * 4
    totals = {row["component"]: row for row in rows if row.get("kind") == "totals"}
    assert all(t["active_uj"] + t["idle_uj"] == t["total_uj"] for t in totals.values())
    lines = list(JournalReader(tmp_path / "engine.jsonl"))
    steps = [row for row in lines if row["kind"] == "step"]
    assert len(steps) == 20
    lag = [row["values"] for row in lines if row["kind"] == "lag"]
    assert sum(row["steps"] for row in lag) == 20
    assert all(row["lag_ns_max"] > 0 for row in lag)


def test_steps_take_their_modelled_time_on_the_whole(tmp_path: Path) -> None:
    """Small delays of Python do not pile up: 200 steps end where the model says, within one of them."""
    config = EngineConfig(steps=tmp_path / "engine.jsonl")
    child = spawn(engine_process, config, name="engine")
    port = child.lifeline.recv()
    body = {"prompt": [1], "max_tokens": 200, "ignore_eos": True}
    times = fetch("127.0.0.1", port, "/v1/completions", body).json["metrics"]
    assert child.stop() == 0
    rows = [row["values"] for row in JournalReader(tmp_path / "engine.jsonl") if row["kind"] == "lag"]
    assert sum(row["steps"] for row in rows) == 200
    # One sequence of this profile takes 6.5055 ms a step. A stall of the machine past FORGIVE_NS is kept, not made up.
    stalls = sum(row["lag_ns_max"] for row in rows if row["lag_ns_max"] > FORGIVE_NS) / 1e6
    assert abs(times["generation_time_ms"] - 199 * 6.5055) < FORGIVE_NS / 1e6 + 10 * stalls


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        child = spawn(engine_process, EngineConfig(port=port), name="engine")
        said = child.lifeline.recv()
        assert isinstance(said, str)
        assert said.startswith(f"cannot listen on 127.0.0.1:{port}")
        assert child.stop() == 2
        done = subprocess.run(command("--port", str(port)), capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith(f"joulegraph: cannot listen on 127.0.0.1:{port}")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "nope"], "profile 'nope' not found"),
        (["--max-num-seqs", "0"], "--max-num-seqs is 0"),
        (["--max-num-seqs", "300", "--max-num-batched-tokens", "100"], "max_num_batched_tokens (100) is below"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0: without a key everyone could use it; give --api-key KEY"),
        (["vllm", "--host", "0.0.0.0", "--model", "m"], "without a key everyone could use it; give vLLM its own"),
        (["xllamacpp", "--host", "0.0.0.0"], "without a key everyone could use it; bind 127.0.0.1"),
        (["--truth", "/proc/nowhere"], "/proc/nowhere: cannot make the directory"),
        (["--status", "/proc/nowhere/page"], "/proc/nowhere/page: cannot write the status page"),
    ],
)
def test_impossible_options_are_one_sentence(options: list[str], words: str) -> None:
    done = subprocess.run(command("--port", "0", *options), capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_sigterm_drains_the_command(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("--port", "0", "--truth", str(tmp_path), "--served-model-name", "m"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        assert process.stderr is not None
        line = process.stderr.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        body = b'{"prompt": [1], "max_tokens": 150, "ignore_eos": true, "stream": true}'
        with socket.create_connection(("127.0.0.1", port)) as sock:
            head = (
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            )
            sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            got = sock.recv(65_536)
            os.kill(process.pid, signal.SIGTERM)
            while piece := sock.recv(65_536):
                got += piece
        assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert process.wait(20) == 0
    assert [row for row in JournalReader(tmp_path / "truth.jsonl") if row.get("kind") == "totals"]


def test_limits_reach_the_engine() -> None:
    options = EngineOptions(limits=Limits(served_model_name="m", max_model_len=100, kv_blocks=4))
    child = spawn(engine_process, EngineConfig(options), name="engine")
    port = child.lifeline.recv()
    (row,) = fetch("127.0.0.1", port, "/v1/models").json["data"]
    assert (row["id"], row["max_model_len"]) == ("m", 64)
    assert child.stop() == 0
