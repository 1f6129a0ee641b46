"""Tokens in each read of a recording that gives times alone."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from energy.foreign import import_run
from energy.load import load_run
from energy.read_tokens import every_nth, with_read_tokens
from energy.tables import RequestTable, request_table
from traces.rundir import RunDir

MS = 1_000_000


def _streams(nth: int, n: int = 12, joined: float = 0.15, slow: float = 0.1) -> tuple[RequestTable, np.ndarray]:
    """(table with one token a read, the tokens that were in each): steps of 10 ms, some of 40 ms with a prompt in them,
    which lengthen the waits of all; sends of every nth token, some of which come with the next."""
    rng = np.random.default_rng(3)
    step = np.where(rng.random(3000) < slow, 40, 10).cumsum() * MS
    rows, truth = [], []
    for k in range(n):
        begin, tokens = int(rng.integers(0, 500)), int(rng.integers(200, 500))
        at = np.unique([*range(0, tokens, nth), tokens - 1])
        keep = rng.random(len(at)) >= joined
        keep[[0, 1, -1]] = True
        at = at[keep]
        times = step[begin + at]
        truth += [1, *np.diff(at).tolist()]
        rows.append(_row(k, times.tolist(), tokens))
    return request_table(rows), np.array(truth)


def _row(k: int, times: list[int], tokens: int) -> dict[str, Any]:
    return {
        "id": f"r{k}", "sent_ns": times[0] - MS, "first_ns": times[0], "last_ns": times[-1], "end_ns": times[-1],
        "prompt": 10, "cached": 0, "completion": tokens, "reads": [(t, 1) for t in times],
    }  # fmt: skip


@pytest.mark.parametrize("nth", [1, 4, 8])
def test_tokens_follow_the_steps_of_others_not_the_length_of_waits(nth: int) -> None:
    table, truth = _streams(nth)
    found = with_read_tokens(table).read_tokens.astype(int)
    assert np.mean(found != truth) < 0.03
    sums = np.add.reduceat(found, table.read_start[:-1])
    assert np.all(np.abs(sums - table.completion) <= nth)


def test_one_stream_alone_goes_by_the_length_of_waits() -> None:
    table, truth = _streams(1, n=1, slow=0.0)
    assert np.array_equal(with_read_tokens(table).read_tokens, truth)


def test_streams_of_which_nobody_can_say_stay() -> None:
    """More than half of the reads with several tokens: drafts were accepted."""
    table, _ = _streams(1, joined=0.0)
    times = (np.arange(40) * 10 * MS).tolist()
    more = request_table([_row(0, times, 40), _row(1, times, 100)])
    assert np.array_equal(with_read_tokens(more).read_tokens, more.read_tokens)
    assert np.array_equal(with_read_tokens(table).read_tokens, table.read_tokens)


def test_spacing_of_sends() -> None:
    assert every_nth(np.array([96, 100, 81]), np.array([12, 12, 10])) == 8
    assert every_nth(np.array([20]), np.array([3])) == 1  # too few reads


def test_an_imported_recording_says_that_its_read_tokens_are_guessed(tmp_path: Path) -> None:
    table, truth = _streams(8)
    folder = tmp_path / "recording"
    folder.mkdir()
    with gzip.open(folder / "requests.jsonl.gz", "wb") as file:
        for i in range(len(table)):
            times = table.read_ns[table.read_start[i] : table.read_start[i + 1]]
            tokens = int(table.completion[i])
            row = {
                "id": table.ids[i], "t_send_ns": int(table.sent_ns[i]), "t_first_ns": int(times[0]),
                "t_end_ns": int(times[-1]), "token_dt_us": (np.diff(times) // 1000).tolist(), "n_in": 10,
                "usage": {"prompt_tokens": 10, "completion_tokens": tokens},
            }  # fmt: skip
            file.write(orjson.dumps(row) + b"\n")
    import_run(folder, tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    assert run.info["read_tokens"] == "guessed"
    assert np.mean(load_run(run).requests.read_tokens != truth) < 0.03
