"""Joules on a Parrot's calls: runs in virtual time, from the client's nodes down to the engine's tasks and truth."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from energy.calls import Seen, join_calls
from joulegraph.cli import run as main
from traces.rundir import RunDir


def replayed(tmp: Path, name: str, *flags: str) -> tuple[RunDir, dict[str, Any]]:
    trace = tmp / "trace.jsonl"
    if not trace.is_file():
        made = ["workload", "sequential", "--param", "shape=map-reduce", "--param", "document=6000", "--count", "16"]
        assert main([*made, "--rate", "2", "-o", str(trace)]) == 0
    out = tmp / name
    code = main(
        ["replay", str(trace), "--embedded", "h100-llama8b", "--no-report", "--json", "--out", str(out), *flags]
    )
    assert code == 0
    return RunDir.open(out), json.loads((out / "summary.json").read_bytes())


@pytest.mark.parametrize("proxy", [False, True])
def test_joules_land_on_a_parrots_calls_as_they_do_on_an_engines(tmp_path: Path, proxy: bool) -> None:
    beside = ["--proxy"] if proxy else []
    run, summary = replayed(tmp_path, "parrot", "--api", "parrot", *beside)
    _, plain = replayed(tmp_path, "plain", "--api", "completions", *beside)
    assert summary["level"] == plain["level"] == "L3" and summary["requests"] == plain["requests"]
    assert summary["closure_uj"] == 0 and summary["truth_error"]["requests"] == summary["requests"]
    assert summary["truth_error"]["median"] < 0.03 and summary["truth_error"]["p95"] < 0.06
    assert not [n for n in summary["notes"] if "bridge" in n]  # every call found by its name
    nodes = {r["wire_id"] for r in run.rows("dispatch")}
    table = pq.read_table(run.file("attribution.parquet")).to_pylist()
    assert {r["request_id"] for r in table} == nodes
    tasks = list(run.rows("bridge"))
    assert len({r["response_id"] for r in tasks}) == len(tasks) == summary["requests"]
    assert all(r["t_first_token_ns"] and r["prompt_tokens"] and r["engine_prefill_ns"] for r in tasks)


def test_calls_without_a_name_are_found_by_session_length_and_time(tmp_path: Path) -> None:
    run, _ = replayed(tmp_path, "run", "--api", "parrot", "--proxy")
    calls = [s for row in run.rows("requests") if (s := Seen.of(row)) is not None]
    tasks = [s for row in run.rows("bridge") if (s := Seen.of(row)) is not None]
    nameless = [replace(t, request_id=f"task-{k}") for k, t in enumerate(tasks)]
    found, by_time = join_calls(calls, nameless)
    right = sum(found.get(f"task-{k}") == t.request_id for k, t in enumerate(tasks))
    assert by_time == len(tasks) == len(calls)
    # maps of one document have the same length and may end in the same step: those are told apart by luck alone
    ends = Counter((t.session, t.max_tokens, t.end_ns) for t in tasks)
    alone = [k for k, t in enumerate(tasks) if ends[t.session, t.max_tokens, t.end_ns] == 1]
    assert all(found[f"task-{k}"] == tasks[k].request_id for k in alone) and right >= len(alone) > 0


def test_options_of_the_serve_layer_reach_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def span(name: str, *flags: str) -> int:
        run, _ = replayed(tmp_path, name, "--api", "parrot", *flags)
        rows = list(run.rows("dispatch"))
        return max(r["t_end_ns"] for r in rows) - min(r["due_ns"] for r in rows)

    free = span("free")
    assert span("two", "--tasks-capacity", "2") > free
    assert span("slow", "--chunk-ms", "50") > free
    assert span("capped", "--criteria", "latency") > free
    assert span("wide", "--engines", "2", "--scheduling", "app_fifo,graph_group,ctx_aware") > 0
    capsys.readouterr()
    flags = ["--embedded", "h100-llama8b", "--api", "parrot", "--scheduling", "magic"]
    assert main(["replay", str(tmp_path / "trace.jsonl"), *flags, "--out", str(tmp_path / "no")]) == 2
    assert "magic" in capsys.readouterr().err
    flags = ["--embedded", "h100-llama8b", "--api", "parrot", "--bridge", str(tmp_path / "none.jsonl")]
    assert main(["replay", str(tmp_path / "trace.jsonl"), *flags, "--out", str(tmp_path / "no")]) == 2
    assert "start the bridge first" in capsys.readouterr().err and not (tmp_path / "no").exists()
