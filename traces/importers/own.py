"""joulegraph's own trace file as an import: to change its container (JSON Lines, gzip, Parquet), order or class."""

from __future__ import annotations

from pathlib import Path

from traces.importers.base import Head, Imported, ImportOptions
from traces.trace import read_trace

TITLE = "joulegraph's own trace file (JSON Lines or Parquet)"


def recognises(head: Head) -> bool:
    """Parquet, or rows with a workflow id, or a manifest line."""
    if head.path.suffix == ".parquet":
        return True
    return "workflow_id" in head.row or (bool(head.lines) and head.lines[0].lstrip().startswith(b'{"manifest"'))


def read(path: Path, options: ImportOptions) -> Imported:
    """Rows as they are, workflows put together and in order of arrival. Lossless."""
    trace = read_trace(path)
    return Imported(trace.manifest, trace.workflows())
