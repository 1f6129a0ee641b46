"""What a reader of run.json must know of the machine and the software: versions, host, devices, clock anchors.

No names of users, no paths outside the run: a run directory may be published.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from joulegraph import __version__
from traces import compiled

_PACKAGES = ("aiohttp", "httptools", "numpy", "nvidia-ml-py", "orjson", "pyarrow", "scipy", "uvloop", "vllm", "pyRAPL")


def anchor() -> dict[str, int]:
    """The same instant on both clocks: monotonic ns and wall ns."""
    before = time.monotonic_ns()
    wall = time.time_ns()
    return {"mono_ns": (before + time.monotonic_ns()) // 2, "wall_ns": wall}


def cpu_model() -> str | None:
    """The processor's name as Linux gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return None


def versions() -> dict[str, str | None]:
    """Versions that a figure may depend on; None where a package is not installed."""
    found: dict[str, str | None] = {
        "joulegraph": __version__,
        "hot_modules": compiled.FORM,
        "python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def describe() -> dict[str, Any]:
    """The host part of run.json."""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "implementation": sys.implementation.name,
    }
