"""The property tests hold for plain Python too where the installation compiled the hot modules, and every module that
is listed as compiled then is."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from traces import compiled

ROOT = Path(__file__).parents[2]
PROPERTIES = ["relay", "knownheads", "heads", "framing", "splice", "rowline", "exchange", "content", "reply", "tap"]


@pytest.mark.skipif(compiled.FORM != compiled.COMPILED, reason=compiled.FORM)
def test_every_listed_module_is_compiled() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
    for name in listed:
        module = import_module(name.removesuffix(".py").replace("/", "."))
        assert not str(module.__file__).endswith(".py"), name


@pytest.mark.slow
@pytest.mark.skipif(compiled.FORM != compiled.COMPILED, reason=compiled.FORM)
def test_the_property_tests_hold_for_plain_python() -> None:
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in PROPERTIES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *files]
    env = {**os.environ, compiled.SWITCH: "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-3000:]
