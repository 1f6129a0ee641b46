"""What the proxy recorded, replayed: the engine's prefix cache finds as much again, without any prompt text kept."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from traces.rundir import RunDir


def joulegraph(*args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "joulegraph", *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tokens(run: Path, journal: str) -> tuple[int, int, int]:
    """Requests that succeeded, their prompt tokens and cached tokens."""
    rows = [row for row in RunDir.open(run).rows(journal) if row["outcome"] == "ok"]
    return len(rows), sum(row["prompt_tokens"] for row in rows), sum(row["cached_tokens"] or 0 for row in rows)


@pytest.mark.parametrize("workload", ["tool-loop"])
def test_cached_tokens_of_a_replayed_workload_come_within_5_percent_come_within_5_percent(
    tmp_path: Path, workload: str
) -> None:
    plan, seen, again = tmp_path / "plan.jsonl", tmp_path / "seen", tmp_path / "again"
    joulegraph("workload", workload, "-o", str(plan), "--count", "4", "--seed", "3")
    joulegraph("replay", str(plan), "--embedded", "h100-llama8b", "--proxy", "--out", str(seen), "--no-report")
    (seen / "trace.jsonl").unlink()  # what was planned must not help: only what the proxy saw is left
    joulegraph("replay", str(seen), "--embedded", "h100-llama8b", "--out", str(again), "--no-report")
    recorded, replayed = tokens(seen, "requests"), tokens(again, "dispatch")
    assert recorded[0] == replayed[0] > 10
    assert recorded[2] > 0.5 * recorded[1]  # there is something to find
    assert replayed[2] == pytest.approx(recorded[2], rel=0.05)


@pytest.mark.parametrize(("kind", "clients"), [("short", "untagged"), ("tools", "tagged"), ("questions", "untagged")])
def test_chats_of_the_openai_client_find_as_much_again(kind: str, clients: str) -> None:
    script = Path(__file__).parents[2] / "scripts" / "replay_cached_tokens.py"
    command = [sys.executable, str(script), kind, "--clients", clients, "--chats", "6", "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    row = orjson.loads(done.stdout)
    assert row["within_bound"] and row["recorded_cached_tokens"] > 0.2 * row["recorded_prompt_tokens"]
    assert row["replayed_prompt_tokens"] == row["recorded_prompt_tokens"]  # to the token
