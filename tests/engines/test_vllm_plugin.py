"""The iteration-stream plugin in a stand-in vLLM: what a real vLLM told comes out as steps, a full disk is borne."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import orjson

from engines.launchers.vllm import plugin_folder
from traces.records import StepRecord, from_row
from traces.rundir import RunDir

HARNESS = """
import importlib.metadata, json, os, sys
from types import SimpleNamespace as N
(entry,) = importlib.metadata.entry_points(group="vllm.stat_logger_plugins")
logger = entry.load()(None, 0)
def record(row):
    logger.record(
        N(num_running_reqs=row["run"], num_waiting_reqs=row["wait"], kv_cache_usage=row["kv"],
          iteration_details=N(**row["it"]) if row["it"] else None),
        N(num_generation_tokens=row["gen"], num_preempted_reqs=row["preempted"], num_prompt_tokens=row["prompt"],
          time_to_first_tokens_iter=[],
          prompt_token_stats=N(cached_tokens=row["cached"], computed=row["prompt"] - row["cached"])),
        mm_cache_stats=None, engine_idx=0)
rows = json.load(open(sys.argv[1]))
"""


def run(folder: Path, rows: list[dict[str, Any]], body: str) -> subprocess.CompletedProcess[str]:
    """A stand-in API server that hands rows to the plugin; the stream goes to engine.jsonl."""
    package = folder / "site" / "vllm" / "v1" / "metrics"
    package.mkdir(parents=True)
    for part in (package, package.parent, package.parent.parent):
        (part / "__init__.py").touch()
    (package / "loggers.py").write_text("class StatLoggerBase: ...\n")
    (folder / "rows.json").write_bytes(orjson.dumps(rows))
    paths = [str(plugin_folder(folder)), str(folder / "site")]
    code = f"import sys; sys.path[:0] = {paths}\n{HARNESS}\n{textwrap.dedent(body)}"
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder / "rows.json")],
        env={"JOULEGRAPH_STEPS": str(folder / "engine.jsonl")},
        capture_output=True,
        text=True,
        check=True,
    )


def recorded(data: Path, count: int) -> list[dict[str, Any]]:
    """What a probe inside vLLM 0.26 on an H100 was told."""
    with gzip.open(data / "power" / "h100-vllm-workflows" / "steps.jsonl.gz") as file:
        return [json.loads(line) for line, _ in zip(file, range(count))]


def test_what_a_real_vllm_told_comes_out_as_step_records(data: Path, tmp_path: Path) -> None:
    rows = [row for row in recorded(data, 300) if row["it"]]
    run(tmp_path, rows, "for row in rows: record(row)")
    steps = [from_row(StepRecord, r) for r in RunDir(tmp_path).rows("engine") if r.get("kind") == "step"]
    assert len(steps) == len(rows)
    for step, row in zip(steps, rows):
        assert (step.running, step.kv_usage, step.preempted) == (row["run"], row["kv"], row["preempted"])
        assert (step.num_ctx_tokens, step.num_generation_tokens) == (
            row["it"]["num_ctx_tokens"],
            row["it"]["num_generation_tokens"],
        )
        assert (step.prompt_tokens, step.cached_tokens) == (row["prompt"], row["cached"])


def test_a_full_disk_ends_the_stream_and_no_request(data: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        recorded(data, 3),
        """
        os.dup2(os.open("/dev/full", os.O_WRONLY), logger._file)
        for row in rows: record(row)
        print("served")
        """,
    )
    assert done.stdout == "served\n"
    assert done.stderr.count("cannot be written") == 1


def test_a_moved_field_on_a_full_disk_is_borne(data: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        recorded(data, 1),
        """
        os.dup2(os.open("/dev/full", os.O_WRONLY), logger._file)
        logger.record(N(), N(), engine_idx=0)
        logger.record(N(), N(), engine_idx=0)
        print("served")
        """,
    )
    assert done.stdout == "served\n"
