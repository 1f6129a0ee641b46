"""`joulegraph workload`: what it writes reads back; the documented example is a workload; bad input is one sentence."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import orjson
import pytest

from joulegraph import cli
from traces.trace import read_trace, workflows

DOCS = Path(__file__).resolve().parents[2] / "docs" / "workloads.md"


def run(*words: object) -> int:
    return cli.run(["workload", *map(str, words)])


def test_the_demo_preset_reads_back_as_it_was_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo.jsonl"
    assert run("composite", "--preset", "demo", "--seed", 3, "-o", out, "--json") == 0
    said = orjson.loads(capsys.readouterr().out)
    read = list(workflows(out))
    assert said["classes"] == Counter(w.class_name for w in read) and len(said["classes"]) == 4
    assert said["requests"] == sum(len(w.nodes) for w in read)
    manifest = read_trace(out).manifest
    assert manifest.block_size == 16 and "--preset demo --seed 3" in (manifest.source or "")
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_options_reach_the_trace_in_every_format(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"t{suffix}"
    options = (
        "--count",
        6,
        "--rate",
        2,
        "--cv",
        0,
        "--users",
        3,
        "--scale",
        0.5,
        "--api",
        "chat",
        "--model",
        "m",
        "--no-stream",
    )
    assert run("agentic", "--param", "files=2", "--param", "rounds=1", *options, "--block-size", 32, "-o", out) == 0
    read = list(workflows(out))
    assert [w.arrival_ns for w in read] == [i * 500_000_000 for i in range(6)]
    assert {len(w.nodes) for w in read} == {1 + 2 + 4}
    node = read[0].nodes[0]
    assert (node.input_length, node.output_length, node.api, node.model, node.stream) == (91, 353, "chat", "m", False)
    assert {n.session_id for w in read for n in w.nodes} == {"user-0", "user-1", "user-2"}
    assert read_trace(out).manifest.block_size == 32


def test_presets_of_several_classes_scale_and_take_parameters_by_class(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    assert run("composite", "--preset", "parrot-fig18", "--count", 98, "--param", "chat.output=7", "-o", out) == 0
    read = list(workflows(out))
    assert Counter(w.class_name for w in read) == {"chat": 80, "map-reduce": 18}
    assert {n.output_length for w in read for n in w.nodes if n.agent_id == "chat"} == {7}


def test_the_example_in_the_docs_works_as_file_and_as_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    (tmp_path / "telephone.py").write_text(blocks[0])
    out = tmp_path / "t.jsonl"
    assert run(f"{tmp_path}/telephone.py:telephone", "--param", "players=6", "--count", 5, "-o", out) == 0
    read = list(workflows(out))
    assert [len(w.nodes) for w in read] == [7] * 5 and {w.class_name for w in read} == {"telephone"}
    kinds = {d.kind for n in read[0].nodes for d in n.deps}
    assert kinds == {"data", "conversation"}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {"__name__": "example"})
    assert Counter(w.class_name for w in workflows(tmp_path / "telephone.jsonl")) == {"telephone": 50, "chat": 20}


def test_the_commands_in_the_docs_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "telephone.py").write_text(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)[0])
    commands = re.findall(r"^joulegraph workload (.*)$", DOCS.read_text(), re.M)
    assert len(commands) >= 4
    for command in commands:
        assert run(*command.split()) == 0


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    text = capsys.readouterr().out
    for words in (
        "sequential",
        "plan-execute",
        "composite",
        "--preset parrot-fig17",
        "coder_guide=2275",
        "Ours:",
        "lognormal",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 125


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("chat",), "-o FILE"),
        (("nothing", "-o", "x.jsonl"), "choose one of"),
        (("chat", "--preset", "none", "-o", "x.jsonl"), "--preset"),
        (("chat", "--param", "prompt", "-o", "x.jsonl"), "KEY=VALUE"),
        (("chat", "--param", "size=3", "-o", "x.jsonl"), "'size' is unknown"),
        (("chat", "--count", "0", "-o", "x.jsonl"), "--count is 0"),
        (("chat", "--block-size", "0", "-o", "x.jsonl"), "--block-size"),
        (("composite", "--preset", "demo", "--param", "files=3", "-o", "x.jsonl"), "before a dot"),
        (("sequential", "--preset", "parrot-fig12a", "--rate", "0", "-o", "x.jsonl"), "--rate"),
        (("gone.py:f", "-o", "x.jsonl"), "no such file"),
        (("here.py:g", "-o", "x.jsonl"), "no function 'g'"),
        (("chat", "-o", "no/such/dir/x.jsonl"), "no/such/dir"),
    ],
)
def test_bad_input_is_one_sentence_and_no_file(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("def f(flow):\n    pass\n")
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "x.jsonl").exists()
