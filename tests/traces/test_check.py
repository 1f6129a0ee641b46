"""The check finds every fault with its place, and finds none in what the product itself writes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings

from tests.traces import strategies
from traces.check import check
from traces.errors import UserError
from traces.trace import write_trace
from traces.workflow import Dep, Manifest, Node, Workflow, node_row

BASE = {"workflow_id": "w", "timestamp": 0, "input_length": 600, "output_length": 2}


def rows_file(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def test_all_faults_of_a_file_are_found(tmp_path: Path) -> None:
    path = rows_file(
        tmp_path / "t.jsonl",
        {"manifest": {"version": 1, "ordered": False}},
        {**BASE, "request_id": "a", "t_end": 50.0},
        {**BASE, "request_id": "a"},
        {**BASE, "request_id": "b", "deps": [{"on": "nobody"}]},
        {**BASE, "request_id": "c", "timestamp": -1, "input_length": "x"},
        {**BASE, "request_id": "d", "timestamp": 40, "deps": [{"on": "a"}]},
        {**BASE, "request_id": "e", "deps": [{"on": "f", "blocking": False}]},
        {**BASE, "request_id": "f", "deps": [{"on": "e"}]},
        {**BASE, "request_id": "g", "hash_ids": [1, 2, 3], "cached_length": 601},
        {**BASE, "request_id": "h", "timestamp": 9, "t_end": 8, "t_first_token": 10, "typo": 1},
        {**BASE, "request_id": "i", "deps": [{"on": "c", "blocking": False}]},
    )
    report = check(path, bound=100)
    wanted = [
        (3, "request_id is 'a'", "line 2 has it too"),
        (4, "deps.on is 'nobody'", "request_id of the same workflow"),
        (5, "timestamp is -1", "at least 0"),
        (5, "input_length is 'x'", "whole number"),
        (6, "deps.on is 'a (end at 50 ms, this row arrived at 40 ms)'", "not blocking"),
        (7, "deps is 'e -> f -> e'", "break the cycle"),
        (9, "hash_ids is '3 ids'", "at most 2"),
        (9, "cached_length is 601", "at most input_length = 600"),
        (10, "t_end is 8.0", "no earlier than timestamp"),
        (10, "t_first_token is 10.0", "between timestamp and t_end"),
    ]
    for line, what, remedy in wanted:
        assert any(f"{path}:{line}: {what}" in p and remedy in p for p in report.problems), (
            line,
            what,
            report.problems,
        )
    assert report.found == len(wanted) == len(report.problems)
    at = [int(p.removeprefix(f"{path}:").split(":")[0]) for p in report.problems]
    assert at == sorted(at)
    assert (report.rows, report.workflows, dict(report.unknown)) == (10, 1, {"typo": 1})


def test_a_damaged_line_hides_no_other_fault(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "t.jsonl", {**BASE, "request_id": "a", "timestamp": -1}, [1], {**BASE, "request_id": 7})
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    report = check(path)
    assert (report.rows, report.found) == (4, 4)
    starts = ("1: timestamp is -1", "2: line is not a JSON object", "3: request_id is 7", "4: line is not JSON")
    for problem, start in zip(report.problems, starts, strict=True):
        assert problem.startswith(f"{path}:{start}")


def test_the_documented_example_is_a_valid_trace(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/traces.md").read_text()
    path = tmp_path / "example.jsonl"
    path.write_text(text.split("```json\n")[1].split("```")[0])
    report = check(path)
    assert (report.problems, report.rows, report.edges, dict(report.unknown)) == ([], 2, 1, {})


def test_faults_beyond_the_bound_are_counted(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "t.jsonl", *[{**BASE, "request_id": f"{i}", "timestamp": -1} for i in range(500)])
    report = check(path, bound=10)
    assert (report.found, len(report.problems)) == (500, 10)


def test_a_duplicate_far_away_is_found(tmp_path: Path) -> None:
    """Rows of a workflow need not stand together; the id index reaches across the file."""
    others = [{**BASE, "workflow_id": f"o{i}", "request_id": "a", "timestamp": i} for i in range(50)]
    path = rows_file(tmp_path / "t.jsonl", {**BASE, "request_id": "a"}, *others, {**BASE, "request_id": "a"})
    report = check(path)
    assert report.found == 1
    assert f"{path}:52: request_id is 'a'" in report.problems[0]
    assert report.workflows == 51


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([("w1", 0), ("w2", 1), ("w1", 2)], "do not stand together"),
        ([("w1", 5), ("w2", 1)], "go back in time"),
    ],
)
def test_a_broken_promise_of_order_is_found(tmp_path: Path, rows: list[tuple[str, int]], why: str) -> None:
    path = rows_file(
        tmp_path / "t.jsonl",
        {"manifest": {"ordered": True}},
        *[{**BASE, "workflow_id": w, "request_id": str(t), "timestamp": t} for w, t in rows],
    )
    (problem,) = check(path).problems
    assert "manifest.ordered" in problem
    assert why in problem


@pytest.mark.parametrize(("stamp", "faults"), [({"timestamp": 0}, 1), ({}, 0)])
def test_a_child_without_a_stamp_contradicts_nothing(tmp_path: Path, stamp: dict[str, int], faults: int) -> None:
    child = {
        "workflow_id": "w",
        "request_id": "b",
        "input_length": 1,
        "output_length": 1,
        "deps": [{"on": "a"}],
        **stamp,
    }
    path = rows_file(tmp_path / "t.jsonl", {**BASE, "request_id": "a", "t_end": 50}, child)
    assert check(path).found == faults


def test_what_is_no_trace_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"manifest": {"version": "new"}}\n{"timestamp": 1}\n')
    with pytest.raises(UserError, match=r"manifest\.version is 'new'"):
        check(path)
    path.write_bytes(b'{"manifest": {}}\n')
    assert "holds no rows" in check(path).problems[0]


@pytest.mark.parametrize(
    ("anchor", "t_first", "valid"),
    [("end", None, False), ("first_token", 10, True), ("first_token", 30, False), ("start", 30, True)],
)
def test_recorded_times_must_allow_the_edge(tmp_path: Path, anchor: str, t_first: int | None, valid: bool) -> None:
    source = {**BASE, "request_id": "a", "t_end": 50, "t_first_token": t_first}
    child = {**BASE, "request_id": "b", "timestamp": 20, "deps": [{"on": "a", "anchor": anchor}]}
    assert (check(rows_file(tmp_path / "t.jsonl", source, child)).found == 0) == valid


@settings(max_examples=25, deadline=None)
@given(flow=strategies.traces())
def test_only_random_lengths_and_times_are_at_fault_in_what_is_written(flow: list[Workflow]) -> None:
    """Graphs are sound by construction: with times and lengths left out nothing may be found."""
    plain = [Workflow(w.workflow_id, tuple(_plain(n) for n in w.nodes), w.class_name) for w in flow]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        write_trace(path, Manifest(), plain)
        report = check(path)
    assert report.problems == []
    assert (report.rows, report.workflows) == (sum(len(w.nodes) for w in flow), len(flow))


def _plain(node: Node) -> Node:
    arrival = 0 if node.blocking else node.arrival_ns  # as a planned child has it
    return Node(node.workflow_id, node.request_id, arrival, 10, 1, deps=node.deps, delay_ns=node.delay_ns)


def test_the_whole_mooncake_file_is_valid(data: Path) -> None:
    report = check(data / "traces/mooncake/conversation_trace.jsonl")
    assert (report.found, report.rows, report.workflows) == (0, 12_031, 12_031)


def test_an_edge_to_another_workflow_is_unknown(tmp_path: Path) -> None:
    other = node_row(Node("v", "x", 0, 1, 1))
    path = rows_file(tmp_path / "t.jsonl", other, node_row(Node("w", "y", 0, 1, 1, deps=(Dep("x"),))))
    assert "deps.on is 'x'" in check(path).problems[0]
