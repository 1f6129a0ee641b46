"""Imports of agent recordings: sessions, tools, sub-agents and edges as each source names them, or as timing shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.test_importers import imported, through_file
from traces.errors import UserError
from traces.importers import detect
from traces.importers.base import Notes
from traces.importers.link import NO_END, OVERLAP, Dense, Links, Unique, settle
from traces.workflow import Dep, Node, Workflow

S = 1_000_000_000


def lines(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def edges(workflow: Workflow) -> dict[str, set[tuple[str, str]]]:
    """child -> {(parent, kind)} of the blocking edges."""
    return {n.request_id: {(d.on, d.kind) for d in n.blocking} for n in workflow.nodes}


# --- the timing rule ---------------------------------------------------------------------------------------------


def node(name: str, start: int, end: int | None, *deps: Dep) -> Node:
    return Node("w", name, start, 1, 1, deps=deps, t_end_ns=end)


def test_delay_counts_once_from_the_last_that_ended() -> None:
    a, b = node("a", 0, 1 * S), node("b", 0, 5 * S)
    c = node("c", 6 * S, 7 * S, Dep("a"), Dep("b"))
    settled = {n.request_id: n for n in settle([c, a, b], Notes())}
    assert settled["c"].delay_ns == 1 * S
    assert len(settled["c"].blocking) == 2


def test_an_edge_blocks_only_if_its_source_had_ended() -> None:
    notes = Notes()
    made = settle([node("a", 0, 9 * S), node("b", 1, None), node("c", 6 * S, 7 * S, Dep("a"), Dep("b"))], notes)
    assert not made[2].blocking
    assert made[2].delay_ns == 0
    assert set(notes.sentences()) == {f"1 x {OVERLAP}", f"1 x {NO_END}"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 50), st.one_of(st.none(), st.integers(0, 20)), st.lists(st.integers(0, 9), max_size=3)
        ),
        min_size=1,
        max_size=10,
    )
)
def test_settled_graphs_agree_with_their_recorded_times(rows: list[tuple[int, int | None, list[int]]]) -> None:
    """Every blocking edge ended before its child, and replaying with recorded service times gives recorded arrivals."""
    rows = sorted(rows, key=lambda r: r[0])
    nodes = [
        node(
            f"n{i}",
            at,
            at + took if took is not None else None,
            *(Dep(f"n{on}") for on in sorted({o for o in before if o < i})),
        )
        for i, (at, took, before) in enumerate(rows)
    ]
    settled = {n.request_id: n for n in settle(nodes, Notes())}
    for made in settled.values():
        ends = [settled[d.on].t_end_ns for d in made.blocking]
        assert all(e is not None and e <= made.arrival_ns for e in ends)
        if ends:
            assert max(e for e in ends if e is not None) + made.delay_ns == made.arrival_ns


def test_small_helpers() -> None:
    unique, dense, links = Unique(), Dense(), Links()
    assert [unique("a"), unique("a"), unique("a"), unique("a#2")] == ["a", "a#2", "a#3", "a#2#2"]
    assert (dense([2**70, 5]), dense([5, 9])) == ((0, 1), (1, 2))
    links.add("a", Dep("a"))
    links.add("b", Dep("a", "data"))
    links.add("b", Dep("a", "spawn"))
    assert links.of("a") == ()
    assert links.of("b") == (Dep("a", "data"),)


# --- Weka --------------------------------------------------------------------------------------------------------


def test_weka_sessions(data: Path, tmp_path: Path) -> None:
    path = data / "traces/weka-claude-code"
    assert detect(path) == detect(path / "trace_0001.json") == "weka"
    flow, manifest = imported(path)
    assert (manifest.block_size, manifest.block_rounding, manifest.hash_scope) == (64, "floor", "workflow")
    through_file(tmp_path, flow, manifest)
    for workflow in flow:
        source = orjson.loads((path / f"{workflow.workflow_id}.json").read_bytes())
        main = [r for r in source["requests"] if r["type"] != "subagent"]
        mine = [n for n in workflow.nodes if n.agent_id == "main"]
        assert [n.input_length for n in mine] == [r["in"] for r in main]
        assert [list(n.hash_ids or ()) for n in mine] == [r["hash_ids"] for r in main]
        assert all(len(n.hash_ids or ()) == n.input_length // 64 for n in mine)
        nested = sum(len(r["requests"]) for r in source["requests"] if r["type"] == "subagent")
        assert len(workflow.nodes) == len(main) + nested


def test_the_sub_agent_time_trap(data: Path) -> None:
    """t of a sub-agent is its completion: it starts duration earlier, right after the call that spawned it."""
    (workflow,), _ = imported(data / "traces/weka-claude-code/trace_0274.json")
    spawned = [n for n in workflow.nodes if any(d.kind == "spawn" for d in n.deps)]
    assert len(spawned) == 3
    parent = next(n for n in workflow.nodes if n.request_id == "main:0")
    for child in spawned:
        (dep,) = child.deps
        assert (dep.on, dep.provenance) == ("main:0", "inferred:timing")
        assert parent.t_end_ns is not None
        assert 0 <= child.arrival_ns - parent.t_end_ns < 3 * S
        assert child.parent_agent_id == "main"
    joined = next(n for n in workflow.nodes if n.request_id == "main:1")
    assert [d.kind for d in joined.deps].count("join") == 3
    assert all(d.blocking for d in joined.deps)


def weka(*requests: dict[str, Any], name: str = "s") -> dict[str, Any]:
    return {"id": name, "block_size": 64, "hash_id_scope": "local", "requests": list(requests)}


def call(t: float, took: float, **more: object) -> dict[str, Any]:
    return {"t": t, "type": "n", "model": "m", "in": 100, "out": 5, "hash_ids": [1], "api_time": took, **more}


def test_weka_asynchronous_and_nested_sub_agents(tmp_path: Path) -> None:
    inner = {"t": 6.0, "type": "subagent", "agent_id": "b", "duration_ms": 2000, "requests": [call(0, 1.5)]}
    outer = {
        "t": 20.0,
        "type": "subagent",
        "agent_id": "a",
        "duration_ms": 15_000,
        "requests": [call(0, 3.5), inner, call(8, 4)],
    }
    path = lines(tmp_path / "s.json", weka(call(0, 4.5), outer, call(10, 2), call(30, 2)))
    (workflow,), _ = imported(path)
    assert edges(workflow) == {
        "main:0": set(),
        "main/a:0": {("main:0", "spawn")},
        "main:1": {("main:0", "conversation")},  # went on while the sub-agent ran
        "main/a/b:0": {("main/a:0", "spawn")},
        "main/a:1": {("main/a:0", "conversation"), ("main/a/b:0", "join")},
        "main:2": {("main:1", "conversation"), ("main/a:1", "join")},
    }
    by_id = {n.request_id: n for n in workflow.nodes}
    assert by_id["main/a:0"].arrival_ns == 5 * S
    assert by_id["main/a/b:0"].arrival_ns == 9 * S
    assert by_id["main/a/b:0"].parent_agent_id == "main/a"


def test_weka_rounded_arrivals_move_to_the_reply_before_them(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", weka(call(0, 4.4), call(4, 2), call(5, 1)), weka(call(0, 1), name="t"))
    flow, manifest = imported(path)
    first = next(w for w in flow if w.workflow_id == "s")
    assert first.nodes[1].arrival_ns == 4_400_000_000
    assert first.nodes[1].attrs["t"] == 4
    assert not first.nodes[2].blocking  # 1.4 s too early is no rounding
    assert any("rounded to whole seconds" in t for t in manifest.transforms)


# --- TraceLab ----------------------------------------------------------------------------------------------------


def at(second: float) -> str:
    return f"2026-06-01T05:40:{second:06.3f}Z"


def tracelab(index: int, start: float, end: float, result_of: str | None = None, tools: tuple[Any, ...] = ()) -> Any:
    first = {"event_type": "tool_result" if result_of else "user_message", "timestamp": at(start)}
    if result_of:
        first["tool_call_id"] = result_of
    return {
        "provider": "claude", "session_id": "c:1", "round_index": index, "round_id": f"m{index}", "model": "m",
        "input_tokens_total": 100 + index, "prefix_tokens": 40, "newly_append_tokens": 60, "output_tokens": 7,
        "timing_events": [first, {"event_type": "text", "timestamp": at(end)}], "tools": list(tools),
    }  # fmt: skip


def test_tracelab_tools_and_rounds(tmp_path: Path) -> None:
    tool = {"tool_index": 0, "tool_name": "Bash", "tool_call_id": "t1", "emitted_at": at(9), "result_at": at(12)}
    path = lines(
        tmp_path / "round_trace.jsonl",
        tracelab(0, 1, 10, tools=(tool,)),
        tracelab(1, 12, 15, result_of="t1"),
        tracelab(2, 40, 41),
    )
    assert detect(path) == "tracelab"
    (workflow,), manifest = imported(path)
    through_file(tmp_path, [workflow], manifest)
    assert edges(workflow) == {
        "m0": set(),
        "t1": {("m0", "tool")},
        "m1": {("t1", "tool"), ("m0", "conversation")},
        "m2": {("m1", "conversation")},
    }
    by_id = {n.request_id: n for n in workflow.nodes}
    assert by_id["t1"].deps[0].anchor == "start"  # emitted while the reply was still streaming
    assert (by_id["t1"].kind, by_id["t1"].delay_ns, by_id["t1"].t_end_ns) == ("tool", 8 * S, 11 * S)
    assert (by_id["m1"].delay_ns, by_id["m2"].delay_ns) == (0, 25 * S)
    assert (by_id["m0"].cached_length, by_id["m0"].input_length) == (40, 100)


# --- Dynamo ------------------------------------------------------------------------------------------------------


def test_dynamo_documentation_examples(data: Path, tmp_path: Path) -> None:
    path = data / "traces/dynamo-request-trace/example.jsonl"
    assert detect(path) == "dynamo"
    flow, manifest = imported(path)
    assert (manifest.block_size, sum(len(w.nodes) for w in flow)) == (64, 3)
    assert {n.hash_ids for w in flow for n in w.nodes if n.kind == "llm"} == {(0, 1)}
    agent = next(w for w in flow if len(w.nodes) == 2)
    tool = next(n for n in agent.nodes if n.kind == "tool")
    assert [d.kind for d in tool.blocking] == ["tool"]
    through_file(tmp_path, flow, manifest)


def dynamo(
    session: str, name: str, start: int, took: int, parent: str | None = None, calls: tuple[str, ...] = ()
) -> Any:
    request: dict[str, Any] = {
        "request_id": name, "input_tokens": 64, "output_tokens": 3, "request_received_ms": 1_000_000 + start,
        "total_time_ms": took, "ttft_ms": 1, "finish_reason_metadata": {"tool_calls": [{"id": c} for c in calls]},
    }  # fmt: skip
    context = {"session_id": session, **({"parent_session_id": parent} if parent else {})}
    return {
        "schema": "dynamo.request.trace.v1",
        "event_type": "request_end",
        "agent_context": context,
        "request": request,
    }


def test_dynamo_sessions_tools_and_sub_sessions(tmp_path: Path) -> None:
    tool = {
        "schema": "dynamo.request.trace.v1", "event_type": "tool_end", "session_id": "p",
        "tool": {"tool_call_id": "c1", "started_at_unix_ms": 1_000_110, "ended_at_unix_ms": 1_000_200},
    }  # fmt: skip
    path = lines(
        tmp_path / "d.jsonl",
        dynamo("p", "p1", 0, 100, calls=("c1",)),
        tool,
        dynamo("k", "k1", 120, 50, parent="p"),
        dynamo("p", "p2", 210, 40),
    )
    (workflow,), manifest = imported(path)
    assert workflow.workflow_id == "p"
    assert edges(workflow) == {
        "p1": set(),
        "c1": {("p1", "tool")},
        "k1": {("p1", "spawn")},
        "p2": {("p1", "conversation"), ("c1", "tool"), ("k1", "join")},
    }
    assert workflow.nodes[-1].delay_ns == 10_000_000
    through_file(tmp_path, [workflow], manifest)


def test_agentic_mooncake_sums_its_two_waits(tmp_path: Path) -> None:
    row = {"session_id": "s", "input_length": 512, "output_length": 2, "hash_ids": [2**64 - 1]}
    path = lines(
        tmp_path / "a.jsonl",
        {**row, "request_id": "a", "timestamp": 5, "branches": ["c"]},
        {**row, "request_id": "b", "wait_for": ["a"], "delay": 3, "tool_wait_ms": 2.5},
        {**row, "request_id": "c", "session_id": "t", "wait_for": ["a"]},
        {**row, "request_id": "d", "wait_for": ["b", "c"], "delay": 1},
        {**row, "request_id": "z", "session_id": "other", "timestamp": 1},
    )
    assert detect(path) == "agentic_mooncake"
    flow, _ = imported(path)
    assert [len(w.nodes) for w in flow] == [1, 4]
    by_id = {n.request_id: n for n in flow[1].nodes}
    assert (by_id["b"].delay_ns, by_id["b"].tool_wait_ns) == (5_500_000, 2_500_000)
    assert edges(flow[1]) == {
        "a": set(), "b": {("a", "conversation")}, "c": {("a", "spawn")}, "d": {("b", "conversation"), ("c", "join")},
    }  # fmt: skip
    assert by_id["a"].hash_ids == (0,)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"wait_for": ["zz"]}, "wait_for is 'zz'"),
        ({"timestamp": None}, "timestamp is None"),
        ({"wait_for": "a"}, "wait_for is 'a'"),
        ({"request_id": "first"}, "request_id is 'first'"),
        ({"delay": -1, "wait_for": ["first"]}, "delay is -1"),
    ],
)
def test_agentic_mooncake_faults_are_named(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    row = {"request_id": "first", "input_length": 5, "output_length": 2, "timestamp": 5}
    path = lines(tmp_path / "a.jsonl", row, {**row, "request_id": "r", **change})
    with pytest.raises(UserError) as caught:
        imported(path)
    assert f"{path}:2: {part}" in str(caught.value)
