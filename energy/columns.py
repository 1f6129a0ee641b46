"""Journals as Arrow columns: chunks of whole lines parsed by pyarrow, damage counted and noted.

A million rows of a hundred reads each do not fit in Python objects. May not know: what the columns mean.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from energy.tables import NONE, Ints, Labels
from traces.errors import UserError

_CHUNK = 16 << 20


class _Damage:
    """What a journal lost, for the notes."""

    def __init__(self) -> None:
        self.lines = 0
        self.torn = 0


def journal_tables(path: Path, schema: pa.Schema, key: str, notes: list[str]) -> Iterator[pa.Table]:
    """Chunks of one journal as tables, header and rows without a key left out."""
    damage = _Damage()
    for data in _chunks(path):
        table = _parsed(path, data, schema, damage)
        valid = pc.is_valid(table[key])
        if not pc.all(valid).as_py():
            table = table.filter(valid)
        if table.num_rows:
            yield table
    if damage.torn:
        notes.append(f"{path.name}: the last line was cut short and is left out")
    if damage.lines:
        notes.append(f"{path.name}: {damage.lines} damaged lines are left out")


def _chunks(path: Path) -> Iterator[bytes]:
    """Pieces of a file that end at line ends (the last one may not)."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the run directory") from error
    with file:
        rest = b""
        while piece := file.read(_CHUNK):
            cut = piece.rfind(b"\n") + 1
            if cut == 0:
                rest += piece
                continue
            yield rest + piece[:cut]
            rest = piece[cut:]
        if rest:
            yield rest


def _parsed(path: Path, data: bytes, schema: pa.Schema, damage: _Damage) -> pa.Table:
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def parse(piece: bytes) -> pa.Table:
        if not piece[:1]:
            return schema.empty_table()
        table = pj.read_json(
            io.BytesIO(piece), pj.ReadOptions(block_size=min(max(len(piece), 1 << 20), 4 << 20)), options
        )
        return table.select(schema.names)

    try:
        return parse(data)
    except pa.ArrowInvalid:
        good = list(_good_lines(data, damage))
    try:
        return parse(b"\n".join(good))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: a column has the wrong type ({error}); was it written by another tool?") from error


def _good_lines(data: bytes, damage: _Damage) -> Iterator[bytes]:
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            good = isinstance(orjson.loads(line), dict)
        except orjson.JSONDecodeError:
            good = False
        if good:
            yield line
        elif number == len(lines):
            damage.torn = 1
        else:
            damage.lines += 1


def int_column(table: pa.Table, name: str) -> Ints:
    column = table[name].combine_chunks()
    return np.asarray(pc.fill_null(column, NONE).to_numpy(zero_copy_only=False), np.int64)


def label_column(table: pa.Table, name: str) -> Labels:
    encoded = table[name].combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Labels(codes, encoded.dictionary.to_pylist())


class Pool:
    """An array that grows in place (realloc moves pages, not bytes), so that no second copy is ever held."""

    def __init__(self, dtype: Any) -> None:
        self._data = np.empty(1 << 16, dtype)
        self._used = 0

    def add(self, part: Any) -> None:
        """Append the values of part."""
        need = self._used + len(part)
        if need > len(self._data):
            self._data.resize(max(need, 2 * len(self._data)), refcheck=False)
        self._data[self._used : need] = part
        self._used = need

    def array(self) -> Any:
        """Everything added; the pool is spent."""
        self._data.resize(self._used, refcheck=False)
        return self._data
