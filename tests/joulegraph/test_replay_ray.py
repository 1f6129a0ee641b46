"""`joulegraph replay --ray` as a user gives it: a cluster of two nodes on this machine, one with a clock that is wrong.

Its clock is 250 ms ahead and runs 50 ppm fast: measured, recorded, and gone from the rows that come home.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from engines.embedded.process import EngineConfig, engine_process
from traces.child import spawn
from traces.rundir import RunDir
from traces.status import StatusReader
from traces.trace import write_trace
from traces.workflow import Dep, Manifest, Node, Workflow

RAY = importlib.util.find_spec("ray") is not None
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not RAY, reason="ray is not installed (pip install 'joulegraph[ray]')"),
]
MS = 1_000_000
OFFSET_NS, DRIFT_PPM = 250 * MS, 50.0
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1, env_vars={"JOULEGRAPH_CLOCK_SKEW": "250:50"})
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    address = child.stdout.readline().strip()
    assert address
    yield address
    child.stdin.close()
    child.wait(60)
    child.stdout.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    child = spawn(engine_process, EngineConfig(), name="engine")
    yield f"http://127.0.0.1:{child.lifeline.recv()}"
    assert child.stop() == 0


def trace_in(folder: Path, workflows: int, gap_ms: int) -> Path:
    """Chains of two and a diamond now and then."""
    made = []
    for i in range(workflows):
        w = f"w{i}"
        nodes = [
            Node(w, "a", i * gap_ms * MS, 40 + i, 6),
            Node(w, "b", 0, 60, 3 + i % 5, deps=(Dep("a"),), delay_ns=9 * MS),
        ]
        if i % 3 == 0:
            nodes += [Node(w, "c", 0, 30, 4, deps=(Dep("a"),)), Node(w, "d", 0, 20, 2, deps=(Dep("b"), Dep("c")))]
        made.append(Workflow(w, tuple(nodes)))
    write_trace(folder / "trace.jsonl", Manifest(), made)
    return folder / "trace.jsonl"


def command(trace: Path, engine: str, out: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "joulegraph", "replay", str(trace), "--target", engine, "--out", str(out)]
    return [*base, "--no-report", "--json", "--max-lateness", "5000", "--max-merged", "1", *more]


def replayed(*args: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """run.json and the dispatch rows of a run."""
    done = subprocess.run(command(*args), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunDir.open(args[2])
    return run.info, list(run.rows("dispatch"))


def content(info: dict[str, Any], rows: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """What of a row does not depend on when things happened to happen, or on the salt of the run."""
    fixed = (
        "outcome", "kind", "deps", "delay_ns", "planned_input_tokens", "planned_output_tokens", "prompt_tokens",
        "completion_tokens", "finish_reason", "api", "model", "status", "class_name", "attempts", "error",
    )  # fmt: skip
    return {(r["workflow_id"], r["request_id"]): {k: r.get(k) for k in fixed} for r in rows}


def test_two_nodes_give_what_one_process_gives_and_a_wrong_clock_is_found(
    tmp_path: Path, cluster: str, engine: str
) -> None:
    trace = trace_in(tmp_path, 60, 150)
    there, rows = replayed(trace, engine, tmp_path / "ray", "--ray", cluster, "--shards", "4")
    here, alone = replayed(trace, engine, tmp_path / "one")
    assert there["state"] == here["state"] == "complete"
    assert content(there, rows) == content(here, alone) and len(rows) == 160
    shards = [c for c in there["clocks"] if "shard" in c]
    assert [c["shard"] for c in sorted(shards, key=lambda c: c["shard"])] == [0, 1, 2, 3]
    assert sum("sampler" in c for c in there["clocks"]) == 2
    wrong = [c for c in there["clocks"] if c["offset_ns"] > OFFSET_NS // 2]
    assert len(wrong) == 3  # two shards and the sampler of that node
    for clock in there["clocks"]:
        offset, drift = (OFFSET_NS, DRIFT_PPM) if clock in wrong else (0, 0.0)
        # by its first reading the drift has added up since the actor began
        assert -clock["error_ns"] <= clock["offset_ns"] - offset <= clock["error_ns"] + drift * 1000 * 60
        assert abs(clock["drift_ppm"] - drift) <= 2 * clock["error_ns"] / clock["span_ns"] * 1e6 + 1
    worst = max(c["error_ns"] for c in there["clocks"])
    t0 = there["t0_ns"]
    for row in rows:
        if row["request_id"] == "a":  # all nodes began at one epoch; the start knew the offset, not yet the drift
            off = row["due_ns"] - t0 - int(row["workflow_id"][1:]) * 150 * MS
            assert abs(off) <= 2 * worst + DRIFT_PPM * 1000 * 60
        assert row["due_ns"] <= row["t_sent_ns"] <= row["t_end_ns"]


def test_the_first_ctrl_c_drains_every_node_and_keeps_its_rows(tmp_path: Path, cluster: str, engine: str) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen(
        command(trace_in(tmp_path, 400, 100), engine, out, "--ray", cluster, "--shards", "2"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 100
    while not all(
        (page := out / f"status.loadgen.{n}").exists() and StatusReader(page).get("workflows_done") for n in "01"
    ):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=100)
    assert child.returncode == 130, said[-2000:]
    run = RunDir.open(out)
    rows = list(run.rows("dispatch"))
    assert run.info["state"] == "interrupted" and run.info["load"]["stopped"]
    assert {r["request_id"] for r in rows if r["outcome"] == "ok"} >= {"a", "b"}
    assert len(rows) < 400
    assert {r["outcome"] for r in rows} <= {"ok", "skipped", "cancelled"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no cluster answers there"),
        ("nowhere", "no cluster answers there"),
        ("127.0.0.1:99999", "no cluster answers there"),
        ("ray://", "no cluster answers there"),
    ],
)
def test_a_wrong_address_is_one_sentence(tmp_path: Path, engine: str, address: str, said: str) -> None:
    done = subprocess.run(
        command(trace_in(tmp_path, 2, 10), engine, tmp_path / "run", "--ray", address),
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert orjson.loads((tmp_path / "run" / "run.json").read_bytes())["state"] != "complete"
