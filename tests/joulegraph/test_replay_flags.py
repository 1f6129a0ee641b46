"""Flags of joulegraph replay from the command line to the files: goodput, steady state, repeats, modes, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from joulegraph.cli import run as main
from joulegraph.cluster import home
from joulegraph.figures import joules
from joulegraph.repeats import write_repeats
from loadgen.clocks import Mapping, Reading
from loadgen.summary import Slo
from traces.errors import UserError
from traces.records import DispatchRecord
from traces.trace import write_trace
from traces.workflow import Dep, Manifest, Node, Workflow

MS = 1_000_000
PROFILE = ("--embedded", "h100-llama8b", "--no-report", "--json")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty chains of two, one a second; every fifth has a long answer."""
    path = tmp_path_factory.mktemp("flags") / "t.jsonl"
    flows = [
        Workflow(
            f"w{i}",
            (
                Node(f"w{i}", "a", i * 1000 * MS, 64, 200 if i % 5 == 0 else 10),
                Node(f"w{i}", "b", i * 1000 * MS + 1, 32, 5, deps=(Dep("a"),)),
            ),
        )
        for i in range(20)
    ]
    write_trace(path, Manifest(), flows)
    return path


def replay(trace: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert main(["replay", str(trace), "--out", str(out), *PROFILE, *flags]) == 0
    value: dict[str, Any] = orjson.loads((out / "figures.json").read_bytes())
    return value


def test_the_proxys_limit_holds_in_virtual_time_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, Manifest(), [Workflow(f"w{i}", (Node(f"w{i}", "a", 0, 64, 20),)) for i in range(6)])
    replay(path, tmp_path / "free")
    replay(path, tmp_path / "one", "--max-concurrency", "1")

    def most(out: Path) -> int:
        steps = map(orjson.loads, (out / "engine.jsonl").read_bytes().splitlines())
        return max(s["running"] for s in steps if s.get("kind") == "step")

    assert (most(tmp_path / "free"), most(tmp_path / "one")) == (6, 1)
    assert (tmp_path / "one" / "requests.0.jsonl").is_file()


def test_goodput_per_request_and_per_workflow_with_joules(trace: Path, tmp_path: Path) -> None:
    figures = replay(trace, tmp_path / "r", "--slo", "e2e=500ms,makespan=700ms")
    good = figures["all"]["goodput"]
    # the four long answers are late, and with them their workflows; everything else is well within
    assert (good["requests"], good["workflows"]) == (36, 16)
    assert (good["request_share"], good["workflow_share"]) == (0.9, 0.8)
    per = figures["joules"]
    assert per["per_good_workflow"] == pytest.approx(per["active_j"] / 16)
    assert per["per_workflow"] == pytest.approx(per["active_j"] / 20)
    summary = orjson.loads((tmp_path / "r" / "summary.json").read_bytes())
    assert summary["goodput"] == good and "goodput under e2e 500 ms" in summary["figures"][0]
    assert per["active_j"] == pytest.approx(summary["class_uj"]["workflow"] / 1e6)  # gpu, cpu and dram


def test_steady_state_leaves_the_edges_out_and_says_so(trace: Path, tmp_path: Path) -> None:
    whole = replay(trace, tmp_path / "whole")
    figures = replay(trace, tmp_path / "r", "--warmup", "4.5", "--cooldown", "5")
    assert whole["window"] is None and whole["all"]["workflows"]["n"] == 20
    assert 9 <= figures["all"]["workflows"]["n"] <= 11
    assert figures["joules"]["active_j"] < whole["joules"]["active_j"]
    nothing = replay(trace, tmp_path / "none", "--warmup", "60")
    assert "leave nothing of the" in nothing["why"] and "all" not in nothing


def test_finish_derives_the_same_figures(trace: Path, tmp_path: Path) -> None:
    flags = ("--slo", "ttft=1s", "--warmup", "2")
    before = replay(trace, tmp_path / "r", *flags)
    (tmp_path / "r" / "figures.json").unlink()
    assert main(["finish", str(tmp_path / "r")]) == 0
    assert orjson.loads((tmp_path / "r" / "figures.json").read_bytes()) == before


