"""Round trips: what a format can hold comes back the same, for random workflows and for real recordings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces import strategies
from traces.errors import UserError
from traces.exporters import FORMATS, export
from traces.importers import ImportOptions, detect, open_import
from traces.workflow import Dep, Manifest, Node, Workflow

MANIFEST = Manifest(block_size=16, block_rounding="floor", hash_scope="workflow", content_mode="text", chained=False)
FEW = settings(max_examples=30, deadline=None)


def there_and_back(
    name: str, back: str, flow: Sequence[Workflow], manifest: Manifest = MANIFEST, suffix: str = ".jsonl"
) -> tuple[list[Workflow], Manifest]:
    """Export, detect, import again."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out{suffix}"
        export(name, out, manifest, flow)
        assert detect(out) == back
        found = open_import(out, None, ImportOptions())
        return list(found.workflows), found.settled()


def by_name(flow: Sequence[Workflow]) -> list[Workflow]:
    return sorted(flow, key=lambda w: w.workflow_id)


@FEW
@given(flow=strategies.traces(4))
def test_otlp_gives_back_everything(flow: list[Workflow]) -> None:
    again, manifest = there_and_back("otlp", "otel", flow)
    assert by_name(again) == by_name(flow)
    kept = ("block_size", "block_rounding", "hash_scope", "chained", "content_mode")
    assert [getattr(manifest, k) for k in kept] == [getattr(MANIFEST, k) for k in kept]


@FEW
@given(flow=strategies.traces(4))
def test_wfformat_gives_back_everything(flow: list[Workflow]) -> None:
    again, manifest = there_and_back("wfformat", "wfformat", flow, suffix="")
    assert by_name(again) == by_name(flow)
    assert manifest.block_size == 16


