"""Run directories as traces: a replayed plan, a proxy's recording, a generator's journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.traces.test_importers import imported, through_file
from traces.errors import UserError
from traces.importers import as_trace, detect
from traces.records import DispatchRecord, RequestRecord
from traces.rundir import RunDir
from traces.trace import read_trace, write_trace
from traces.workflow import Dep, Manifest, Node, Workflow

S = 1_000_000_000
T0 = 77 * S
REQUEST = RequestRecord(
    "r1", "w", "n1", "ok", T0, T0 + 2 * S, api="chat", model="m", prompt_tokens=1000, completion_tokens=50,
    cached_tokens=300, class_name="agentic", t_first_token_ns=T0 + S, block_hashes=(11, 12, 13, 14),
)  # fmt: skip


def recording(path: Path, name: str, *records: object) -> RunDir:
    run = RunDir.create(path)
    for number, record in enumerate(records):
        writer = run.writer(name, str(number % 2), mono_ns=0, wall_ns=0)
        writer.write(record)
        writer.close()
    return run


def test_what_the_proxy_saw_becomes_a_trace(tmp_path: Path) -> None:
    dep = {"on": "n1", "kind": "tool", "provenance": "declared"}
    lost = {"on": "never-seen"}
    second = replace(
        REQUEST, request_id="r2", node_id="n2", t_arrival_ns=T0 + 5 * S, t_end_ns=T0 + 6 * S, t_first_token_ns=None,
        deps=(dep, lost), block_hashes=(11, 12, 99),
    )  # fmt: skip
    failed = replace(REQUEST, request_id="r3", node_id="n3", outcome="upstream_died", completion_tokens=None)
    route = replace(REQUEST, request_id="r4", node_id=None, workflow_id=None, api=None)
    alone = replace(REQUEST, request_id="r5", node_id=None, workflow_id=None, t_arrival_ns=T0 + S, class_name=None)
    run = recording(tmp_path / "run", "requests", second, REQUEST, failed, route, alone)
    assert detect(run.path) == "run"
    flow, manifest = imported(run.path)
    first, other = flow
    assert (first.class_name, other.workflow_id, other.class_name) == ("agentic", "r5", "workflow")
    assert [n.request_id for n in first.nodes] == ["n1", "n2"]
    assert (first.nodes[0].arrival_ns, first.nodes[0].t_first_token_ns, first.nodes[0].t_end_ns) == (0, S, 2 * S)
    assert first.nodes[1].deps == (Dep("n1", "tool", provenance="declared"),)
    assert first.nodes[1].delay_ns == 3 * S
    assert manifest.content_mode == "hash"
    assert [n.hash_ids and n.hash_ids[:2] for n in first.nodes] == [(0, 1), (0, 1)]
    for part in (
        "1 x a request without usage",
        "1 x a request to another route",
        "1 x an edge to a request",
        "interpolated",
    ):
        assert any(part in t for t in manifest.transforms), (part, manifest.transforms)
    through_file(tmp_path, flow, manifest)


@pytest.mark.parametrize("tagged", ["w", None])
def test_ids_link_what_different_workers_recorded(tmp_path: Path, tagged: str | None) -> None:
    made = replace(REQUEST, workflow_id=tagged, node_id=None, block_hashes=())
    first = replace(made, request_id="a", api="responses", response_id="resp", tool_call_ids=("c",))
    second = replace(made, request_id="b", previous_response_id="resp", t_arrival_ns=T0 + 3 * S, t_end_ns=T0 + 4 * S)
    answer = ({"role": "tool", "length": 1, "digest": "d", "tool_ids": ["c"]},)
    third = replace(made, request_id="c", messages=answer, t_arrival_ns=T0 + 5 * S, t_end_ns=T0 + 6 * S)
    (workflow,), _ = imported(recording(tmp_path / "run", "requests", first, second, third).path)
    assert [n.deps for n in workflow.nodes] == [(), (Dep("a", "conversation"),), (Dep("a", "tool"),)]


def test_a_recording_without_anything_to_replay_says_why(tmp_path: Path) -> None:
    looks = replace(REQUEST, api=None)
    failed = replace(REQUEST, outcome="upstream_died", completion_tokens=None)
    run = recording(tmp_path / "run", "requests", looks, looks, failed)
    with pytest.raises(UserError, match=r"run: recorded no request .*2 x a request to another .*; 1 x .*; record some"):
        imported(run.path)
    none = RunDir.create(tmp_path / "none")
    none.writer("requests", "0", mono_ns=0, wall_ns=0).close()
    with pytest.raises(UserError, match="no row of its journals is one"):
        imported(none.path)


def test_recorded_text_is_kept(tmp_path: Path) -> None:
    content = {"messages": [{"role": "user", "content": "hi"}], "output": "hello"}
    run = recording(tmp_path / "run", "requests", replace(REQUEST, content=content, block_hashes=()))
    (workflow,), manifest = imported(run.path)
    assert manifest.content_mode == "text"
    assert workflow.nodes[0].messages == ({"role": "user", "content": "hi"},)
    assert workflow.nodes[0].output == "hello"


def test_a_generators_journal_becomes_a_trace(tmp_path: Path) -> None:
    a = DispatchRecord("a", "w", "x", "ok", T0, T0 + S, planned_input_tokens=9, planned_output_tokens=3, class_name="c")
    tool = DispatchRecord("t", "w", "x", "ok", T0 + S, T0 + 3 * S, kind="tool", deps=({"on": "a", "kind": "tool"},))
    b = replace(a, request_id="b", due_ns=T0 + 4 * S, t_end_ns=T0 + 5 * S, deps=({"on": "t", "kind": "tool"},))
    flow, manifest = imported(recording(tmp_path / "run", "dispatch", b, tool, a).path)
    assert [(n.request_id, n.kind, n.delay_ns) for n in flow[0].nodes] == [
        ("a", "llm", 0),
        ("t", "tool", 0),
        ("b", "llm", S),
    ]
    through_file(tmp_path, flow, manifest)


def test_a_replayed_plan_is_taken_as_it_is(tmp_path: Path) -> None:
    run = recording(tmp_path / "run", "requests", REQUEST)
    plan = [Workflow("w", (Node("w", "a", 5, 10, 1, hash_ids=(3,)),), "chat")]
    write_trace(run.file("trace.jsonl"), Manifest(block_size=16), plan)
    flow, manifest = imported(run.path)
    assert (flow, manifest.block_size) == (plan, 16)


def test_a_dithered_plan_is_not_dithered_again(tmp_path: Path) -> None:
    """The run's manifest still names the source's quantum; the plan's own stamps no longer have it."""
    run = recording(tmp_path / "run", "requests", REQUEST)
    stamps = [3_000_000_000 * i + (i * 977) % 3000 * 1_000_000 for i in range(50)]
    plan = [Workflow(f"w{i}", (Node(f"w{i}", "a", at, 10, 1),)) for i, at in enumerate(stamps)]
    write_trace(run.file("trace.jsonl"), Manifest(time_quantum_ms=3000), reversed(plan))
    flow, manifest = imported(run.path)
    assert (flow, manifest.time_quantum_ms) == (plan, None)


def test_an_empty_run_is_said(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds no trace\.jsonl"):
        imported(run.path)


def test_anything_can_be_made_a_trace(tmp_path: Path) -> None:
    plain = tmp_path / "m.jsonl"
    plain.write_bytes(b'{"timestamp":0,"input_length":1,"output_length":1}\n')
    assert as_trace(plain, tmp_path) == (plain, None)
    run = recording(tmp_path / "run", "requests", REQUEST)
    path, name = as_trace(run.path, tmp_path)
    assert name == "run"
    assert [w.workflow_id for w in read_trace(path).workflows()] == ["w"]