def test_repeats_have_seeds_of_their_own_and_intervals(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "many"
    flags = ("--repeat", "3", "--arrivals", "poisson:4", "--seed", "7", "--slo", "ttft=1s")
    assert main(["replay", str(trace), "--out", str(out), *PROFILE, *flags]) == 0
    said = orjson.loads(capsys.readouterr().out)
    seeds = [orjson.loads((out / n / "run.json").read_bytes())["config"]["seed"] for n in ("1", "2", "3")]
    assert seeds == [7, 8, 9] and (said["runs"], said["averaged"]) == (3, 3)
    assert orjson.loads((out / "2" / "run.json").read_bytes())["config"]["repeat"] == 1, "one run, to be made again"
    found = said["intervals"]["figures"]["all"]["e2e_ms"]["due"]["p50"]
    assert found["n"] == 3 and found["low"] < found["mean"] < found["high"]
    assert said["intervals"]["figures"]["joules"]["per_workflow"]["mean"] > 0
    # a run that is not complete is named, not averaged
    summary = orjson.loads((out / "2" / "summary.json").read_bytes())
    (out / "2" / "summary.json").write_bytes(orjson.dumps({**summary, "state": "invalid", "why": "late"}))
    again = write_repeats(out)
    assert again["averaged"] == 2 and again["left_out"] == {"2": "invalid: late"}
    assert main(["replay", str(trace), "--out", str(out), *PROFILE, *flags]) == 2, "never into a folder in use"


def test_repeats_without_a_steady_state_say_so(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--embedded", "h100-llama8b", "--no-report", "--repeat", "2", "--warmup", "100", "--limit", "2")
    assert main(["replay", str(trace), "--out", str(tmp_path / "r"), *flags]) == 0
    said = capsys.readouterr().err
    assert "run 1 has joules alone: no steady state: a warm-up of 100 s" in said and "run 2 has joules alone" in said


def test_fixed_and_closed_loop_are_modes_of_their_own(trace: Path, tmp_path: Path) -> None:
    def rows(name: str, *flags: str) -> list[dict[str, Any]]:
        replay(trace, tmp_path / name, *flags)
        lines = (tmp_path / name / "dispatch.0.jsonl").read_bytes().splitlines()[1:]
        return [orjson.loads(line) for line in lines]

    fixed = {(r["workflow_id"], r["request_id"]): r for r in rows("fixed", "--fixed")}
    assert fixed["w0", "b"]["due_ns"] - fixed["w0", "a"]["due_ns"] == 1, "dependencies hold nothing back"
    closed = rows("closed", "--users", "3", "--think", "0.25")
    edges = sorted([(r["due_ns"], 1) for r in closed] + [(r["t_end_ns"], -1) for r in closed])
    depth = peak = 0
    for _, step in edges:
        depth += step
        peak = max(peak, depth)
    assert peak == 3
    info = orjson.loads((tmp_path / "closed" / "run.json").read_bytes())
    assert info["transforms"][-1].startswith("Closed loop: 3 users, each taking the next workflow 0.25 s after")
    info = orjson.loads((tmp_path / "fixed" / "run.json").read_bytes())
    assert any("mode fixed" in sentence for sentence in info["transforms"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--slo", "ttft=5"), "--slo ttft=5: write NAME=TIME"),
        (("--slo", "speed=5s"), "names: e2e, makespan, tpot, ttft"),
        (("--warmup", "-1"), "--warmup: '-1': give a number of at least 0"),
        (("--repeat", "0"), "--repeat 0"),
        (("--cancel", "2"), "--cancel 2: must be a share"),
        (("--retries", "-1"), "--retries -1"),
        (("--vocab", "9:3"), "--vocab 9:3"),
        (("--max-lateness", "0"), "--max-lateness: '0': give a number above 0"),
        (("--calibrate",), "--calibrate: asks a running OpenAI-style server"),
        (("--ray", "auto"), "--ray: places load and samplers"),
    ],
)
def test_flags_that_make_no_sense_are_one_sentence(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    try:
        code: Any = main(["replay", str(trace), "--out", str(tmp_path / "x"), *PROFILE, *flags])
    except SystemExit as refused:  # argparse's own
        code = refused.code
    assert code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "x").exists()


def test_joules_of_failed_work_are_charged_to_the_good() -> None:
    def record(name: str, end_ms: int, outcome: str = "ok") -> DispatchRecord:
        return DispatchRecord(name, name, f"wire-{name}", outcome, 0, end_ms * MS, t_sent_ns=0)  # type: ignore[arg-type]

    records = [record("fast", 10), record("slow", 900), record("lost", 5, "error")]
    uj = {"wire-fast": 1_000_000, "wire-slow": 3_000_000, "wire-lost": 2_000_000}
    per = joules(records, [[r] for r in records], uj, Slo(e2e_ms=100, makespan_ms=100))
    assert per is not None
    assert (per["active_j"], per["per_request"], per["per_workflow"]) == (6.0, 3.0, 3.0)
    assert (per["per_good_request"], per["per_good_workflow"]) == (6.0, 6.0)
    assert joules(records, [], {}, None) is None


def test_power_rows_of_another_node_come_home_on_our_clock_and_under_its_name() -> None:
    mapping = Mapping(Reading(0, 250 * MS, 10), Reading(10**10, 250 * MS + 500_000, 10))  # 250 ms off, 50 ppm fast
    row = {"kind": "sample", "source": "nvml0.energy", "t0_ns": 10**10 + 250 * MS + 500_000, "t1_ns": None, "value": 7}
    assert home(row, "n1.", mapping) == {**row, "source": "n1.nvml0.energy", "t0_ns": 10**10}
    assert home({"kind": "heartbeat", "t_ns": 250 * MS}, "", mapping) == {"kind": "heartbeat", "t_ns": 0}


def test_repeats_without_a_complete_run_are_no_result(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(UserError, match="none of 1 runs is complete"):
        write_repeats(tmp_path)
