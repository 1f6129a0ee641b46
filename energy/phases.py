"""What was run when: the phases of a recording, read and checked once for whoever needs them.

Only `phase` and `t_ns` are needed; a phase ends where it says (`end_ns`), else where the next begins. All other fields
are kept as they are. May not know: energy, requests.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from energy.foreign_text import LARGEST, json_of
from traces.errors import UserError

LAYOUT = "docs/attribution.md has the layout"


def load_phases(path: Path) -> list[dict[str, Any]]:
    """Phases of a file. UserError where it cannot be read or has another shape."""
    return read_phases(json_of(path), str(path))


def read_phases(document: Any, where: str) -> list[dict[str, Any]]:
    """Phases in order with their end: end_ns, else the next one's start, None for the last. UserError on another
    shape."""
    rows = document.get("phases") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise UserError(f"{where}: needs a list `phases` of objects with `phase` and `t_ns`; {LAYOUT}")
    read = sorted((_phase(row, f"{where}: phase {k}") for k, row in enumerate(rows, 1)), key=lambda r: int(r["t_ns"]))
    for this, following in pairwise(read):
        if this["end_ns"] is None:
            this["end_ns"] = following["t_ns"]
    return read


def _phase(row: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(row.get("phase"), str):
        raise UserError(f"{where}: field phase is {row.get('phase')!r}, needs a name in quotes; {LAYOUT}")
    if isinstance(row.get("rate"), list | dict):
        raise UserError(f"{where} ({row['phase']}): field rate is {row['rate']!r}, needs a number or a name; {LAYOUT}")
    begin = _ns(row.get("t_ns"), f"{where} ({row['phase']}): field t_ns")
    end = None if row.get("end_ns") is None else _ns(row["end_ns"], f"{where} ({row['phase']}): field end_ns")
    if end is not None and end < begin:
        raise UserError(
            f"{where} ({row['phase']}): field end_ns is {end}, before its t_ns {begin}; correct one of them"
        )
    return {**row, "t_ns": begin, "end_ns": end}


def _ns(value: Any, what: str) -> int:
    """Whole nanoseconds, also where a tool wrote them as 12.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or abs(value) > LARGEST:
        raise UserError(f"{what} is {value!r}, needs whole monotonic nanoseconds; {LAYOUT}")
    return int(value)
