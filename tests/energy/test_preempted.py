"""Preemptions are counted where the engine says so, and are None, not 0, where it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from energy.attribute import attribute
from energy.foreign import import_run
from energy.load import load_run
from energy.preempted import COUNTER, preemptions
from energy.tables import NONE, StepTable
from traces.rundir import RunDir


def _steps(preempted: list[int]) -> StepTable:
    n = len(preempted)
    ones = np.ones(n, np.int64)
    return StepTable(np.arange(n, dtype=np.int64), *[ones] * 5, np.array(preempted, np.int64), ones * 0)


@pytest.mark.parametrize(
    ("told", "count"), [([0, 2, 1], 3), ([0, 0], 0), ([NONE, NONE], None), ([NONE, 2], 2), ([], None)]
)
def test_preemptions_are_counted_where_the_engine_says_so(told: list[int], count: int | None) -> None:
    assert preemptions(_steps(told)) == count


@pytest.mark.parametrize(("values", "count"), [([], None), ([7], 0), ([7, 7, 9], 2), ([7, 9, 1, 4], 6), ([0, 3], 3)])
def test_counters_count_where_no_step_does(values: list[float], count: int | None) -> None:
    scrapes = [{"kind": "counters", "values": {COUNTER: v}} for v in values]
    scrapes += [{"kind": "counters", "values": {"vllm:num_requests_running": 1.0}}, {"kind": "log", "text": "gone"}]
    assert preemptions(None, scrapes) == count
    assert preemptions(_steps([NONE]), scrapes) == count
    assert preemptions(_steps([1]), scrapes) == 1


@pytest.mark.parametrize(("said", "count"), [({}, None), ({"preempted": 2}, 2), ({"preempted": 0}, 0)])
def test_a_recording_that_does_not_say_is_not_called_free_of_them(
    tmp_path: Path, said: dict[str, int], count: int | None
) -> None:
    step = {"t_ns": 2, "num_ctx_requests": 1, "num_ctx_tokens": 9, "num_generation_requests": 0}
    (tmp_path / "steps.jsonl").write_bytes(orjson.dumps(step | {"num_generation_tokens": 0} | said))
    (tmp_path / "requests.jsonl").write_bytes(orjson.dumps({"id": "a", "t_send_ns": 1, "t_end_ns": 5}))
    import_run(tmp_path, tmp_path / "run")
    result = attribute(load_run(RunDir.open(tmp_path / "run")))
    assert result.totals["preemptions"] == count
    assert any("the engine preempted" in note for note in result.notes) == bool(count)
