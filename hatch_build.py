"""What the build does beyond packing: it compiles the hot modules with mypyc where that is possible, and says so.

The wheel holds every module as plain Python; the compiled form of those listed in pyproject.toml lies beside them in
`joulegraph_compiled`, with the digests of the sources it was made of. Without a C compiler or Python's headers, or
where compiling fails, that package says why it is empty, and all runs as plain Python (traces/compiled.py decides).
Nothing is downloaded for it then: mypy is a requirement of the build only where it will be used. An editable install
compiles too. Run as a script it is the compiling process itself. May not know: what the modules do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "joulegraph_compiled"
GROUP = "joulegraph"
"""mypyc puts the code of all modules into one library, GROUP__mypyc"""
PACKAGES = ("traces", "engines", "proxy")
"""what the modules need to be type-checked"""


class CompileHook(BuildHookInterface[Any]):
    """hatchling's hook: hatchling finds it by its base."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """mypyc, where there is a C compiler to make use of it."""
        return [] if obstacle() else ["mypy[mypyc]>=2.4"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what came of it to the wheel."""
        self._made = Path(tempfile.mkdtemp())
        root, modules = Path(self.root), [str(name) for name in self.config["modules"]]
        why = obstacle() or compile_in(self._made, root, modules)
        libraries = [] if why else sorted(self._made.rglob("*" + _suffix()))
        if why:
            self.app.display_warning(f"the hot modules stay plain Python: {why}")
        sources = {name: blake2b((root / name).read_bytes(), digest_size=16).hexdigest() for name in modules}
        told = self._made / "__init__.py"
        told.write_text(_told(why, sources))
        files = {told: f"{PACKAGE}/__init__.py"}
        for library in libraries:
            at = library.relative_to(self._made / "build").as_posix()
            files[library] = f"{PACKAGE}/{at}" if "/" in at else at
        for kind in ("force_include", "force_include_editable"):
            build_data[kind].update({str(source): at for source, at in files.items()})
        if libraries:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is packed."""
        shutil.rmtree(self._made, ignore_errors=True)


def obstacle() -> str | None:
    """Why nothing can be compiled here, or None."""
    if os.environ.get("JOULEGRAPH_PURE"):
        return "JOULEGRAPH_PURE was set at installation"
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is no CPython"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({Path(compiler).name}) at installation"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h at installation (python3-dev)"
    return None


def compile_in(made: Path, root: Path, modules: list[str]) -> str | None:
    """Compile copies of the sources in a process of its own; why that failed, or None."""
    work = made / "work"
    for package in PACKAGES:
        shutil.copytree(root / package, work / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, str(Path(__file__).resolve()), str(made / "build"), *modules]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    sys.stderr.write("\n".join(lines[-20:]) + "\n")
    return f"mypyc failed at installation ({lines[-1][:200]})"


def _told(why: str | None, sources: dict[str, str]) -> str:
    listed = "".join(f"    {name!r}: {value!r},\n" for name, value in sources.items())
    return (
        '"""Made by the build (hatch_build.py): the compiled form of the hot modules, or why there is none."""\n\n'
        f"WHY: str | None = {why!r}\n"
        f"SUFFIX = {_suffix()!r}\n"
        f"SOURCES = {{\n{listed}}}\n"
    )


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _compile(out: str, modules: list[str]) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    flags = ["--config-file=", "--ignore-missing-imports"]
    extensions = mypycify([*flags, *modules], opt_level="1", debug_level="0", group_name=GROUP)
    command = build_ext(Distribution({"name": GROUP, "ext_modules": extensions}))
    command.build_lib = out
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    _compile(sys.argv[1], sys.argv[2:])
