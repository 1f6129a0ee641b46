"""joulegraph calibrate: an invalid run makes no profile that looks like a good one."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from joulegraph import cli
from traces.rundir import RunDir


@pytest.mark.slow
def test_an_invalid_run_is_refused_or_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "profile.json"
    assert cli.run(["import-run", str(data / "power" / "h100-vllm-llama8b"), "-o", str(run)]) == 0
    RunDir.open(run).update_info(state="invalid", why="p99 lateness 80 ms, at most 5 wanted")
    assert cli.run(["calibrate", "--runs", str(run), "-o", str(out)]) == 2
    assert "the run is invalid (p99 lateness 80 ms, at most 5 wanted); no profile is saved" in capsys.readouterr().err
    assert not out.exists()
    assert cli.run(["calibrate", "--runs", str(run), "-o", str(out), "--allow-invalid"]) == 0
    profile = orjson.loads(out.read_bytes())
    assert profile["name"] == "run (of an invalid run)"
    assert "invalid: run (p99 lateness" in profile["provenance"]
    RunDir.open(run).update_info(state="complete")
    assert cli.run(["calibrate", "--runs", str(run), "-o", str(out)]) == 0
    assert "invalid" not in orjson.loads(out.read_bytes())["provenance"]
