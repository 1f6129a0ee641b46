"""The command line is quick, imports nothing heavy for --help, and speaks in sentences."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from joulegraph import cli
from joulegraph.__main__ import foreign_package

HEAVY = ("aiohttp", "rich", "numpy", "uvloop", "scipy", "pyarrow", "matplotlib")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from joulegraph.cli import run; run(['--help']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "usage: joulegraph COMMAND" in done.stdout


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself_without_heavy_imports(name: str) -> None:
    code = (
        "import sys, contextlib\nfrom joulegraph.cli import run\n"
        f"with contextlib.suppress(SystemExit): run([{name!r}, '--help'])\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert f"usage: joulegraph {name}" in done.stdout


def test_every_part_may_open_as_many_files_as_the_host_allows() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = (
        "import resource, subprocess, sys; from joulegraph.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])); "
        "sys.argv = ['joulegraph', '--version']; main(); sys.stdout.flush(); subprocess.run(['sh', '-c', 'ulimit -Sn'])"
    )
    allowed = python(code).stdout.split()[-1]
    assert int(allowed) == (min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20)


def test_unknown_command_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["dmeo"]) == 2
    assert "unknown command 'dmeo'" in capsys.readouterr().err
    assert cli.run([]) == 2


def test_a_sentence_that_quotes_a_file_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin.jsonl").write_bytes(b"\x00\x1b[2J,\xc3\xa9,b\n1,2,3\n")
    assert cli.run(["trace", "show", str(tmp_path / "bin.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "\\x00\\x1b[2J" in said and "\x1b" not in said and "é" in said


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        ("OSError(28, 'No space left on device', 'r/power.jsonl')", 2, "r/power.jsonl: No space left on device"),
        ("BrokenPipeError(32, 'Broken pipe')", 0, ""),
        ("KeyboardInterrupt", 130, "interrupted"),
        ("KeyboardInterrupt('left; joulegraph finish r')", 130, "joulegraph finish r"),
    ],
)
def test_what_ends_a_command_from_outside(error: str, code: int, word: str) -> None:
    lines = (
        "import sys, joulegraph.commands.top as top; from joulegraph import cli",
        f"def fails(args): raise {error}",
        "top.run = fails",
        "sys.exit(cli.run(['top']))",
    )
    done = python("\n".join(lines))
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_no_package_of_ours_is_shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign_package() is None
    module = importlib.import_module("proxy")
    monkeypatch.setattr(module, "JOULEGRAPH_PACKAGE", "other")
    found = foreign_package()
    assert found is not None
    assert found.startswith("proxy (")
