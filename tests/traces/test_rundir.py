"""Run directories: created once, opened with a sentence when they are not one, run.json replaced whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.errors import UserError
from traces.rundir import RunDir


def test_writers_have_a_file_each_and_readers_merge(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r")
    for worker in ("1", "0"):
        writer = run.writer("requests", worker, mono_ns=0, wall_ns=0)
        writer.write({"worker": worker})
        writer.close()
    assert [p.name for p in run.journals("requests")] == ["requests.0.jsonl", "requests.1.jsonl"]
    assert [r["worker"] for r in run.rows("requests")] == ["0", "1"]
    run.update_info(state="complete")
    assert RunDir.open(tmp_path / "r").info["state"] == "complete"


def test_misuse_is_a_sentence(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "r")
    with pytest.raises(UserError, match="already holds a run"):
        RunDir.create(tmp_path / "r")
    with pytest.raises(UserError, match="not a run directory"):
        RunDir.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot create"):
        RunDir.create(tmp_path / "file" / "r")
    (tmp_path / "r" / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        _ = RunDir.open(tmp_path / "r").info
