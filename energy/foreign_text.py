"""Text files of a recording, plain or gzip, as lines and as rows of a table; damage is one sentence.

Gzip is told by content, not by name. A table may have a byte order mark, blanks after its commas, semicolons instead of
commas; what a tool could not read ("", "N/A", "[N/A]") is empty. May not know: which files there are, what is in them.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any

import orjson

from traces.errors import UserError

GZIP = b"\x1f\x8b"
EMPTY = ("", "nan", "n/a", "none", "null", "not supported", "unknown error")
"""cells, in brackets or not, with which pollers say that a sensor gave nothing"""
LARGEST = 2**63 - 1


def find(folder: Path, name: str) -> Path | None:
    """The file, or the same with .gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig")


def lines(path: Path) -> Iterator[str]:
    """Lines with their ends. UserError where the file cannot be read on."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                yield line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read after line {number} ({error}); give it whole, as UTF-8 text or gzip of it"
        ) from error


def json_of(path: Path) -> Any:
    """A JSON file's value."""
    try:
        return orjson.loads("".join(lines(path)))
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); fix or remove the file") from error


def table(path: Path, needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file: column -> text, "" where there is nothing. UserError where a needed column is
    missing."""
    text = lines(path)
    head = next(text, "")
    comma = ";" if ";" in head and "," not in head else ","
    names = [n.strip().strip('"') for n in head.strip().split(comma) if n.strip()]
    if needed not in names:
        raise UserError(f"{path}: needs a column {needed} in its head line, found {', '.join(names) or 'nothing'}")
    for number, line in enumerate(text, 2):
        cells = [c.strip().strip('"') for c in line.rstrip("\r\n").split(comma)]
        if any(cells):
            cells += [""] * (len(names) - len(cells))
            yield number, {n: "" if c.strip("[]").lower() in EMPTY else c for n, c in zip(names, cells, strict=False)}


def whole(row: dict[str, str], name: str, where: str) -> int:
    """A whole number of a row, also where a tool wrote it as 12.0 or 1.2e6. UserError with field and value if not."""
    value = scaled(row, name, 1, where)
    if value is None:
        raise UserError(f"{where}: field {name} is empty; fill it in or remove the line")
    return value


def scaled(row: dict[str, str], name: str, factor: int, where: str) -> int | None:
    """A number of a row times a factor, rounded; None where the field is empty."""
    text = row.get(name, "")
    if not text:
        return None
    try:
        value = round(Decimal(text) * factor)
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise UserError(f"{where}: field {name} is {text!r}, not a number; fix or remove the line") from error
    if abs(value) > LARGEST:
        raise UserError(f"{where}: field {name} is {text}, too large; fix or remove the line")
    return value
