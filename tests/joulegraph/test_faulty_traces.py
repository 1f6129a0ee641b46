"""A trace with faults is replayed without what is at fault, in any order of rows, and the run says what that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from joulegraph import cli

GOOD = '{{"workflow_id":"w{n}","request_id":"a","timestamp":{ms},"input_length":20,"output_length":2}}\n'
FAULTY = (
    '{"workflow_id":"x","request_id":"a","timestamp":-1,"input_length":20,"output_length":2}\n'
    "{damaged\n"
    '{"workflow_id":"c","request_id":"a","timestamp":3,"input_length":9,"output_length":2,"deps":[{"on":"b"}]}\n'
    '{"workflow_id":"c","request_id":"b","timestamp":3,"input_length":9,"output_length":2,"deps":[{"on":"a"}]}\n'
)
MANIFEST = '{"manifest":{"version":1,"ordered":true}}\n'
EMBEDDED = ("--embedded", "h100-llama8b", "--no-report", "--json")


def trace(folder: Path, head: str = "", order: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    path = folder / "t.jsonl"
    rows = [GOOD.format(n=n, ms=100 * n) for n in order]
    path.write_text(head + "".join(rows[:2]) + FAULTY + "".join(rows[2:]))
    return path


def replayed(path: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert cli.run(["replay", str(path), "--out", str(out), *flags]) == 0
    info: dict[str, Any] = orjson.loads((out / "run.json").read_bytes())
    return info


@pytest.mark.parametrize(
    ("head", "order"), [("", (0, 1, 2, 3)), ("", (3, 1, 0, 2)), (MANIFEST, (0, 1, 2, 3)), (MANIFEST, (0, 1, 3, 2))]
)
def test_what_is_at_fault_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, order: tuple[int, ...]
) -> None:
    path = trace(tmp_path, head, order)
    info = replayed(path, tmp_path / "r", *EMBEDDED)
    said = orjson.loads(capsys.readouterr().out)
    broken_promise = head != "" and order != (0, 1, 2, 3)
    assert (said["requests"], said["state"]) == (4 - broken_promise, "complete")
    assert info["left_out"] == said["left_out"] and info["left_out"]["count"] == 3 + broken_promise
    at = 1 if head else 0
    told = sorted(info["left_out"]["first"])
    assert told[0].startswith(f"t.jsonl:{3 + at}: timestamp is -1")
    assert told[1].startswith(f"t.jsonl:{4 + at}: line is not JSON") and "a -> b -> a" in told[2]
    assert str(tmp_path) not in orjson.dumps(info).decode(), "a run may be published"


def test_strict_refuses_it_and_a_dry_run_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace(tmp_path)
    assert cli.run(["replay", str(path), "--out", str(tmp_path / "r"), *EMBEDDED, "--strict"]) == 2
    assert f"{path}:3: timestamp is -1" in capsys.readouterr().err and not (tmp_path / "r").exists()
    assert cli.run(["replay", str(path), "--dry-run", "--json"]) == 0
    said = orjson.loads(capsys.readouterr().out)
    assert (said["requests"], said["left_out"]["count"]) == (4, 3)


def test_nothing_but_faults_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(FAULTY.partition("\n")[0] + "\n")
    assert cli.run(["replay", str(path), "--out", str(tmp_path / "r"), *EMBEDDED]) == 2
    assert "timestamp is -1" in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.slow
def test_in_real_time_with_shards_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--embedded", "h100-llama8b", "--real-time", "--shards", "2", "--no-report", "--max-lateness", "2000")
    info = replayed(trace(tmp_path), tmp_path / "r", *flags)
    assert info["left_out"]["count"] == 3 and info["load"]["requests"] == 4
    assert "faults of the trace: 3; what they are about was left out" in capsys.readouterr().err
