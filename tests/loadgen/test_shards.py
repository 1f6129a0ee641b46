"""Shards in processes of their own: together they do exactly what one process does; drain, death and bad input."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadgen.arrivals import Arrivals
from loadgen.part import ShardJob, shard_of, split
from loadgen.replay import ReplayOptions
from loadgen.shards import Shards
from loadgen.target import Target
from loadgen.totals import Bounds, ReplayTotals, merged
from traces.errors import UserError
from traces.journal import JournalReader
from traces.records import DispatchRecord, from_row
from traces.status import StatusReader
from traces.trace import read_trace, write_trace
from traces.workflow import Dep, Manifest, Node, Workflow

MS = 1_000_000
S = 1_000_000_000
LOOSE = Bounds(10 * S, 10 * S, 1.0, 1.0)


def trace_file(tmp_path: Path, count: int = 30) -> Path:
    work = [
        Workflow(
            f"w{i}",
            (
                Node(f"w{i}", "a", i * 10 * MS, 20, 3, hash_ids=(1, i)),
                Node(f"w{i}", "b", i * 10 * MS, 20, 2, deps=(Dep("a"),), delay_ns=MS),
            ),
            "even" if i % 2 == 0 else "odd",
        )
        for i in range(count)
    ]
    path = tmp_path / "trace.jsonl"
    write_trace(path, Manifest(block_size=16, time_quantum_ms=20), work)
    return path


def play(tmp_path: Path, trace: Path, port: int, shards: int, **more: Any) -> tuple[list[Any], ReplayTotals, int]:
    name = f"n{shards}"
    job = ShardJob(
        trace, tmp_path / "x", Target("127.0.0.1", port, model="m"), Arrivals(seed=3),
        ReplayOptions(salt="s", bounds=LOOSE, prewarm=4), replayed=tmp_path / f"{name}.replayed.jsonl",
    )  # fmt: skip
    jobs = split(
        replace(job, **more), shards,
        [tmp_path / f"{name}.{i}.jsonl" for i in range(shards)],
        [tmp_path / f"{name}.{i}.status" for i in range(shards)],
    )  # fmt: skip
    with Shards(jobs) as running:
        running.ready()
        t0 = time.monotonic_ns() + 100 * MS
        running.go(t0)
        while (done := running.poll()) is None:
            pass
    rows = [row for j in jobs for row in JournalReader(j.journal)]
    seen = [StatusReader(j.status).get("requests_done") for j in jobs if j.status is not None]
    assert sum(seen) == sum(r["outcome"] == "ok" and r["kind"] == "llm" for r in rows)
    return rows, done[0], t0


@pytest.mark.slow
def test_three_shards_do_what_one_process_does(tmp_path: Path, kit: Any) -> None:
    trace = trace_file(tmp_path)
    with kit.serving() as (port, server):
        one, total, t0 = play(tmp_path, trace, port, 1)
        bodies = sorted((a.headers["x-request-id"], str(a.body)) for a in server.asked)
        server.asked.clear()
        three, merged_total, t0_three = play(tmp_path, trace, port, 3)
        assert bodies == sorted((a.headers["x-request-id"], str(a.body)) for a in server.asked)

    def content(rows: list[Any], t0: int) -> list[tuple[Any, ...]]:
        records = [from_row(DispatchRecord, r) for r in rows]
        return sorted(
            (r.workflow_id, r.request_id, r.wire_id, r.class_name, r.outcome, sum(r.read_tokens), r.prompt_tokens,
             r.due_ns - t0 if r.request_id == "a" else None)
            for r in records
        )  # fmt: skip

    assert len(one) == 60 and content(one, t0) == content(three, t0_three)
    assert total.valid and merged_total.valid
    assert (merged_total.workflows_done, merged_total.requests, merged_total.usage_exact) == (30, 60, 60)
    assert merged_total.outcomes == total.outcomes == {"ok": 60}
    assert sum(merged_total.lateness_counts) == 60
    kept = [read_trace(tmp_path / f"n{n}.replayed.jsonl") for n in (1, 3)]
    assert list(kept[0]) == list(kept[1]) and "multiples of 20 ms" in kept[0].manifest.transforms[0]


@pytest.mark.slow
def test_drain_death_of_the_parent_and_bad_traces(tmp_path: Path, kit: Any) -> None:
    trace = trace_file(tmp_path, 3000)
    with kit.serving() as (port, _):
        job = ShardJob(
            trace, tmp_path / "d", Target("127.0.0.1", port), options=ReplayOptions(bounds=LOOSE, drain_ns=S)
        )
        with Shards(split(job, 2, [tmp_path / "d0", tmp_path / "d1"], [None, None])) as running:
            running.ready()
            running.go(time.monotonic_ns())
            assert running.poll(0.5) is None
            running.drain()
            while (done := running.poll()) is None:
                pass
            assert done[0].stopped and 0 < done[0].workflows < 3000
        # the parent's end of the lifeline closes: the shard drains, closes its journal and leaves by itself
        with Shards(split(job, 1, [tmp_path / "e0"], [None])) as running:
            running.ready()
            running.go(time.monotonic_ns())
            assert running.poll(0.3) is None
        reader = JournalReader(tmp_path / "e0")
        assert len(list(reader)) > 0 and reader.torn == 0
    (tmp_path / "bad.jsonl").write_text("none\n")
    with Shards([replace(job, trace=tmp_path / "bad.jsonl", journal=tmp_path / "f0")]) as running:
        running.ready()
        running.go(time.monotonic_ns())
        with pytest.raises(UserError, match="not a trace"):
            while running.poll() is None:
                pass


def test_workflows_spread_evenly_and_users_are_divided(tmp_path: Path) -> None:
    counts = [0] * 4
    for i in range(4000):
        counts[shard_of(f"w{i}", 4)] += 1
    assert min(counts) > 900
    job = ShardJob(tmp_path, tmp_path, Target("h", 1), options=ReplayOptions(closed_loop_users=5, prewarm=3))
    jobs = split(job, 4, [tmp_path] * 4, [None] * 4)
    assert [j.options.closed_loop_users for j in jobs] == [2, 1, 1, 1]
    assert [j.options.prewarm for j in jobs] == [1, 1, 1, 0]
    with pytest.raises(UserError):
        split(job, 6, [tmp_path] * 6, [None] * 6)


def test_merged_totals_judge_the_sum() -> None:
    fine = ReplayTotals(requests=99, lateness_counts=[99], outcomes={"ok": 99}, t_start_ns=5, t_end_ns=9)
    late = ReplayTotals(requests=3, lateness_counts=[0] * 80 + [3], outcomes={"ok": 1, "error": 2}, t_end_ns=20)
    got = merged([fine, late], Bounds())
    assert (got.requests, got.outcomes, got.t_start_ns, got.t_end_ns) == (102, {"ok": 100, "error": 2}, 0, 20)
    assert not got.valid and "lateness" in got.why[0]
    assert merged([fine, fine], Bounds()).valid
