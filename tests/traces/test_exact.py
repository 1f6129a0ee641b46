"""Exact edges between the journals of several workers: ids that one answer made and a later prompt names."""

from __future__ import annotations

from typing import Any

import pytest

from traces.exact import facts, link


def row(name: str, at: int, **more: Any) -> dict[str, Any]:
    return {
        "request_id": name, "workflow_id": "w", "node_id": None, "api": "chat", "t_arrival_ns": at, "t_end_ns": at + 5,
        "deps": [], "messages": [], "tool_call_ids": [], "response_id": None, "previous_response_id": None, **more,
    }  # fmt: skip


def called(*ids: str) -> list[dict[str, Any]]:
    return [{"role": "user"}, {"role": "assistant", "tool_ids": ids}, *({"role": "tool", "tool_ids": [i]} for i in ids)]


def deps(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    linked = link([facts(r) for r in rows])
    return {r["request_id"]: [(d["on"], d.get("kind", "data")) for d in found] for r, found in zip(rows, linked)}


def test_a_tool_call_and_a_previous_response_are_edges_between_workers() -> None:
    rows = [
        row("b", 10, messages=called("c1", "c2")),
        row("a", 0, tool_call_ids=["c1"]),
        row("a2", 1, tool_call_ids=["c2"]),
        row("r", 0, api="responses", response_id="resp", workflow_id="v"),
        row("s", 9, api="responses", previous_response_id="resp", workflow_id="v", node_id="n"),
    ]
    assert deps(rows) == {
        "b": [("a", "tool"), ("a2", "tool")],
        "a": [],
        "a2": [],
        "r": [],
        "s": [("r", "conversation")],
    }


@pytest.mark.parametrize(
    "maker",
    [
        {"workflow_id": "other"},
        {"t_end_ns": 11},  # ended after the other came: a coincidence, or a copy
        {"tool_call_ids": []},
    ],
)
def test_no_edge_across_workflows_or_back_in_time(maker: dict[str, Any]) -> None:
    rows = [{**row("a", 0, tool_call_ids=["c1"]), **maker}, row("b", 10, messages=called("c1"))]
    assert deps(rows)["b"] == []


def test_what_is_known_already_stays_and_is_not_said_twice() -> None:
    known = [{"on": "a", "kind": "control", "provenance": "declared"}, {"on": "z"}]
    rows = [row("a", 0, tool_call_ids=["c1"]), row("b", 10, messages=called("c1"), deps=known)]
    assert link(rows) == [[], known]
