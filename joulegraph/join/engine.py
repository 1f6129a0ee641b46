"""What run.json says of a real engine: kind, version, model, and of a launched one its flags and GPUs.

Paths are left out, because a run directory may be published. May not know: how engines are started.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.errors import UserError

_SAID = ("engine", "distribution", "version", "gpus", "iteration_stream", "lacks")
_ELSEWHERE = ("-m", "--host", "--port", "--model")
"""flags that say where, or what stands beside them here"""


def described(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a launched or attached engine, fit for run.json."""
    out = {name: facts[name] for name in _SAID if facts.get(name)}
    models = [facts["model"]] if facts.get("model") else facts.get("models") or []
    out["models"] = [Path(str(name)).name for name in models]
    if facts.get("command"):
        out["flags"] = flags([str(word) for word in facts["command"]])
    return out


def flags(words: list[str]) -> list[str]:
    """A command line's flags as `--name value`; those that only say where are left out, of paths the name is kept."""
    out: list[str] = []
    skip = False
    for word in words:
        if word.startswith("-"):
            skip = word in _ELSEWHERE
            if not skip:
                out.append(word)
        elif not skip and out:
            out[-1] += f" {Path(word).name if word.startswith('/') else word}"
    return out


def told_by(url: str | None) -> dict[str, Any] | None:
    """What an engine that runs already says of itself; None where nobody can be asked (https, a proxy that is none)."""
    if url is None:
        return None
    from engines.launchers.attach import launch

    try:
        return described(launch(url).facts)
    except UserError:
        return None
