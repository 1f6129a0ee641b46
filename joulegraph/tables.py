"""Journals as Parquet: the same records, one column per field, written in batches so that any run fits in memory.

Nested fields (deps, messages, sampling) are JSON strings; arrays of integers stay lists. Written beside the journals,
which remain the source: `joulegraph finish` writes these again at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from traces.records import DispatchRecord, PowerSample, RequestRecord, StepRecord
from traces.rundir import RunDir

BATCH_ROWS = 20_000
TABLES: dict[str, tuple[str, type, str | None]] = {  # parquet name -> (journal, record, kind of row)
    "requests": ("requests", RequestRecord, None),
    "dispatch": ("dispatch", DispatchRecord, None),
    "power": ("power", PowerSample, "sample"),
    "steps": ("engine", StepRecord, "step"),
}
_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def column_type(annotation: str) -> pa.DataType:
    """Arrow type of one record field, from its annotation text."""
    base = annotation.replace(" | None", "").strip()
    if base.startswith("tuple[int"):
        return pa.list_(pa.int64())
    return _TYPES.get(base, pa.string())


def schema_of(record: type) -> pa.Schema:
    """Arrow schema of one record class."""
    return pa.schema([(f.name, column_type(str(f.type))) for f in fields(record)])


def defaults_of(record: type) -> dict[str, Any]:
    """What a field is where a row leaves it out: a first attempt says no `attempts`, and it was one, not unknown."""
    return {f.name: f.default for f in fields(record) if isinstance(f.default, int | str)}


def _cell(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind) and value is not None and not isinstance(value, str):
        return orjson.dumps(value).decode()
    return value


def _batches(rows: Iterator[dict[str, Any]], schema: pa.Schema, defaults: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(rows, BATCH_ROWS)):
        columns = [
            pa.array(
                [_cell(row.get(column.name, defaults.get(column.name)), column.type) for row in chunk], type=column.type
            )
            for column in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def write_tables(run: RunDir) -> dict[str, int]:
    """Write every Parquet table the run has journals for; rows per table. A journal without rows makes no table."""
    written: dict[str, int] = {}
    for name, (journal, record, kind) in TABLES.items():
        schema = schema_of(record)
        rows = (row for row in run.rows(journal) if kind is None or row.get("kind") == kind)
        part = run.file(f"{name}.parquet.part")
        count = 0
        writer: pq.ParquetWriter | None = None
        for batch in _batches(rows, schema, defaults_of(record)):
            writer = writer or pq.ParquetWriter(part, schema, compression="zstd")
            writer.write_batch(batch)
            count += batch.num_rows
        if writer is not None:
            writer.close()
            part.replace(run.file(f"{name}.parquet"))
            written[name] = count
    return written
