"""A run's share of a journal that somebody else writes: the lines that were added while the run lasted.

vLLM outlives the runs of a sweep, its plugin writes one file of steps, a bridge one file of calls, and each run
directory gets its own part. Same clock: monotonic, one host. May not know: what a line holds.
"""

from __future__ import annotations

import os
from pathlib import Path

from traces.rundir import RunDir

CHUNK = 1 << 20


def mark(source: Path) -> int:
    """Where the stream stands now (0 while there is none)."""
    try:
        return source.stat().st_size
    except OSError:
        return 0


def take(run: RunDir, source: Path, start: int, journal: tuple[str, str] = ("engine", "vllm")) -> int:
    """Copy whole lines from `start` on into a journal of the run (name, writer), under the source's header; their
    number."""
    if not source.is_file():
        return 0
    target = run.journal(*journal)
    lines = 0
    with source.open("rb") as file, target.open("wb") as out:
        header = file.readline()
        if header.endswith(b"\n"):
            out.write(header)
        file.seek(max(start, len(header)))
        rest = b""
        left = os.fstat(file.fileno()).st_size - file.tell()
        while left > 0 and (piece := file.read(min(CHUNK, left))):
            left -= len(piece)
            whole, _, rest = (rest + piece).rpartition(b"\n")
            if whole:
                out.write(whole + b"\n")
                lines += whole.count(b"\n") + 1
    return lines
