"""Which form of the hot modules runs: compiled ahead, or the plain Python beside them. And how to say which.

The build (hatch_build.py) puts the compiled form into a package of its own and writes there of which sources it was
made. It runs only while those are the sources that are here, so an edited module is never shadowed by its old self, and
never in part. JOULEGRAPH_PURE=1 in the environment turns it off. May not know: what the modules do.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

COMPILED = "compiled"
SWITCH = "JOULEGRAPH_PURE"
_ROOT = Path(__file__).parent.parent


def decide() -> tuple[Path | None, str]:
    """Where the compiled form is, if it is to run, and what runs, in words."""
    if os.environ.get(SWITCH):
        return None, f"pure python ({SWITCH} is set)"
    try:
        made: Any = import_module("joulegraph_compiled")
    except ImportError:
        return None, "pure python (not compiled at installation)"
    why = made.WHY or _unfit(made.SUFFIX, made.SOURCES)
    if why is not None:
        return None, f"pure python ({why})"
    return Path(made.__file__).parent, COMPILED


def _unfit(suffix: str, sources: dict[str, str]) -> str | None:
    if suffix not in EXTENSION_SUFFIXES:
        return "compiled for another Python"
    for name, wanted in sources.items():
        try:
            found = blake2b((_ROOT / name).read_bytes(), digest_size=16).hexdigest()
        except OSError:
            found = ""
        if found != wanted:
            return f"{name} has changed since it was compiled; install again"
    return None


_WHERE, FORM = decide()


def prefer(package: str, path: list[str]) -> None:
    """Let a package find the compiled form of its modules first, where that is to run."""
    if _WHERE is not None and (_WHERE / package).is_dir():
        path.insert(0, str(_WHERE / package))
