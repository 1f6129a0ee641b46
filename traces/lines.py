"""Trace files as raw rows: JSON Lines (plain or gzip) or Parquet, streamed, every fault with its place.

Lives here: opening files, lines, JSON objects. May not know: what a row means (traces.rows), workflows (traces.trace).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import orjson

from traces.errors import UserError
from traces.fields import Where

MAX_LINE = 1 << 28
"""Longest line read, bytes: a row beyond it is not a trace row, and reading it must not eat the machine."""
REMEDY = "give a .jsonl, .jsonl.gz or .parquet trace, or convert the file with joulegraph trace import"


def is_parquet(path: Path) -> bool:
    """By its name."""
    return path.suffix == ".parquet"


def objects(path: Path, on_problem: Callable[[str], None] | None = None) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The raw rows of a trace file, manifest line left out. UserError on what is not a trace; on_problem takes lines
    below the first that are damaged, and they are left out."""
    if is_parquet(path):
        from traces import parquet

        yield from parquet.rows(path)
        return
    for where, row in json_lines(path, on_problem):
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


def json_lines(path: Path, on_problem: Callable[[str], None] | None = None) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The JSON objects of a trace file with their places, the manifest line among them. A line that is none raises
    UserError; on_problem takes it instead where it is not the first."""
    name, row, known = str(path), 0, False
    for number, line in raw_lines(path):
        value, fault = _object(line)
        known = known or fault is None
        if fault is not None:
            if not known:
                raise UserError(f"{path}: not a trace: line {number} is {fault}; {REMEDY}")
            sentence = f"{path}:{number}: line is {fault}; mend or remove it"
            if on_problem is None:
                raise UserError(sentence)
            on_problem(sentence)
        if "manifest" not in value or number != 1:
            row += 1
        if fault is None:
            yield Where(name, number, row), value


def _object(line: bytes) -> tuple[dict[str, Any], str | None]:
    """A line's JSON object, or what it is instead."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return {}, f"not JSON ({error})"
    return (value, None) if type(value) is dict else ({}, "not a JSON object")
