"""Points side by side, true joules in place of an attribution, and a Parrot beside the engine by itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from joulegraph.sweep.config import TRUTH, parse
from joulegraph.sweep.curves import Means
from joulegraph.sweep.drive import Driver
from joulegraph.sweep.plots import draw
from joulegraph.sweep.rows import ALL, rows_of
from joulegraph.sweep.setup import unable
from traces.errors import UserError

CHAT: dict[str, Any] = {"workload": "chat", "count": 4, "users": 4, "param": {"prompt": "64", "output": "12"}}
POINTS = [
    {**CHAT, "engine": "embedded:a100-llama7b", "max_num_seqs": 2},
    {**CHAT, "engine": "parrot:a100-llama7b", "max_batch_size": 2},
    {**CHAT, "engine": "parrot:a100-llama7b", "max_batch_size": 2, "tasks_capacity": 1},
]


def swept(out: Path, policy: str, jobs: int) -> dict[str, dict[str, Any]]:
    """Row of class `all` per run, in order of the points."""
    sweep = parse({"name": "arms", "repeats": 1, "policy": policy, "point": POINTS})
    assert Driver(sweep, out, quiet=True, jobs=jobs).run() == {"done": 3, "failed": 0, "left": 0}
    return {
        p.key(): next(r for r in rows_of(out / "runs" / f"{p.key()}-r0") if r["class"] == ALL) for p in sweep.points
    }


@pytest.fixture(scope="module")
def true_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return swept(tmp_path_factory.mktemp("true"), TRUTH, 2)


def test_side_by_side_gives_the_same_figures(true_rows: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert swept(tmp_path, TRUTH, 1) == true_rows


def test_truth_is_what_an_attribution_estimates(true_rows: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for key, row in swept(tmp_path, "fitted", 1).items():
        true = true_rows[key]
        assert true["level"] == TRUTH and row["level"] != TRUTH
        assert row["gpu_j"] == pytest.approx(true["gpu_j"], rel=0.1)
        same = ("requests", "workflows", "makespan_s_mean", "batch_mean", "input_tokens_mean")
        assert {n: row[n] for n in same} == {n: true[n] for n in same}
        assert true["gpu_measured_j"] == pytest.approx(true["gpu_j"] + true["gpu_idle_j"], rel=1e-6)


def test_a_parrot_says_how_full_its_engine_was(true_rows: dict[str, dict[str, Any]]) -> None:
    plain, parrot, narrow = true_rows.values()
    assert plain["tasks_peak"] is None and plain["latency_cap"] is None
    assert (parrot["latency_cap"], parrot["tasks_peak"]) == (4, 4)
    assert (narrow["tasks_peak"], narrow["batch_max"]) == (1, 1)
    assert narrow["makespan_s_mean"] > parrot["makespan_s_mean"]


def test_knobs_of_the_other_kind_are_refused() -> None:
    points = parse(
        {"point": [{**p, "max_num_seqs": 4} for p in POINTS[1:2]] + [{**POINTS[0], "tasks_capacity": 4}]}
    ).points
    assert [unable(p) for p in points] == [
        "a Parrot has no max_num_seqs; use max_batch_size or tasks_capacity",
        "tasks_capacity is a setting of Parrot; use max_num_seqs or proxy_limit",
    ]
    with pytest.raises(UserError, match="only embedded and parrot points know it"):
        parse({"policy": TRUTH, "base": CHAT, "grid": {"engine": ["embedded-real:a100-llama7b"]}})


def test_workers_stop_with_the_sweep(tmp_path: Path) -> None:
    """Ctrl-C while points run side by side: they are finished, the rest is left, and the same command goes on."""
    many = [{**POINTS[0], "count": 60, "param": {"prompt": "64", "output": str(n)}} for n in range(40, 52)]
    sweep = parse({"name": "many", "repeats": 1, "policy": TRUTH, "point": many})
    done = tmp_path / "outcomes.jsonl"

    def interrupt() -> None:
        while not done.is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    counts = Driver(sweep, tmp_path, quiet=True, jobs=2).run()
    assert counts["failed"] == 0 and 1 <= counts["done"] < 12 and counts["left"] == 12 - counts["done"]
    assert Driver(sweep, tmp_path, quiet=True, jobs=2).run() == {"done": 12, "failed": 0, "left": 0}
    states = [orjson.loads(p.read_bytes())["state"] for p in tmp_path.glob("runs/*/run.json")]
    assert states == ["complete"] * 12


def means_of(*points: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of means with one figure each; None: this figure was not measured."""
    rows = []
    for k, point in enumerate(points):
        figures = {n: point.pop(n) for n in ("makespan_s_mean", "j_per_workflow", "workflows") if n in point}
        for figure, mean in figures.items():
            if mean is not None:
                rows.append({"point": str(k), "class": ALL, "figure": figure, "n": 1, "mean": mean, "low95": None,
                             "high95": None, **point})  # fmt: skip
    return rows


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    point = {"workload": "chat", "makespan_s_mean": 1.0, "j_per_workflow": None, "workflows": 3.0}
    table = means_of({**point, "max_num_seqs": 1}, {**point, "max_num_seqs": 4})
    drawn = draw(table, ["max_num_seqs"], tmp_path)
    assert {p.name for p in drawn} == {"batch-max_num_seqs.svg", "batch-max_num_seqs.png"}


def test_labels_hold_what_tells_points_apart_and_no_more() -> None:
    common = {"makespan_s_mean": 1.0}
    table = means_of(
        {**common, "workload": "chat", "count": 4, "max_num_seqs": 1},
        {**common, "workload": "chat", "count": 4, "max_num_seqs": 4},
        {**common, "workload": "debate", "count": 9, "max_num_seqs": 1},
        {**common, "workload": "debate", "count": 9, "max_num_seqs": 4},
    )
    means = Means(table, ["workload", "count", "max_num_seqs"])
    assert sorted(means.series("max_num_seqs")) == ["chat", "debate"]
    assert set(means.jobs("makespan_s_mean")) == {"chat", "debate"}
