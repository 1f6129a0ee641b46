"""Journals survive any crash: every whole line is read back, a torn one is counted."""

from __future__ import annotations

import errno
import io
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import UserError
from traces.journal import JournalReader, JournalWriter, QueuedWriter
from traces.records import DispatchRecord, PowerSample, from_row


def open_writer(path: Path) -> JournalWriter:
    return JournalWriter(path, "requests", mono_ns=1, wall_ns=2)


@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.integers(-(2**60), 2**60)), max_size=8), data=st.data())
def test_cut_anywhere_loses_at_most_the_torn_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, int]], data: st.DataObject
) -> None:
    rows = [{"i": i, **row} for i, row in enumerate(rows) if not {"journal", "version"} <= row.keys()]
    path = tmp_path_factory.mktemp("j") / "requests.0.jsonl"
    writer = open_writer(path)
    for row in rows:
        writer.write(row)
    writer.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    lines = [line for line in whole[:cut].split(b"\n")[:-1] if line]
    reader = JournalReader(path)
    read = list(reader)
    tail = whole[:cut].split(b"\n")[-1]
    expected = [orjson.loads(line) for line in lines[1:]]
    if tail and tail in {orjson.dumps(r) for r in rows}:
        expected.append(orjson.loads(tail))  # the newline alone was lost: the row is whole
    assert read == expected
    assert reader.damaged == []
    assert reader.torn == bool(tail and read[-1:] != [_parsed(tail)] and reader.header != _parsed(tail))


def _parsed(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def test_appending_after_a_crash_cuts_the_torn_line_first(tmp_path: Path) -> None:
    path = tmp_path / "requests.0.jsonl"
    writer = open_writer(path)
    writer.write({"i": 1})
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"i": 2')
    writer = open_writer(path)
    writer.write({"i": 3})
    writer.close()
    reader = JournalReader(path)
    assert list(reader) == [{"i": 1}, {"i": 3}]
    assert (reader.torn, reader.damaged) == (0, [])
    assert reader.header["journal"] == "requests"


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"i":1}\nnonsense\n[1]\n{"i":2}\n')
    reader = JournalReader(path)
    assert list(reader) == [{"i": 1}, {"i": 2}]
    assert reader.damaged == [2, 3]


def test_unwritable_place_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the journal"):
        open_writer(tmp_path / "missing" / "x.jsonl")


def test_a_full_queue_drops_and_counts_and_never_raises(tmp_path: Path) -> None:
    queued = QueuedWriter(open_writer(tmp_path / "x.jsonl"), limit=5, every_s=60)
    for i in range(8):
        queued.put({"i": i})
    assert (queued.depth, queued.dropped) == (5, 3)
    queued.close()
    assert [r["i"] for r in JournalReader(tmp_path / "x.jsonl")] == [0, 1, 2, 3, 4]


class FullDisk(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_counted_and_never_raises(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "x.jsonl")
    queued = QueuedWriter(writer, every_s=60)
    writer._file.close()
    writer._file = io.BufferedWriter(FullDisk())
    for i in range(3):
        queued.put({"i": i})
    queued._drain()  # as its thread does
    assert queued.error is not None and queued.depth == 3  # what the disk does not take is seen to wait
    queued.close()
    assert (queued.dropped, queued.depth) == (3, 0)
    assert queued.error is not None and "No space left" in queued.error


def test_a_journal_that_cannot_be_opened_anew_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    queued = QueuedWriter(open_writer(folder / "x.jsonl"), every_s=0.001)
    folder.rename(tmp_path / "moved")
    queued.reopen()
    until = time.monotonic() + 10
    while queued.error is None and time.monotonic() < until:
        os.sched_yield()
    queued.put({"i": 1})
    folder.mkdir()
    while queued.depth and time.monotonic() < until:
        os.sched_yield()
    queued.close()
    assert [r["i"] for r in JournalReader(folder / "x.jsonl")] == [1]
    assert queued.dropped == 0


def test_records_round_trip_and_ignore_what_they_do_not_know() -> None:
    record = DispatchRecord("n1", "w1", "w1.n1", "ok", 5, 9, read_dt_ns=(1, 2), deps=({"on": "n0"},))
    row = orjson.loads(orjson.dumps(record))
    assert from_row(DispatchRecord, {**row, "from_the_future": 1}) == record
    sample = PowerSample("s", 1, 2, None, why="gone")
    assert from_row(PowerSample, asdict(sample)) == sample
    with pytest.raises(TypeError):
        from_row(PowerSample, {"source": "s"})