@FEW
@given(workflow=strategies.workflows("w"))
def test_wfformat_documents_are_graphs_of_their_own(workflow: Workflow) -> None:
    """Without our command attributes a reader sees the same blocking graph."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "w.json"
        export("wfformat", out, MANIFEST, [workflow])
        document = orjson.loads(out.read_bytes())
        for task in document["workflow"]["execution"]["tasks"]:
            task["command"] = {"program": "foreign"}
        out.write_bytes(orjson.dumps(document))
        (again,) = open_import(out).workflows
    edges = {(n.request_id, d.on) for n in workflow.nodes for d in n.blocking}
    assert {(n.request_id, d.on) for n in again.nodes for d in n.deps} == edges
    ended = {n.request_id: n for n in again.nodes}
    for child, parent in edges:  # earliest start: nobody starts before what it waits for has ended
        end = ended[parent].t_end_ns
        assert end is not None
        assert ended[child].arrival_ns >= end


def _plain(node: Node) -> Node:
    """What agentic_mooncake can hold of an LLM call."""
    deps = tuple(Dep(d.on) for d in node.blocking)
    return Node(
        node.workflow_id,
        node.request_id,
        0 if deps else node.arrival_ns,
        node.input_length,
        node.output_length,
        delay_ns=node.delay_ns if deps else 0,
        tool_wait_ns=node.tool_wait_ns if deps else 0,
        deps=deps,
        hash_ids=node.hash_ids,
    )


def _llm_only(flow: Sequence[Workflow]) -> list[Workflow]:
    return [replace(w, nodes=tuple(replace(n, kind="llm") for n in w.nodes)) for w in flow]


def _planned(flow: Sequence[Workflow]) -> list[Workflow]:
    """Dependents without recorded arrivals, as workload generators write them."""
    return [replace(w, nodes=tuple(replace(n, arrival_ns=0) if n.blocking else n for n in w.nodes)) for w in flow]


def _small_ids(flow: Sequence[Workflow]) -> list[Workflow]:
    """Block ids that fit 63 bits (wider ones are renumbered on import: equality is kept, not the number)."""
    return [
        replace(
            w,
            nodes=tuple(
                replace(n, hash_ids=tuple(b % 2**60 for b in n.hash_ids)) if n.hash_ids is not None else n
                for n in w.nodes
            ),
        )
        for w in flow
    ]


@FEW
@given(flow=strategies.traces(4).map(_llm_only).map(_small_ids))
def test_agentic_mooncake_gives_back_the_graph_and_its_times(flow: list[Workflow]) -> None:
    again, _ = there_and_back("agentic_mooncake", "agentic_mooncake", flow, replace(MANIFEST, hash_scope="global"))
    for before, after in zip(by_name(flow), by_name(again), strict=True):
        assert after.class_name == before.class_name
        for old, new in zip(before.nodes, after.nodes, strict=True):
            bare = replace(new, session_id=None, attrs={}, deps=tuple(Dep(d.on) for d in new.deps))
            assert bare == _plain(old)


@FEW
@given(flow=strategies.traces(4).map(_llm_only))
def test_wide_or_scoped_block_ids_keep_their_equality(flow: list[Workflow]) -> None:
    again, _ = there_and_back("agentic_mooncake", "agentic_mooncake", flow)
    before = [(n.workflow_id, b) for w in by_name(flow) for n in w.nodes for b in n.hash_ids or ()]
    after = [b for w in by_name(again) for n in w.nodes for b in n.hash_ids or ()]
    pairs = set(zip(before, after, strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


@FEW
@given(
    st.lists(st.tuples(strategies.MS, strategies.TOKENS, strategies.TOKENS, st.integers(0, 9)), min_size=1, max_size=9)
)
def test_mooncake_rows_are_mooncake_rows_again(rows: list[tuple[int, int, int, int]]) -> None:
    rows = sorted(rows)
    flow = [
        Workflow(f"row{i}", (Node(f"row{i}", f"row{i}", at, tokens, out, hash_ids=tuple(range(-(-tokens // 512)))),))
        for i, (at, tokens, out, _) in enumerate(rows, 1)
    ]
    again, manifest = there_and_back("mooncake", "mooncake", flow, Manifest())
    assert again == flow
    assert manifest.block_size == 512


@FEW
@given(flow=strategies.traces(5).map(_planned))
def test_mooncake_rows_come_out_by_arrival(flow: list[Workflow]) -> None:
    flow = sorted(flow, key=lambda w: w.arrival_ns)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.jsonl"
        notes = export("mooncake", out, MANIFEST, flow)
        rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    stamps = [row["timestamp"] for row in rows]
    assert stamps == sorted(stamps)
    llm = [n for w in flow for n in w.nodes if n.kind == "llm"]
    assert sorted((r["input_length"], r["output_length"]) for r in rows) == sorted(
        (n.input_length, n.output_length) for n in llm
    )
    if any(n.deps for n in llm):
        assert any("an edge is lost" in note for note in notes)


def test_the_mooncake_file_survives_unchanged(data: Path, tmp_path: Path) -> None:
    source, out = data / "traces/mooncake/conversation_trace.jsonl", tmp_path / "m.jsonl"
    found = open_import(source)
    assert export("mooncake", out, found.manifest, found.workflows) == ()
    old = [orjson.loads(line) for line in source.read_bytes().splitlines()]
    assert [orjson.loads(line) for line in out.read_bytes().splitlines()] == old


@pytest.mark.parametrize(("name", "suffix"), [("otlp", ".jsonl.gz"), ("wfformat", "")])
def test_real_agent_sessions_survive(data: Path, tmp_path: Path, name: str, suffix: str) -> None:
    found = open_import(data / "traces/weka-claude-code")
    flow = list(found.workflows)
    export(name, tmp_path / f"out{suffix}", found.settled(), flow)
    assert by_name(list(open_import(tmp_path / f"out{suffix}").workflows)) == by_name(flow)


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    a = Node("w", "a", 0, 600, 5, messages=({"role": "user", "content": "x"},))
    tool = Node("w", "t", 0, 0, 0, kind="tool", deps=(Dep("a", "tool"),), t_end_ns=7_000_000)
    b = Node("w", "b", 0, 600, 5, deps=(Dep("t", "tool"), Dep("a", blocking=False)), delay_ns=1_000_000)
    notes = export("mooncake", tmp_path / "m.jsonl", MANIFEST, [Workflow("w", (a, tool, b))])
    for part in (
        "1 x a node of kind tool",
        "2 x an edge is lost",
        "1 x the content of a request",
        "scope workflow",
        "16",
    ):
        assert any(part in note for note in notes), (part, notes)
    rows = [orjson.loads(line) for line in (tmp_path / "m.jsonl").read_bytes().splitlines()]
    assert [r["timestamp"] for r in rows] == [0, 8]  # the tool's recorded 7 ms and the delay of 1 ms
    notes = export("agentic_mooncake", tmp_path / "a.jsonl", MANIFEST, [Workflow("w", (a, tool, b))])
    last = orjson.loads((tmp_path / "a.jsonl").read_bytes().splitlines()[-1])
    assert (last["wait_for"], last["delay"], last["tool_wait_ms"]) == (["w:a"], 1, 7)
    assert any("an edge that does not block is lost" in note for note in notes)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    flow = [Workflow(f"w{i}", (Node(f"w{i}", "a", 0, 1, 1),)) for i in range(2)]
    for name in FORMATS:
        with pytest.raises(UserError, match="cannot be written"):
            export(name, tmp_path / "no" / "where" / "x.json", MANIFEST, flow[:1])
    with pytest.raises(UserError, match="one file holds one workflow"):
        export("wfformat", tmp_path / "x.json", MANIFEST, flow)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "y").write_text("")
    with pytest.raises(UserError, match="new folder"):
        export("wfformat", tmp_path / "full", MANIFEST, flow)
    with pytest.raises(UserError, match="nothing to export"):
        export("wfformat", tmp_path / "z", MANIFEST, [])
    with pytest.raises(UserError, match="not known"):
        export("yaml", tmp_path / "z", MANIFEST, flow)
