"""What run.json keeps of an engine: flags without places."""

from __future__ import annotations

from joulegraph.join.engine import described, flags, told_by


def test_flags_keep_values_and_lose_places() -> None:
    words = ["-m", "vllm.entrypoints", "--host", "127.0.0.1", "--port", "8", "--model", "/m/tiny"]
    words += ["--max-num-seqs", "4", "--enable-x", "--chat-template", "/home/someone/t.jinja", "--load-format=dummy"]
    assert flags(words) == ["--max-num-seqs 4", "--enable-x", "--chat-template t.jinja", "--load-format=dummy"]


def test_a_launched_engine_is_described_without_paths() -> None:
    facts = {"engine": "vllm", "version": "0.32.0", "model": "/m/tiny", "gpus": [], "log": "/tmp/x"}
    assert described(facts) == {"engine": "vllm", "version": "0.32.0", "models": ["tiny"]}
    assert described({**facts, "command": ["-m", "vllm", "--seed", "0"]})["flags"] == ["--seed 0"]


def test_nobody_to_ask() -> None:
    assert told_by(None) is None
    assert told_by("http://127.0.0.1:9") is None
