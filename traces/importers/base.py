"""What every importer shares: the head of a file to recognise it by, the notes of what was lost, CSV rows with places.

An importer is a module with TITLE, `recognises(head) -> bool` and `read(path, options) -> Imported`. It maps a public
format to workflows by the table of docs/traces.md and says what it lost.
May not know: the command line, other importers.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from traces.errors import UserError
from traces.fields import Where
from traces.lines import open_binary, raw_lines
from traces.workflow import Manifest, Workflow

MAX_DOCUMENT = 1 << 30
"""Largest single JSON document read, bytes (it has to be in memory whole)."""
MAX_S = 4_000_000_000
"""Largest time read, seconds: in ns it fits 64 bits with room for a sum."""
MS = 1_000_000
S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the user may ask of an import."""

    class_name: str | None = None
    """class of all workflows; None: the importer's own"""
    source: str | None = None
    licence: str | None = None
    limit: int | None = None
    """stop after this many workflows"""
    seed: int = 0
    """of importers that sample (ServeGen)"""
    start_s: float = 0.0
    duration_s: float | None = None
    """window of the trace (ServeGen)"""


class Notes:
    """Sentences for manifest.transforms, each counted; kept in the order of their first appearance."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._plain: dict[str, None] = {}

    def say(self, sentence: str) -> None:
        """A fact about the whole import, said once."""
        self._plain[sentence] = None

    def count(self, sentence: str, by: int = 1) -> None:
        """A loss that befell one more row; shown as '<n> x <sentence>'."""
        self._counts[sentence] += by

    def sentences(self) -> tuple[str, ...]:
        """All notes so far."""
        return (*self._plain, *(f"{count} x {sentence}" for sentence, count in self._counts.items()))


@dataclass
class Imported:
    """A trace on its way in. `settled()` is the manifest once workflows have been drained: notes grow on the way."""

    manifest: Manifest
    workflows: Iterator[Workflow]
    notes: Notes = field(default_factory=Notes)

    def settled(self) -> Manifest:
        """The manifest with the notes made so far."""
        return replace(self.manifest, transforms=(*self.manifest.transforms, *self.notes.sentences()))

    def shaped(self, options: ImportOptions) -> Imported:
        """The same with the user's class, source, licence and limit applied."""
        manifest = replace(
            self.manifest,
            source=options.source or self.manifest.source,
            licence=options.licence or self.manifest.licence,
        )
        flow = self.workflows
        if options.limit is not None:
            flow = _first(flow, options.limit, self.notes)
        if options.class_name is not None:
            flow = (replace(w, class_name=str(options.class_name)) for w in flow)
        return Imported(manifest, flow, self.notes)


def _first(flow: Iterator[Workflow], limit: int, notes: Notes) -> Iterator[Workflow]:
    """The first workflows; that there were more is said where there were."""
    yield from islice(flow, limit)
    try:
        more = next(flow, None) is not None
    except UserError:  # a fault beyond what was asked for
        more = True
    if more:
        notes.say(f"only the first {limit} workflows")


@dataclass
class Head:
    """The start of a file, looked at once to recognise its format."""

    path: Path

    @cached_property
    def is_dir(self) -> bool:
        """A folder: a run directory, or many files of one kind."""
        return self.path.is_dir()

    @cached_property
    def lines(self) -> list[bytes]:
        """Up to 20 lines that are not blank, each cut at 1 MiB; empty for a folder or a Parquet file."""
        if self.is_dir or self.path.suffix == ".parquet":
            return []
        with open_binary(self.path) as file:
            try:
                start = file.read(1 << 20)
            except (OSError, EOFError) as error:
                raise UserError(f"{self.path}: cannot be read ({error}); fetch or write the file again") from error
        return [line for line in start.split(b"\n") if line.strip()][:20]

    @cached_property
    def columns(self) -> list[str]:
        """Column names when the first line looks like the header of a CSV file, else empty."""
        if not self.lines or self.lines[0][:1] in (b"{", b"["):
            return []
        return header_of(self.lines[0])

    @cached_property
    def row(self) -> dict[str, Any]:
        """The first line (manifest left out) as a JSON object, empty when it is none."""
        for line in self.lines[:2]:
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError:
                return {}
            if not isinstance(value, dict):
                return {}
            if "manifest" not in value:
                return value
        return {}

    @cached_property
    def document(self) -> Any:
        """The whole file as one JSON value (a single line counts); None when it is not one or is too large."""
        if not self.lines or self.lines[0].lstrip()[:1] not in (b"{", b"["):
            return None
        try:
            return document(self.path)
        except UserError:
            return None

    @property
    def keys(self) -> frozenset[str]:
        """Top-level keys of the first row, or of the document, or of the first element of a document that is a list."""
        if self.row:
            return frozenset(self.row)
        value = self.document
        if isinstance(value, list):
            value = value[0] if value else None
        return frozenset(value) if isinstance(value, dict) else frozenset()


