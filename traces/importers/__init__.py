"""Public trace formats in: one module each, found by name or by what a file looks like.

Lives here: the table of formats and the choice among them. May not know: what any format means.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.importers.base import Head, Imported, ImportOptions
from traces.trace import write_trace

__all__ = ["FORMATS", "ImportOptions", "Imported", "as_trace", "detect", "open_import", "titles"]

FORMATS = {
    "run": "traces.importers.recording",
    "joulegraph": "traces.importers.own",
    "azure": "traces.importers.azure",
    "burstgpt": "traces.importers.burstgpt",
    "bailian": "traces.importers.bailian",
    "ragpulse": "traces.importers.ragpulse",
    "weka": "traces.importers.weka",
    "tracelab": "traces.importers.tracelab",
    "dynamo": "traces.importers.dynamo",
    "agentic_mooncake": "traces.importers.agentic",
    "wfformat": "traces.importers.wfformat",
    "servegen": "traces.importers.servegen",
    "otel": "traces.importers.otel",
    "mlperf": "traces.importers.mlperf",
    "sweagent": "traces.importers.sweagent",
    "sharegpt": "traces.importers.sharegpt",
    "mooncake": "traces.importers.mooncake",
}
"""Name -> module, in the order in which they are asked whether they recognise a file."""


def _module(name: str) -> Any:
    return import_module(FORMATS[name])


def titles() -> dict[str, str]:
    """Name -> one line on what the format is."""
    return {name: str(_module(name).TITLE) for name in FORMATS}


def detect(path: Path) -> str:
    """The name of the format of a file or folder. UserError when none fits or it cannot be read."""
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    head = Head(path)
    if not head.is_dir and path.suffix != ".parquet" and not head.lines:
        raise UserError(f"{path}: is empty; give a trace file")
    for name in FORMATS:
        if _module(name).recognises(head):
            return name
    looks = f"CSV columns {', '.join(head.columns[:8])}" if head.columns else ""
    if head.keys:
        looks = f"JSON keys {', '.join(sorted(head.keys)[:8])}"
    looks = looks or ("a folder without a file of one" if head.is_dir else "neither JSON nor CSV")
    raise UserError(
        f"{path}: no known trace format ({looks[:160]}); "
        f"name one with joulegraph trace import --format: {', '.join(FORMATS)}"
    )


def as_trace(path: Path, into: Path) -> tuple[Path, str | None]:
    """A path that traces.trace can read: the given one when it is a trace (or Mooncake file), else a file imported into
    the folder `into`, with the name of the format it came from. UserError as open_import."""
    name = detect(path)
    if name in ("joulegraph", "mooncake"):
        return path, None
    imported = open_import(path, name)
    out = into / "imported.jsonl"
    write_trace(out, imported.settled, imported.workflows)
    return out, name


def open_import(path: Path, format_name: str | None = None, options: ImportOptions | None = None) -> Imported:
    """A file of any known format as workflows by arrival. UserError when it is none, or has faults (while draining)."""
    options = options or ImportOptions()
    if format_name is not None and format_name not in FORMATS:
        raise UserError(f"--format {format_name}: not known; give one of {', '.join(FORMATS)}")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    imported: Imported = _module(format_name or detect(path)).read(path, options)
    return imported.shaped(options)
