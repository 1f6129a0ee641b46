"""A small sweep in virtual time, from the file to tables and plots; killed and continued."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from joulegraph.commands.sweep import derive
from joulegraph.sweep.config import Sweep, parse, read
from joulegraph.sweep.drive import Driver, outcomes

TEXT = """
name = "small"
repeats = 2
[base]
workload = "chat"
count = 3
[base.param]
prompt = "64"
[grid]
max_num_seqs = [1, 4]
output_length = [8, 24]
[[point]]
sm_clock_mhz = 900
[[point]]
proxy_limit = 1
power_cap_w = 350
users = 2
[[point]]
max_model_len = 16
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "s.toml").write_text(TEXT)
    sweep = read(folder / "s.toml")
    assert Driver(sweep, folder / "out", quiet=True).run() == {"done": 12, "failed": 2, "left": 0}
    derive(sweep, folder / "out")
    return sweep, folder / "out"


def test_a_row_per_point_repeat_and_class(swept: tuple[Sweep, Path]) -> None:
    _, out = swept
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert len(rows) == 2 * 12 + 2  # "all" and "chat" of what ran, one of what did not
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    states = {(r["sm_clock_mhz"], r["max_model_len"], r["state"]) for r in rows}
    assert states == {(None, None, "complete"), (900, None, "failed"), (None, 16, "invalid")}
    failed = next(r for r in rows if r["state"] == "failed")
    assert "SM clock" in failed["why"] and failed["active_j"] is None
    refused = next(r for r in rows if r["state"] == "invalid")
    assert "no request was answered" in refused["why"]
    whole = [r for r in rows if r["state"] == "complete" and r["output_length"] is not None]
    assert {r["output_tokens_mean"] for r in whole} == {8.0, 24.0}
    assert all(r["j_per_request"] == pytest.approx(r["active_j"] / r["requests"]) for r in whole)
    assert all(r["gpu_j"] + r["cpu_j"] + r["dram_j"] == pytest.approx(r["active_j"]) for r in whole)
    assert all(r["tokens_per_s_generating"] >= r["tokens_per_s_in_flight"] for r in whole)
    one = [r for r in whole if r["max_num_seqs"] == 1 and r["class"] == "all"]
    assert all(r["batch_max"] == 1 and r["preemptions"] == 0 for r in one)


def test_only_complete_runs_are_averaged(swept: tuple[Sweep, Path]) -> None:
    _, out = swept
    means = pq.read_table(out / "means.parquet").to_pylist()
    assert {r["n"] for r in means} == {2}
    assert len({r["point"] for r in means}) == 5
    assert all(r["low95"] <= r["mean"] <= r["high95"] for r in means)


def test_plots_for_the_factors_that_vary(swept: tuple[Sweep, Path]) -> None:
    _, out = swept
    names = {p.name for p in (out / "plots").iterdir()}
    expected = {"batch-max_num_seqs", "energy-output-length", "pareto", "components"}
    assert names == {f"{n}.{s}" for n in expected for s in ("svg", "png")}
    assert "R²" in (out / "plots" / "energy-output-length.svg").read_text()


def test_a_limit_of_the_proxy_holds(swept: tuple[Sweep, Path]) -> None:
    sweep, out = swept
    point = next(p for p in sweep.points if p.proxy_limit == 1)
    steps = pq.read_table(out / "runs" / f"{point.key()}-r0" / "steps.parquet")
    assert max(steps["running"].to_pylist()) == 1


def test_finished_points_are_skipped_and_damage_is_mended(swept: tuple[Sweep, Path]) -> None:
    """Killed after the journals, while running, and while writing an outcome: three kinds of half a run."""
    sweep, out = swept
    runs = sorted(p.parent for p in (out / "runs").glob("*/summary.json"))
    before = {p: (p / "summary.json").read_bytes() for p in runs}
    stamps = {p: (p / "run.json").stat().st_mtime_ns for p in runs}
    underived, killed = runs[0], runs[1]
    (underived / "summary.json").unlink()
    (killed / "summary.json").unlink()
    info = orjson.loads((killed / "run.json").read_bytes())
    (killed / "run.json").write_bytes(orjson.dumps({**info, "state": "running"}))
    with (out / "outcomes.jsonl").open("ab") as file:
        file.write(b'{"run":"torn')
    assert Driver(sweep, out, quiet=True).run() == {"done": 12, "failed": 2, "left": 0}
    assert killed.with_name(f"{killed.name}.unfinished-1").is_dir()
    for path in runs:
        again = orjson.loads((path / "summary.json").read_bytes())
        was = orjson.loads(before[path])
        assert again["measured_uj"] == was["measured_uj"]  # virtual time: the same run again
        assert ((path / "run.json").stat().st_mtime_ns != stamps[path]) == (path == killed)
    assert all("run" in row for row in outcomes(out).values())


def test_what_could_not_run_is_tried_again_only_when_asked(swept: tuple[Sweep, Path]) -> None:
    sweep, out = swept
    lines = len((out / "outcomes.jsonl").read_bytes().splitlines())
    Driver(sweep, out, quiet=True).run()
    assert len((out / "outcomes.jsonl").read_bytes().splitlines()) == lines
    assert Driver(sweep, out, retry=True, quiet=True).run()["failed"] == 2


def test_a_second_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    class Left(Driver):
        def _all(self, todo: Any, of: int) -> None:
            for _ in range(2):
                self.stop(signal.SIGINT, None)

    sweep = parse({"name": "s", "repeats": 1, "base": {"workload": "chat", "count": 1}, "grid": {"max_num_seqs": [1]}})
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        Left(sweep, tmp_path, quiet=True).run()


@pytest.mark.slow
def test_killed_then_interrupted_then_whole(tmp_path: Path) -> None:
    """kill -9, then one Ctrl-C, then to the end: nothing is lost and nothing is run twice."""
    (tmp_path / "s.toml").write_text(
        'repeats = 2\n[base]\nworkload = "chat"\ncount = 40\n[grid]\nmax_num_seqs = [1, 2, 3]'
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "joulegraph", "sweep", str(tmp_path / "s.toml"), "--out", str(out), "--json"]

    def finished() -> set[str]:
        return {p.parent.name for p in out.glob("runs/*/summary.json")}

    def until(count: int, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 60
        while len(finished()) < count and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    with start() as process:
        until(1, process)
        process.kill()
    first = finished()
    stamps = {n: (out / "runs" / n / "run.json").stat().st_mtime_ns for n in first}
    with start() as process:
        until(len(first) + 1, process)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) in (0, 130)
    second = finished()
    assert len(second) > len(first)
    with start() as process:
        assert process.stdout is not None
        said = orjson.loads(process.stdout.read())
        assert process.wait(60) == 0
    assert said["done"] == 6 and said["left"] == 0
    assert stamps == {n: (out / "runs" / n / "run.json").stat().st_mtime_ns for n in first}