def json_files(path: Path) -> list[Path]:
    """A file itself, or the JSON files of a folder in order of their names."""
    return sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]


def document(path: Path) -> Any:
    """A whole JSON file. UserError when it is damaged, too large, or not JSON."""
    with open_binary(path) as file:
        try:
            data = file.read(MAX_DOCUMENT)
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); fetch or write the file again") from error
    if len(data) == MAX_DOCUMENT:
        raise UserError(
            f"{path}: larger than {MAX_DOCUMENT >> 20} MiB as one JSON document; split it or use JSON Lines"
        )
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not a JSON document ({error}); fetch or write the file again") from error


def json_rows(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The objects of a JSON Lines file with their places. UserError names the line that is none."""
    name = str(path)
    for row, (line, text) in enumerate(raw_lines(path), 1):
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise UserError(f"{path}: line {line} is not JSON ({error}); mend or remove the line") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {line} is not a JSON object; mend or remove the line")
        yield Where(name, line, row), value


def header_of(line: bytes) -> list[str]:
    """Column names of a header line, empty when it is no CSV."""
    try:
        return [name.strip() for name in next(csv.reader([line.decode("utf-8-sig", "replace").strip()]), [])]
    except csv.Error:
        return []


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Where, dict[str, str]]]:
    """The rows of a CSV file as name -> text. UserError when a column is missing or a row is short."""
    lines = raw_lines(path)
    first = next(lines, (1, b""))[1]
    header = header_of(first)
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path}:1: column {missing[0]!r} is missing (the header is {','.join(header)[:120]!r}); "
            f"give a CSV with the columns {', '.join(columns)}"
        )
    where = [1]

    def texts() -> Iterator[str]:
        for line, text in lines:
            where[0] = line
            yield text.decode("utf-8", "replace")

    for row, values in enumerate(_cells(path, texts(), where), 1):
        place = Where(str(path), where[0], row)
        if len(values) != len(header):
            raise UserError(place.fault("row", ",".join(values), f"give {len(header)} values, as the header has"))
        yield place, dict(zip(header, values, strict=True))


def _cells(path: Path, texts: Iterator[str], where: list[int]) -> Iterator[list[str]]:
    try:
        yield from csv.reader(texts)
    except csv.Error as error:
        raise UserError(f"{path}:{where[0]}: not a CSV row ({error}); mend or remove the line") from error


def whole(where: Where, name: str, value: object, at_least: int = 0) -> int:
    """A whole number from text or JSON ("12", 12, 12.0). UserError names the field otherwise."""
    try:
        number = float(value)  # type: ignore[arg-type]
        if number.is_integer() and at_least <= number < 2**53:
            return int(number)
    except (TypeError, ValueError):
        pass
    raise UserError(where.fault(name, value, f"give a whole number of at least {at_least}"))


def an_object(where: Where, holder: dict[str, Any], name: str) -> dict[str, Any]:
    """An object inside another; absent or null is an empty one. UserError when it is something else."""
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(where.fault(name, value, "give an object"))
    return value


def objects(where: Where, holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects inside an object; absent or null is an empty one. UserError when it is something else."""
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UserError(where.fault(name, value, "give a list of objects"))
    return value


def block_ids(where: Where, holder: dict[str, Any], name: str) -> list[int] | None:
    """A list of block ids (whole numbers of any width) inside an object, None when absent. UserError otherwise."""
    value = holder.get(name)
    if value is not None and not (isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)):
        raise UserError(where.fault(name, value, "give a list of whole numbers of at least 0"))
    return value


def seconds_ns(where: Where, name: str, value: object) -> int:
    """Seconds from text or JSON as ns, digits beyond the point kept exactly. UserError when not a number >= 0."""
    text = str(value).strip()
    head, _, tail = text.partition(".")
    if head.isdigit() and len(head) < 10 and (tail == "" or tail.isdigit()):
        return int(head) * S + int((tail + "000000000")[:9])
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < MAX_S:
        raise UserError(where.fault(name, value, f"give seconds, a number from 0 to {MAX_S}"))
    return round(number * S)
