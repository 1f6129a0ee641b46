"""The trace file as Parquet: the rows of the JSON Lines form, column by column, streamed by row group.

Lives here: the Arrow schema of a row and the way there and back. Objects without a fixed shape (messages, sampling,
tools, attrs) are JSON text in their column. The manifest is JSON text in the file's metadata.
May not know: what a row means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import UserError
from traces.fields import Where
from traces.manifest import manifest_row
from traces.workflow import Manifest

_GROUP = 16_384
_KEY = b"joulegraph.manifest"
_DEP = pa.struct(
    [
        ("on", pa.string()),
        ("kind", pa.string()),
        ("blocking", pa.bool_()),
        ("anchor", pa.string()),
        ("provenance", pa.string()),
        ("confidence", pa.float64()),
        ("extends", pa.string()),
    ]
)
_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(
        ("workflow_id", "request_id", "session_id", "agent_id", "parent_agent_id", "class", "kind"), pa.string()
    ),
    **dict.fromkeys(("timestamp", "delay", "tool_wait_ms", "think_ms", "t_first_token", "t_end"), pa.float64()),
    **dict.fromkeys(("input_length", "output_length", "cached_length"), pa.int64()),
    "deps": pa.list_(_DEP),
    "hash_ids": pa.list_(pa.uint64()),
    "token_ids": pa.list_(pa.uint64()),
    **dict.fromkeys(("model", "api", "status", "finish_reason", "prompt", "output"), pa.string()),
    "stream": pa.bool_(),
    **dict.fromkeys(("messages", "sampling", "tools", "attrs"), pa.string()),
}
_JSON = ("messages", "sampling", "tools", "attrs")
SCHEMA = pa.schema(list(_TYPES.items()))


def manifest(path: Path) -> object | None:
    """The manifest object of a Parquet trace, None where it has none. UserError when it is no Parquet file."""
    metadata = _opened(path, lambda file: file.schema_arrow.metadata or {})
    found = {**metadata, **_opened(path, lambda file: file.metadata.metadata or {})}.get(_KEY)
    return orjson.loads(found)["manifest"] if found is not None else None


def _opened(path: Path, use: Callable[[Any], Any]) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return use(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({_first_line(error)}); give a trace file") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def rows(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The rows with their numbers (from 1, as line and as row), absent values left out; one row group in memory."""
    name, number = str(path), 0
    try:
        with pq.ParquetFile(path) as file:
            if "timestamp" not in file.schema_arrow.names:
                raise UserError(f"{path}: not a trace: no column timestamp; give a trace file")
            for batch in file.iter_batches(batch_size=_GROUP // 4):
                for row in _rows_of(batch):
                    number += 1
                    yield Where(name, number, number), row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged after row {number} ({_first_line(error)}); write the file again") from error


def _rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    columns = [
        (name, column.to_pylist())
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
        if column.null_count < len(column)
    ]
    for index in range(batch.num_rows):
        row = {name: values[index] for name, values in columns if values[index] is not None}
        for name in _JSON:
            if type(row.get(name)) is str:
                row[name] = _parsed(row[name])
        if "deps" in row:
            row["deps"] = [{k: v for k, v in dep.items() if v is not None} for dep in row["deps"]]
        yield row


def _parsed(text: str) -> object:
    """JSON text as its value; what is no JSON stays text and is refused by the check of its field."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def write(path: Path, manifest: Callable[[], Manifest], flow: Iterable[dict[str, Any]]) -> None:
    """Write rows (traces.workflow.node_row); the manifest is asked for after the last one."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        rows = iter(flow)
        while group := list(islice(rows, _GROUP)):
            writer.write_table(pa.Table.from_pylist([_flat(row) for row in group], schema=SCHEMA))
        writer.add_key_value_metadata({_KEY: orjson.dumps(manifest_row(manifest()))})


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {k: orjson.dumps(v).decode() if k in _JSON else v for k, v in row.items()}
