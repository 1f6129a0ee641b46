"""Parquet holds what the journals hold, record for record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegraph.show import lines
from joulegraph.tables import TABLES, schema_of, write_tables
from traces.records import DispatchRecord, PowerSample
from traces.rundir import RunDir

dispatches = st.builds(
    DispatchRecord,
    request_id=st.text(max_size=5),
    workflow_id=st.text(max_size=5),
    wire_id=st.text(max_size=5),
    outcome=st.sampled_from(["ok", "error", "skipped"]),
    due_ns=st.integers(0, 2**60),
    t_end_ns=st.integers(0, 2**60),
    read_dt_ns=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    deps=st.lists(st.fixed_dictionaries({"on": st.text(max_size=3)}), max_size=2).map(tuple),
    t_sent_ns=st.none() | st.integers(0, 2**60),
)


def test_what_a_row_leaves_out_is_its_default_and_not_unknown(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    writer = run.writer("dispatch", "0", mono_ns=0, wall_ns=0)
    row = {"request_id": "a", "workflow_id": "w", "wire_id": "x", "outcome": "ok", "due_ns": 1, "t_end_ns": 2}
    writer.write(row)
    writer.write({**row, "attempts": 3})
    writer.close()
    write_tables(run)
    (first, again) = pq.read_table(run.file("dispatch.parquet")).to_pylist()
    assert (first["attempts"], again["attempts"]) == (1, 3)
    assert (first["delay_ns"], first["kind"], first["t_sent_ns"]) == (0, "llm", None)


def test_failures_are_told_by_kind() -> None:
    summary = {"level": "L0", "simulated": False, "state": "complete", "errors": 12, "rejected": 2}
    outcomes = {"ok": 2, "rejected": 2, "upstream_died": 3, "error": 9, "skipped": 4}
    said = lines({**summary, "outcomes": outcomes})
    assert "12 requests failed: 9 error, 3 upstream_died" in said
    assert any(line.startswith("2 requests refused by the engine (4xx") for line in said)


@given(st.lists(dispatches, min_size=1, max_size=20))
def test_every_record_arrives_whole(tmp_path_factory: pytest.TempPathFactory, records: list[DispatchRecord]) -> None:
    run = RunDir.create(tmp_path_factory.mktemp("t") / "run")
    writer = run.writer("dispatch", "0", mono_ns=0, wall_ns=0)
    for record in records:
        writer.write(record)
    writer.close()
    assert write_tables(run) == {"dispatch": len(records)}
    read = pq.read_table(run.file("dispatch.parquet")).to_pylist()
    for row, record in zip(read, records, strict=True):
        expected = asdict(record)
        assert {k: row[k] for k in ("wire_id", "due_ns", "t_sent_ns", "outcome")} == {
            k: expected[k] for k in ("wire_id", "due_ns", "t_sent_ns", "outcome")
        }
        assert tuple(row["read_dt_ns"]) == record.read_dt_ns
        assert orjson.loads(row["deps"]) == list(record.deps)


def test_only_samples_become_power_rows(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    writer = run.writer("power", "h", mono_ns=0, wall_ns=0)
    writer.write({"kind": "heartbeat", "t_ns": 1})
    writer.write(PowerSample("s", 1, 2, None, why="gone"))
    writer.close()
    assert write_tables(run) == {"power": 1}


def test_every_field_has_a_column() -> None:
    for _, record, _ in TABLES.values():
        assert len(schema_of(record)) == len(record.__dataclass_fields__)
