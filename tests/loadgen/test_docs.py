"""The example in the user documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from traces.trace import write_trace
from traces.workflow import Manifest, Node, Workflow

DOCS = Path(__file__).resolve().parents[2] / "docs" / "loadgen.md"


def test_the_documented_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "trace.jsonl"
    write_trace(path, Manifest(), [Workflow(f"w{i}", (Node(f"w{i}", "a", 0, 10, 5),)) for i in range(600)])
    exec(compile(code, str(DOCS), "exec"), {"path": path})
    assert "'workflows': 500" in capsys.readouterr().out
