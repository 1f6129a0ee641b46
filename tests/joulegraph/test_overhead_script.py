"""scripts/bench_overhead.py: order of the arms, throughput in the middle of a run, differences with intervals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import bench_overhead  # type: ignore[import-not-found]

from traces.errors import UserError

MS = 1_000_000


def row(sent_ms: int, gap_ms: int, tokens: int, **more: Any) -> dict[str, Any]:
    """A request that gives a token every gap_ms."""
    first, last = sent_ms + gap_ms, sent_ms + tokens * gap_ms
    return {
        "outcome": "ok", "t_sent_ns": sent_ms * MS, "t_first_token_ns": first * MS, "t_last_token_ns": last * MS,
        "completion_tokens": tokens, "read_dt_ns": [gap_ms * MS] * tokens, "read_tokens": [1] * tokens, **more,
    }  # fmt: skip


def test_arms_run_in_mirrored_order() -> None:
    order = bench_overhead.mirrored(["a", "b", "c"], 3)
    assert [arm for _, arm in order] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert [number for number, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_throughput_is_that_of_the_middle() -> None:
    steady = [row(0, 10, 1000), row(0, 10, 1000)]
    assert bench_overhead.throughput(steady)["tokens_per_s"] == pytest.approx(200, rel=0.01)
    late = bench_overhead.throughput([*steady, row(30_000, 1000, 5), row(0, 1, 5, outcome="error")])
    assert late["tokens_per_s"] == pytest.approx(200, rel=0.01)  # what trails behind does not count
    assert late["tpot_ms"] == pytest.approx(10) and late["ttft_ms"] == pytest.approx(10)
    with pytest.raises(UserError, match="no request was answered"):
        bench_overhead.throughput([row(0, 1, 5, outcome="error")])


def test_differences_are_of_rounds() -> None:
    found = {
        "none": [{"tokens_per_s": r, "ttft_ms": 1.0, "tpot_ms": 1.0, "failed": 0.0} for r in (100, 200, 400)],
        "sampler": [{"tokens_per_s": r, "ttft_ms": 1.0, "tpot_ms": 1.0, "failed": 0.0} for r in (99, 198, 396)],
    }
    change = bench_overhead.verdicts(["none", "sampler"], found)["differences"]["sampler against none"]
    assert change["percent"] == pytest.approx(-1) and change["rounds"] == 3
    assert change["lo"] == pytest.approx(-1) and change["hi"] == pytest.approx(-1)
