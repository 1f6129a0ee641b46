"""A sweep over a launched engine in real time: a stand-in for vLLM (the embedded engine behind vLLM's command line) is
started once per launch setting, each run gets its part of the iteration stream, a death is recorded and survived."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from joulegraph.sweep.config import read
from joulegraph.sweep.drive import Driver, outcomes
from joulegraph.sweep.tables import results
from traces.rundir import RunDir

STAND_IN = """#!{python}
import os, sys
if sys.argv[1] == "-c":
    print('["vllm", "0.26.0", true, false]')
    sys.exit(0)
words = dict(zip(sys.argv[3::1], sys.argv[4::1]))
with open({log!r}, "a") as log:
    log.write(words["--model"] + ":" + words.get("--max-num-seqs", "-") + "\\n")
if words["--model"] == "broken":
    sys.exit("RuntimeError: no kernel image is available for execution on the device")
steps = os.environ["JOULEGRAPH_STEPS"]
folder = os.path.dirname(steps)
stream = os.path.join(folder, "engine.jsonl")
if os.path.lexists(stream):
    os.unlink(stream)
os.symlink(steps, stream)
if words["--model"] == "dying" and os.fork() == 0:
    import signal, time
    while os.path.exists(steps) and os.path.getsize(steps) < 1500 or not os.path.exists(steps):
        time.sleep(0.05)
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(0)
os.execv({python!r}, [{python!r}, "-m", "joulegraph", "engine", "--port", words["--port"], "--max-num-seqs",
    words.get("--max-num-seqs", "8"), "--truth", folder])
"""

TEXT = """
repeats = 2
warmup = 1
cooldown_s = 0.1
idle_s = 0.2
sources = []
[base]
engine = "vllm"
model = "m"
workload = "chat"
count = 3
[base.param]
prompt = "32"
output = "8"
[grid]
max_num_seqs = [1, 2]
[[point]]
max_num_seqs = 2
proxy_limit = 1
[[point]]
model = "broken"
[[point]]
model = "dying"
count = 30
param.output = "200"
[vllm]
python = "PYTHON"
"""


@pytest.mark.slow
def test_engines_are_kept_while_they_fit(tmp_path: Path) -> None:
    log = tmp_path / "starts"
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "s.toml").write_text(TEXT.replace("PYTHON", str(python)))
    sweep, out = read(tmp_path / "s.toml"), tmp_path / "out"
    assert Driver(sweep, out, quiet=True).run() == {"done": 6, "failed": 4, "left": 0}
    starts = log.read_text().split()
    assert starts.count("broken:-") == 1  # what does not start is not tried for every repeat
    assert starts.count("dying:-") == 2  # what died is started again
    assert sum(s.startswith("m:") for s in starts) <= 4
    why = [row["why"] for row in outcomes(out).values() if row["outcome"] == "failed"]
    assert sum("no kernel image" in w for w in why) == 2
    assert sum("the engine died" in w for w in why) == 2
    for row in results(sweep, out):
        if row["state"] == "complete" and row["class"] == "all":
            run = RunDir.open(out / row["run"])
            load = run.info["load"]
            steps = pq.read_table(run.file("steps.parquet")).to_pylist()
            assert sum(s["prompt_tokens"] for s in steps) == load["prompt_tokens"]
            assert max(s["running"] for s in steps) <= (row["proxy_limit"] or row["max_num_seqs"])
            assert run.info["joined"]["scrapes"] >= 2
            assert any(r.get("kind") == "counters" for r in run.rows("engine"))
    assert {r["state"] for r in results(sweep, out) if r["model"] == "dying"} <= {"invalid", "failed"}
    assert orjson.loads((out / "sweep.json").read_bytes())["order"]
