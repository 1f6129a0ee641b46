"""Entry point: put our own folder first on sys.path, refuse to start where a foreign package shadows one of ours."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

PACKAGES = ("traces", "engines", "proxy", "loadgen", "energy", "joulegraph")


def foreign_package() -> str | None:
    """The first of our packages that resolves to somebody else's, with where it was found."""
    for name in PACKAGES:
        module = importlib.import_module(name)
        if getattr(module, "JOULEGRAPH_PACKAGE", None) != name:
            return f"{name} ({getattr(module, '__file__', None) or 'namespace package'})"
    return None


def main() -> int:
    """Run the command line; the exit code."""
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
