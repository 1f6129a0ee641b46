"""Shards on a local Ray cluster of two nodes: same rows as planned, clocks measured with 250 ms injected."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clocks import Skew, skew_from
from loadgen.part import ShardJob
from loadgen.ray import RayShards
from loadgen.target import Target
from traces.errors import UserError
from traces.trace import write_trace
from traces.workflow import Dep, Manifest, Node, Workflow

MS = 1_000_000
RAY = importlib.util.find_spec("ray") is not None
SCRIPT = """
import sys, time
from pathlib import Path
import orjson, ray
from ray.cluster_utils import Cluster
from loadgen.clocks import Skew
from loadgen.ray import RayShards
from loadgen.replay import ReplayOptions
from loadgen.part import ShardJob, split
from loadgen.totals import Bounds
from loadgen.target import Target
trace, folder, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
S = 10**9
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
job = ShardJob(trace, folder / "x", Target("127.0.0.1", port, model="m"),
               options=ReplayOptions(salt="s", bounds=Bounds(10 * S, 10 * S, 1.0, 1.0)))
jobs = split(job, 2, [folder / "d.0.jsonl", folder / "d.1.jsonl"], [None, None])
with RayShards(cluster.address, jobs, skew=Skew(250_000_000, 50.0, time.monotonic_ns())) as shards:
    nodes = len(shards.nodes())
    shards.ready()
    t0 = time.monotonic_ns() + S
    shards.go(t0)
    while (done := shards.poll()) is None:
        pass
    clocks = shards.clocks
cluster.shutdown()
said = {"t0": t0, "nodes": nodes, "clocks": clocks, "ok": done[0].outcomes, "workflows": done[0].workflows_done}
print(orjson.dumps(said).decode())
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not RAY, reason="ray is not installed (pip install 'joulegraph[ray]')")
def test_two_nodes_on_one_machine(tmp_path: Path, kit: Any) -> None:
    work = [
        Workflow(f"w{i}", (Node(f"w{i}", "a", i * 20 * MS, 20, 3), Node(f"w{i}", "b", 0, 20, 2, deps=(Dep("a"),))))
        for i in range(40)
    ]
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, Manifest(), work)
    with kit.serving() as (port, server):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, trace, tmp_path, str(port)], capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(server.asked) == 80
    said = orjson.loads(done.stdout.splitlines()[-1])
    assert said["nodes"] == 2 and said["ok"] == {"ok": 80} and said["workflows"] == 40
    assert len(said["clocks"]) == 2
    for clock in said["clocks"]:
        # 50 ppm since the actor began: a few hundred us more by the first reading, then as fast as measured
        assert abs(clock["offset_ns"] - 250 * MS) <= clock["error_ns"] + 50 * 1000 * 30
        assert abs(clock["drift_ppm"] - 50) <= 2 * clock["error_ns"] / clock["span_ns"] * 1e6 + 1
    rows = [orjson.loads(line) for n in (0, 1) for line in (tmp_path / f"d.{n}.jsonl").read_bytes().splitlines()[1:]]
    assert len(rows) == 80
    worst = max(clock["error_ns"] for clock in said["clocks"])
    for row in rows:
        if row["request_id"] == "a":  # each node began at the one epoch, on its own clock
            off = row["due_ns"] - said["t0"] - int(row["workflow_id"][1:]) * 20 * MS
            # the start is told by the first reading alone, which knows no drift: 50 ppm of what passes until then
            assert abs(off) <= 2 * worst + 50 * 1000 * 10
        assert row["t_sent_ns"] >= row["due_ns"]


def test_a_skewed_clock_is_skewed() -> None:
    import time

    before = time.monotonic_ns()
    shown = Skew(offset_ns=250 * MS, drift_ppm=50.0, since_ns=before - 1000 * 10**9).now_ns()
    assert 250 * MS + 50 * MS <= shown - before <= 250 * MS + 50 * MS + 10**9


@given(
    offset=st.integers(-(10**12), 10**12),
    ppm=st.floats(-500, 500),
    since=st.integers(0, 10**15),
    true=st.integers(0, 10**15),
)
def test_a_skewed_clock_never_wakes_early(offset: int, ppm: float, since: int, true: int) -> None:
    skew = Skew(offset, ppm, since)
    woken = skew.true_ns(skew.at(true))
    assert skew.at(woken) >= skew.at(true) and abs(woken - true) <= 1_000  # doubles hold a microsecond of 11 days


def test_a_nodes_skew_is_read_from_its_environment() -> None:
    assert skew_from(None, 5) is None
    assert skew_from("250:50", 5) == Skew(250 * MS, 50.0, 5)
    with pytest.raises(UserError, match="OFFSET_MS:DRIFT_PPM"):
        skew_from("a quarter second", 5)


@pytest.mark.skipif(not RAY, reason="ray is not installed (pip install 'joulegraph[ray]')")
def test_no_cluster_is_one_sentence() -> None:
    code = (
        "from loadgen.ray import RayShards\nfrom traces.errors import UserError\n"
        "try:\n    RayShards('127.0.0.1:9', [])\nexcept UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert "no cluster answers" in done.stdout, done.stdout + done.stderr[-500:]


@pytest.mark.skipif(RAY, reason="ray is installed")
def test_without_ray_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install"):
        RayShards("auto", [ShardJob(tmp_path, tmp_path, Target("h", 1))])
