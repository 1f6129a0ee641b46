"""Which form of the hot modules runs is decided by what the build left, told in words, and never by half."""

from __future__ import annotations

import sys
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

from traces import compiled

SOURCE = "traces/tags.py"
DIGEST = blake2b((Path(compiled.__file__).parent.parent / SOURCE).read_bytes(), digest_size=16).hexdigest()


def built(monkeypatch: pytest.MonkeyPatch, folder: Path, *, why: str | None, suffix: str, sources: object) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    module = ModuleType("joulegraph_compiled")
    module.__dict__.update(WHY=why, SUFFIX=suffix, SOURCES=sources, __file__=str(folder / "__init__.py"))
    monkeypatch.setitem(sys.modules, "joulegraph_compiled", module)


def test_what_was_compiled_of_these_sources_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built(monkeypatch, tmp_path, why=None, suffix=EXTENSION_SUFFIXES[0], sources={SOURCE: DIGEST})
    assert compiled.decide() == (tmp_path, "compiled")


@pytest.mark.parametrize(
    "why, suffix, sources, said",
    [
        ("no C compiler (cc) at installation", EXTENSION_SUFFIXES[0], {SOURCE: DIGEST}, "no C compiler"),
        (None, ".other-abi.so", {SOURCE: DIGEST}, "compiled for another Python"),
        (None, EXTENSION_SUFFIXES[0], {SOURCE: "0" * 32}, "traces/tags.py has changed since it was compiled"),
        (None, EXTENSION_SUFFIXES[0], {"traces/gone.py": DIGEST}, "traces/gone.py has changed"),
    ],
)
def test_anything_else_is_plain_python_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str | None, suffix: str, sources: object, said: str
) -> None:
    built(monkeypatch, tmp_path, why=why, suffix=suffix, sources=sources)
    where, form = compiled.decide()
    assert where is None
    assert form.startswith("pure python (") and said in form


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built(monkeypatch, tmp_path, why=None, suffix=EXTENSION_SUFFIXES[0], sources={SOURCE: DIGEST})
    monkeypatch.setenv(compiled.SWITCH, "1")
    assert compiled.decide() == (None, "pure python (JOULEGRAPH_PURE is set)")


def test_never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    monkeypatch.setitem(sys.modules, "joulegraph_compiled", None)  # as if it could not be found
    assert compiled.decide() == (None, "pure python (not compiled at installation)")
