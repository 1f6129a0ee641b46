"""Tokens that a client stamped long after the engine had made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from energy.late_reads import read_in_time
from energy.tables import request_table

MS = 1_000_000


def _row(k: int, gap_ms: int, told_ms: int | None) -> dict[str, Any]:
    times = [100 * MS + i * gap_ms * MS for i in range(101)]
    return {
        "id": f"r{k}", "sent_ns": 0, "first_ns": times[0], "last_ns": times[-1], "end_ns": times[-1] + MS,
        "prompt": 10, "cached": 0, "completion": 101, "reads": [(t, 1) for t in times],
        "decode_ns": None if told_ms is None else told_ms * MS,
    }  # fmt: skip


def test_a_stream_read_late_is_drawn_together_to_the_engines_time() -> None:
    table = request_table([_row(0, 10, 1000), _row(1, 16, 1000), _row(2, 16, None)])
    found, notes = read_in_time(table)
    assert len(notes) == 1 and "1 requests" in notes[0] and "0.60 s" in notes[0]
    assert found.last_ns.tolist() == [1100 * MS, 1100 * MS, 1700 * MS]
    reads = [found.read_ns[a:b] for a, b in zip(found.read_start, found.read_start[1:], strict=False)]
    assert np.array_equal(reads[1], reads[0])  # 16 ms apart for the client, 10 for the engine
    assert np.array_equal(reads[2], table.read_ns[table.read_start[2] :])
    assert found.end_ns is table.end_ns and found.first_ns is table.first_ns


@pytest.mark.parametrize("told_ms", [1000, 960, 1040, 0, None])
def test_what_server_and_network_take_is_left_alone(told_ms: int | None) -> None:
    table = request_table([_row(0, 10, told_ms)])
    assert read_in_time(table) == (table, [])
