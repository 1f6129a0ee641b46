"""What different workers of a proxy recorded becomes one graph: at the control port and in the report."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from joulegraph.report.gather import gather
from joulegraph.traffic import Traffic
from traces.records import RequestRecord
from traces.rundir import RunDir

S = 1_000_000_000
MAKER = RequestRecord("a", "w", None, "ok", 0, S, api="chat", prompt_tokens=3, completion_tokens=1)
CALLED = replace(MAKER, tool_call_ids=("c",))
ANSWER = replace(
    MAKER,
    request_id="b",
    t_arrival_ns=2 * S,
    t_end_ns=3 * S,
    messages=({"role": "tool", "length": 1, "digest": "d", "tool_ids": ["c"]},),
)


def test_the_control_port_links_requests_of_different_workers() -> None:
    traffic = Traffic()
    for record in ANSWER, CALLED:
        traffic.take(asdict(record))
    found = traffic.detail("w", {})
    assert found is not None
    assert [(n["node_id"], n["deps"]) for n in found["nodes"]] == [("a", []), ("b", [{"on": "a", "kind": "tool"}])]
    assert found["critical_path"] == ["a", "b"]


def test_the_report_links_requests_of_different_workers(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    for worker, record in enumerate((CALLED, ANSWER)):
        writer = run.writer("requests", str(worker), mono_ns=0, wall_ns=0)
        writer.write(record)
        writer.close()
    assert {r.node_id: [d.on for d in r.deps] for r in gather(run).requests} == {"a": [], "b": ["a"]}
