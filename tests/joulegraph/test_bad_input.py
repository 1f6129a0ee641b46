"""Bad input gets one sentence and exit code 2; nothing is started, nothing is lost."""

from __future__ import annotations

import gzip
import socket
from pathlib import Path

import pytest

from joulegraph import cli

ROW = b'{"timestamp": 0, "input_length": 20, "output_length": 2, "hash_ids": [0]}\n'


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(ROW * 3)
    return path


def said(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The sentence on stderr of a command that must fail with exit code 2."""
    code = cli.run(argv)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_not_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\x7fELF\x00\x01 nothing")
    assert str(path) in said(capsys, ["replay", str(path), "--embedded", "h100-llama8b", "--out", str(tmp_path / "r")])
    assert not (tmp_path / "r").exists()


def test_missing_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gone.jsonl" in said(capsys, ["replay", str(tmp_path / "gone.jsonl"), "--embedded", "h100-llama8b"])


def test_truncated_gzip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl.gz"
    rows = b"".join(ROW.replace(b"20", b"%d" % (20 + i * 7919 % 1000)) for i in range(5000))
    path.write_bytes(gzip.compress(rows)[:-2000])
    out = str(tmp_path / "r")
    assert "fetch or write the file again" in said(
        capsys, ["replay", str(path), "--embedded", "h100-llama8b", "--no-report", "--out", out]
    )


def test_unknown_profile(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, ["replay", str(trace), "--embedded", "h900", "--out", str(tmp_path / "r")])
    assert "h900" in err
    assert "h100-llama8b" in err


def test_unwritable_out(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    out = str(tmp_path / "file" / "r")
    assert "cannot create the run directory" in said(
        capsys, ["replay", str(trace), "--embedded", "h100-llama8b", "--out", out]
    )


def test_a_run_is_not_overwritten(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text("{}")
    argv = ["replay", str(trace), "--embedded", "h100-llama8b", "--out", str(tmp_path / "r")]
    assert "already holds a run" in said(capsys, argv)


def test_unreachable_target(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        err = said(capsys, ["replay", str(trace), "--target", url, "--out", str(tmp_path / "r")])
    assert url in err
    assert "no engine answers there" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--target", "nonsense"], "not an http:// or https:// address"),
        (["--target", "ftp://x"], "http"),
        (["--target", "http://127.0.0.1:99999"], "http://127.0.0.1:99999"),
        (["--target", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["--target", "http://127.0.0.1:1", "--engine-steps", "gone.jsonl"], "gone.jsonl: no such file"),
        (["--target", "http://127.0.0.1:1", "--max-num-seqs", "4"], "--max-num-seqs: has no effect without --embedded"),
        (
            ["--target", "http://127.0.0.1:1", "--max-num-batched-tokens", "64"],
            "--max-num-batched-tokens: has no effect",
        ),
        (["--target", "http://127.0.0.1:1", "--max-model-len", "64"], "--max-model-len: has no effect"),
        (["--target", "http://127.0.0.1:1", "--no-prefix-caching"], "--no-prefix-caching: has no effect"),
    ],
)
def test_impossible_targets(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], word: str
) -> None:
    assert word in said(capsys, ["replay", str(trace), "--out", str(tmp_path / "r"), *flags])
    assert not (tmp_path / "r").exists()


def test_an_import_without_a_node_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "dispatch.0.jsonl").write_bytes(b"\x7fELF\x00\x01 nothing\n")
    out = tmp_path / "o.jsonl"
    assert cli.run(["trace", "import", str(run), "-o", str(out)]) == 2
    assert f"{run}: recorded no request that can be replayed" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--speed", "0"], "--speed 0"),
        (["--arrivals", "poison:1"], "poison"),
        (["--arrivals", "poisson:fast"], "poisson:fast"),
        (["--arrivals", "poisson"], "RATE is a number"),
        (["--target", "http://127.0.0.1:1"], "exactly one"),
        (["--from", "1e9"], "widen the window"),
        (["--shards", "3"], "--real-time"),
        (["--insecure"], "--insecure: has no effect"),
        (["--ca-file", "x.pem"], "--ca-file: has no effect"),
        (["--engine-steps", "x"], "--engine-steps: has no effect"),
        (["--sm-clock", "1000"], "--sm-clock: has no effect without --target URL"),
        (["--otlp-port", "4318"], "--otlp-port: has no effect"),
        (["--sources", "rapl"], "--sources: has no effect"),
        (["--model", "m"], "--model: has no effect"),
        (["--think", "3"], "--think: has no effect without --users N"),
        (["--cancel-after", "3"], "--cancel-after: has no effect without --cancel SHARE"),
        (["--criteria", "latency"], "--criteria: has no effect without --api parrot"),
        (["--scheduling", "app_fifo"], "--scheduling: has no effect"),
        (["--tasks-capacity", "2"], "--tasks-capacity: has no effect"),
        (["--chunk-ms", "2"], "--chunk-ms: has no effect"),
        (["--engines", "2"], "--engines: has no effect"),
        (["--users", "2", "--arrivals", "poisson:1"], "--arrivals: has no effect on users"),
        (["--users", "2", "--idle-cap", "1"], "--idle-cap: has no effect on users"),
        (["--prompts", "words", "--vocab", "1:9"], "--vocab: has no effect without --prompts ids"),
        (["--users", "2", "--dry-run"], "--dry-run: users in a closed loop"),
    ],
)
def test_impossible_flags(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], word: str
) -> None:
    argv = ["replay", str(trace), "--embedded", "h100-llama8b", "--out", str(tmp_path / "r"), *flags]
    assert word in said(capsys, argv)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--tls-key", "k.pem"], "--tls-cert"),
        (["--upstream-ca", "ca.pem"], "https"),
        (["--source", "nvml"], "--sample"),
        (["--parrot-native"], "--engine parrot"),
        (["--parrot-deadline", "5"], "--engine parrot"),
        (["--allow", "v1/rerank"], "--allow v1/rerank"),
        (["--allow", "/v1/../x"], "--allow /v1/../x"),
    ],
)
def test_a_proxy_flag_that_would_do_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], word: str
) -> None:
    argv = ["proxy", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--record", str(tmp_path / "r")]
    assert word in said(capsys, [*argv, *flags])
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["gone.parquet", "gone.jsonl"])
@pytest.mark.parametrize("command", ["check", "show"])
def test_a_trace_that_is_not_there(capsys: pytest.CaptureFixture[str], command: str, name: str) -> None:
    sentence = said(capsys, ["trace", command, name])
    assert name in sentence and "o such file" in sentence and "check the path" in sentence


def test_finish_wants_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run directory" in said(capsys, ["finish", str(tmp_path)])


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["vllm", "--model", "m", "--power-cap", "300"], "--power-cap: has no effect on vllm"),
        (["vllm", "--model", "m", "--api-key", "k"], "vLLM's own flags come after --"),
        (["xllamacpp", "--no-enable-prefix-caching"], "--no-enable-prefix-caching: has no effect on xllamacpp"),
        (["xllamacpp", "--max-num-seqs", "-3"], "--max-num-seqs is -3; give at least 1"),
        (["embedded", "--steps", "f"], "--steps: has no effect on embedded"),
        (["--model", "m"], "--model: has no effect on embedded"),
        (["attach", "http://127.0.0.1:1", "--max-num-seqs", "4"], "--max-num-seqs: has no effect on attach"),
        (["--max-model-len", "0"], "--max-model-len is 0; give at least 1"),
    ],
)
def test_a_flag_of_another_engine(capsys: pytest.CaptureFixture[str], argv: list[str], word: str) -> None:
    assert word in said(capsys, ["engine", *argv])
