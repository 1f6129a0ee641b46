"""Azure LLM inference traces: 2023 (code, conv), 2024 (one week), 2025 (multimodal). CSV, one request per row.

TIMESTAMP (100 ns digits; 2024 with +00:00), ContextTokens, GeneratedTokens, and NumImages in 2025. No ids, no prefix
information: every row is a workflow of its own. Streams: a week of 44 million rows fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, S, csv_rows, whole
from traces.lines import raw_lines
from traces.workflow import Manifest, Node, Workflow

TITLE = "Azure LLM inference traces 2023, 2024, 2025 (CSV)"
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def recognises(head: Head) -> bool:
    """The columns, in any order."""
    return set(COLUMNS) <= set(head.columns)


def read(path: Path, options: ImportOptions) -> Imported:
    """timestamp relative to the earliest row, lengths; NumImages in attrs. Lost: the date (kept in a note)."""
    notes = Notes()
    start = _earliest(path)
    if start is not None:
        notes.say(f"times are relative to {start} UTC")
    manifest = Manifest(content_mode="lengths", source=f"{path.name} (Azure LLM inference)")
    return Imported(manifest, _workflows(path, notes), notes)


def _earliest(path: Path) -> str | None:
    """The least stamp of the file: they sort as text. The stamp must be the first column for that."""
    lines = raw_lines(path)
    next(lines, None)
    stamps = (line.split(b",", 1)[0] for _, line in lines)
    least = min(stamps, default=None)
    return least.decode("utf-8", "replace").strip() if least is not None else None


def _workflows(path: Path, notes: Notes) -> Iterator[Workflow]:
    first: int | None = None
    start = _earliest(path)
    for where, row in csv_rows(path, COLUMNS):
        if first is None:
            first = stamp_ns(where, start or row["TIMESTAMP"])
        arrival = stamp_ns(where, row["TIMESTAMP"]) - first
        if arrival < 0:
            raise UserError(where.fault("TIMESTAMP", row["TIMESTAMP"], "give TIMESTAMP as the first column"))
        images = whole(where, "NumImages", row["NumImages"]) if "NumImages" in row else 0
        if images:
            notes.count("a request has images: their number is in attrs.num_images, their tokens in input_length only")
        name = f"row{where.row}"
        node = Node(
            name,
            name,
            arrival,
            whole(where, "ContextTokens", row["ContextTokens"]),
            whole(where, "GeneratedTokens", row["GeneratedTokens"]),
            attrs={"num_images": images} if images else {},
        )
        yield Workflow(name, (node,))


def stamp_ns(where: Where, text: str) -> int:
    """ "2023-11-16 18:15:46.6805900[+00:00]" as ns since 1970, every digit kept. UserError otherwise."""
    head, point, tail = text.strip().removesuffix("+00:00").partition(".")
    if point and not tail.isdigit():
        raise UserError(where.fault("TIMESTAMP", text, "give YYYY-MM-DD HH:MM:SS.fffffff"))
    try:
        return _second(head) * S + int((tail + "000000000")[:9])
    except ValueError:
        raise UserError(where.fault("TIMESTAMP", text, "give YYYY-MM-DD HH:MM:SS.fffffff")) from None


@lru_cache(maxsize=4)
def _second(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
