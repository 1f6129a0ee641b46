"""Entry point: put our own folder first on sys.path, refuse to start where a foreign package shadows one of ours, ask
for as many open files as there may be."""

from __future__ import annotations

import importlib
import resource
import signal
import sys
from pathlib import Path

PACKAGES = ("traces", "engines", "proxy", "loadgen", "energy", "joulegraph")

MOST_FILES = 1 << 20
"""more are never needed, and some programs walk through all that they may have"""


def foreign_package() -> str | None:
    """The first of our packages that resolves to somebody else's, with where it was found."""
    for name in PACKAGES:
        module = importlib.import_module(name)
        if getattr(module, "JOULEGRAPH_PACKAGE", None) != name:
            return f"{name} ({getattr(module, '__file__', None) or 'namespace package'})"
    return None


def open_files() -> None:
    """Every connection is an open file, and most systems give a process 1,024 unless it asks for the more it may have.
    Child processes inherit this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Run the command line; the exit code."""
    open_files()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unless a command knows better: ends as Ctrl-C does
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    foreign = foreign_package()
    if foreign:
        sys.stderr.write(
            f"joulegraph: a foreign package shadows ours: {foreign}; use a virtual environment of its own\n"
        )
        return 2
    from joulegraph.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
