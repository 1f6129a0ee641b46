"""Traces out to public formats: one module each, a stream of workflows in, files out.

Lives here: the table of formats and writing a file whole or not at all. May not know: what any format means.
An exporter has TITLE and `write(out, manifest, workflows, notes)`; out is a path (WfFormat: a file or a new folder).
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.importers.base import Notes
from traces.workflow import Manifest, Workflow

FORMATS = {
    "mooncake": "traces.exporters.mooncake",
    "agentic_mooncake": "traces.exporters.agentic",
    "otlp": "traces.exporters.otlp",
    "wfformat": "traces.exporters.wfformat",
}


def titles() -> dict[str, str]:
    """Name -> one line on what is written."""
    return {name: str(import_module(module).TITLE) for name, module in FORMATS.items()}


def export(format_name: str, out: Path, manifest: Manifest, flow: Iterable[Workflow]) -> tuple[str, ...]:
    """Write workflows in a public format; the sentences on what was lost. UserError when it cannot be written."""
    if format_name not in FORMATS:
        raise UserError(f"--format {format_name}: not known; give one of {', '.join(FORMATS)}")
    notes = Notes()
    module: Any = import_module(FORMATS[format_name])
    try:
        module.write(out, manifest, flow, notes)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    return notes.sentences()
