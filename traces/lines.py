"""Trace files as raw rows: JSON Lines (plain or gzip) or Parquet, streamed, every fault with its place.

Lives here: opening files, lines, JSON objects. May not know: what a row means (traces.rows), workflows (traces.trace).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import orjson

from traces.errors import UserError
from traces.rows import Where

MAX_LINE = 1 << 28
"""Longest line read, bytes: a row beyond it is not a trace row, and reading it must not eat the machine."""
REMEDY = "give a .jsonl, .jsonl.gz or .parquet trace, or convert the file with joulegraph trace import"


def is_parquet(path: Path) -> bool:
    """By its name."""
    return path.suffix == ".parquet"


def objects(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The raw rows of a trace file, manifest line left out. UserError on what is not a trace."""
    if is_parquet(path):
        from traces import parquet

        yield from parquet.rows(path)
        return
    for where, row in json_lines(path):
        if where.line == 1 and "manifest" in row:
            continue
        yield where, row


def open_binary(path: Path) -> IO[bytes]:
    """A file for reading, through gzip when it is gzipped (by its first bytes, whatever its name). UserError."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; convert it with joulegraph trace import")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a text file, gzipped or not, blank ones left out. UserError on damage and endless lines."""
    number = 0
    with open_binary(path) as file:
        try:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise UserError(f"{path}:{number}: line longer than {MAX_LINE} bytes; {REMEDY}")
                if not line.isspace():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: gzip data is cut short or damaged after line {number}; fetch or write the file again"
            ) from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def json_lines(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The JSON objects of a trace file with their places, the manifest line among them."""
    name, row = str(path), 0
    for number, line in raw_lines(path):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            what = "not a trace: line 1 is not JSON" if row == 0 else f"line {number} is not JSON ({error})"
            raise UserError(f"{path}: {what}; {REMEDY if row == 0 else 'mend or remove the line'}") from error
        if type(value) is not dict:
            raise UserError(f"{path}: line {number} is not a JSON object; {REMEDY}")
        if "manifest" not in value or number != 1:
            row += 1
        yield Where(name, number, row), value
