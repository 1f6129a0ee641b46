"""joulegraph trace: exit codes, one JSON line on stdout, sentences on stderr."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest

from joulegraph.cli import run


def lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def test_check_show_import_of_the_mooncake_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = data / "traces/mooncake/conversation_trace.jsonl", tmp_path / "m.parquet"
    assert run(["trace", "check", str(source), "--json"]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert orjson.loads(line) | {"file": ""} == {
        "file": "",
        "valid": True,
        "faults": 0,
        "rows": 12_031,
        "workflows": 12_031,
        "edges": 0,
    }
    assert run(["trace", "import", str(source), "-o", str(out), "--json"]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert orjson.loads(line)["time_quantum_ms"] == 3000
    assert run(["trace", "show", str(out), "--json"]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert orjson.loads(line)["requests"] == 12_031
    assert run(["trace", "show", str(out)]) == 0
    assert "multiples of 3000 ms" in capsys.readouterr().out


def test_faults_go_to_stderr_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"timestamp": -4, "input_length": 1, "output_length": 1, "inputlength": 3}\n' * 5)
    assert run(["trace", "check", str(path), "--bound", "2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{path}:1: timestamp is -4" in said.err
    assert "3 more faults" in said.err
    assert "'inputlength' (5 rows) is not part of the format" in said.err
    assert run(["trace", "check", str(path), "--json"]) == 2
    (line,) = lines(capsys.readouterr().out)
    assert orjson.loads(line)["faults"] == 5


@pytest.mark.parametrize("action", [["check"], ["show"], ["import", "-o", "OUT"]])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", b"not a trace\n"),
        ("t.jsonl.gz", gzip.compress(b'{"timestamp":1,"input_length":1,"output_length":1}\n' * 9999, mtime=0)[:-30]),
        ("t.csv", b"TIMESTAMP,ContextTokens,Tokens\n1,2,3\n"),
        ("t.parquet", b"PAR1"),
        ("t.jsonl", b""),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: list[str], name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    args = [str(tmp_path / "out.jsonl") if a == "OUT" else a for a in action]
    assert run(["trace", args[0], str(path), *args[1:]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (sentence,) = lines(said.err)
    assert sentence.startswith(f"joulegraph: {path}")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_out_must_be_a_trace_name_and_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"timestamp":1,"input_length":1,"output_length":1}\n')
    assert run(["trace", "import", str(path), "-o", str(tmp_path / "x.txt")]) == 2
    assert "unknown suffix" in capsys.readouterr().err
    assert run(["trace", "import", str(path), "-o", str(path)]) == 2
    assert "the source itself" in capsys.readouterr().err


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "formats"]) == 0
    assert {"mooncake", "azure"} <= {line.split()[0] for line in lines(capsys.readouterr().out)}


@pytest.mark.parametrize(
    ("name", "out", "nodes", "edges"),
    [
        ("otlp", "x.otlp.jsonl", 390, 390),
        ("agentic_mooncake", "x.jsonl", 390, 390),
        ("mooncake", "x.jsonl.gz", 390, 0),
        ("wfformat", "folder", 390, 390),
    ],
)
def test_agent_sessions_go_out_and_come_back(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, out: str, nodes: int, edges: int
) -> None:
    target = tmp_path / out
    assert (
        run(["trace", "export", str(data / "traces/weka-claude-code"), "-o", str(target), "--format", name, "--json"])
        == 0
    )
    said = capsys.readouterr()
    (line,) = lines(said.out)
    found = orjson.loads(line)
    assert (found["workflows"], found["format"]) == (10, name)
    assert [f"{name}: {sentence}" for sentence in found["lost"]] == lines(said.err)
    assert run(["trace", "import", str(target), "-o", str(tmp_path / "back.parquet"), "--json"]) == 0
    back = orjson.loads(capsys.readouterr().out)
    assert (back["nodes"], back["edges"]) == (nodes, edges)
    assert run(["trace", "check", str(tmp_path / "back.parquet")]) == 0


def test_export_says_what_it_cannot(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(data / "traces/weka-claude-code")
    assert run(["trace", "export", source, "-o", str(tmp_path / "x"), "--format", "yaml"]) == 2
    assert "--format yaml: not known" in capsys.readouterr().err
    assert run(["trace", "export", source, "-o", str(tmp_path / "x.json"), "--format", "wfformat"]) == 2
    assert "one file holds one workflow" in capsys.readouterr().err
    assert run(["trace", "export", source, "-o", str(tmp_path / "x.json"), "--format", "wfformat", "--limit", "1"]) == 0


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("servegen/m-large-chunk-1-trace.csv", "--start and --duration"),
        ("otel-genai-fixtures/otlp-proto-example-trace.json", "holds no request"),
    ],
)
def test_a_source_without_a_workflow_is_an_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, remedy: str
) -> None:
    out = tmp_path / "t.jsonl"
    assert run(["trace", "import", str(data / "traces" / source), "-o", str(out)]) == 2
    assert remedy in capsys.readouterr().err and not out.exists()
