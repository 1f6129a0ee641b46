"""The trace file: what is written is read back, whatever the container and the order of the rows; damage is named."""

from __future__ import annotations

import gzip
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces import strategies
from traces.errors import UserError
from traces.fields import Where
from traces.trace import parse_row, read_trace, workflows, write_trace
from traces.workflow import Dep, Manifest, Node, Workflow, node_row

SUFFIXES = [".jsonl", ".jsonl.gz", ".parquet"]


def rows_file(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def by_arrival(flow: list[Workflow]) -> list[Workflow]:
    """What a reader must give: workflows by their first root's arrival, file order among equals."""
    return sorted(flow, key=lambda w: min((n.arrival_ns for n in w.nodes if not n.blocking), default=0))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None)
@given(flow=strategies.traces())
def test_what_is_written_is_read_back(suffix: str, flow: list[Workflow]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{suffix}"
        manifest = Manifest(block_size=16, block_rounding="floor", source="s", transforms=("one", "two"))
        assert write_trace(path, manifest, flow) == sum(len(w.nodes) for w in flow)
        trace = read_trace(path)
        assert list(trace.workflows()) == by_arrival(flow)
        assert trace.declared
        ordered = by_arrival(flow) == flow
        assert trace.manifest.ordered == ordered
        assert (trace.manifest.block_size, trace.manifest.transforms) == (16, ("one", "two"))
        assert [n for w in flow for n in w.nodes] == list(trace)
        assert not list(Path(folder).glob("*.part*"))


@settings(max_examples=30, deadline=None)
@given(flow=strategies.traces(), seed=st.integers(0, 1000))
def test_rows_in_any_order_make_the_same_workflows(flow: list[Workflow], seed: int) -> None:
    """Rows of different workflows interleaved (as recorders write them); order inside a workflow kept."""
    queues = [[node_row(n, w.class_name) for n in w.nodes] for w in flow]
    shuffled = []
    pick = random.Random(seed)
    while any(queues):
        shuffled.append(pick.choice([q for q in queues if q]).pop(0))
    with tempfile.TemporaryDirectory() as folder:
        path = rows_file(Path(folder) / "t.jsonl", *shuffled)
        key = lambda w: (w.nodes[0].workflow_id,)  # noqa: E731
        got = list(workflows(path))
        assert sorted(got, key=key) == sorted(flow, key=key)
        starts = [min((n.arrival_ns for n in w.nodes if not n.blocking), default=0) for w in got]
        assert starts == sorted(starts)


def test_a_mooncake_file_is_a_trace(tmp_path: Path) -> None:
    rows = [{"timestamp": 3000 * i, "input_length": 600, "output_length": 5, "hash_ids": [0, i]} for i in range(3)]
    trace = read_trace(rows_file(tmp_path / "m.jsonl", *rows))
    got = list(trace.workflows())
    assert [w.workflow_id for w in got] == ["row1", "row2", "row3"]
    assert got[2].nodes[0] == Node("row3", "row3", 6_000_000_000, 600, 5, hash_ids=(0, 2))
    assert not trace.declared
    assert trace.manifest.block_size == 512


def test_prefix_references_are_expanded(tmp_path: Path) -> None:
    path = rows_file(
        tmp_path / "p.jsonl",
        {
            "workflow_id": "w",
            "request_id": "a",
            "timestamp": 0,
            "input_length": 9,
            "output_length": 1,
            "hash_ids": [5, 6, 7],
        },
        {
            "workflow_id": "w",
            "request_id": "b",
            "timestamp": 1,
            "input_length": 9,
            "output_length": 1,
            "prefix_ref": "a",
            "prefix_blocks": 2,
            "own_blocks": [[10, 3], [2, 1]],
        },
    )
    (workflow,) = workflows(path)
    assert workflow.nodes[1].hash_ids == (5, 6, 10, 11, 12, 2)


def test_long_block_lists_are_stored_short(tmp_path: Path) -> None:
    chain = [Node("w", f"n{i}", i, 64 * (500 + i), 1, hash_ids=tuple(range(500 + i))) for i in range(20)]
    short, plain = tmp_path / "s.jsonl", tmp_path / "p.jsonl"
    write_trace(short, Manifest(block_size=64), [Workflow("w", tuple(chain))])
    write_trace(plain, Manifest(block_size=64), [Workflow("w", tuple(chain))], compact=False)
    assert list(workflows(short)) == list(workflows(plain))
    assert short.stat().st_size * 5 < plain.stat().st_size


ROW = {"workflow_id": "w", "request_id": "r", "timestamp": 1.5, "input_length": 10, "output_length": 2}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"timestamp": -1}, ["timestamp is -1", "at least 0"]),
        ({"timestamp": "3"}, ["timestamp is '3'"]),
        ({"timestamp": None}, ["timestamp is None"]),
        ({"timestamp": True}, ["timestamp is True"]),
        ({"timestamp": 1e300}, ["timestamp is 1e+300"]),
        ({"input_length": -5}, ["input_length is -5", "whole number"]),
        ({"input_length": 1.5}, ["input_length is 1.5"]),
        ({"input_length": None}, ["input_length is None"]),
        ({"output_length": 2**40}, [f"output_length is {2**40}"]),
        ({"delay": -0.1}, ["delay is -0.1"]),
        ({"delay": 1, "tool_wait_ms": 1, "think_ms": 1}, ["delay is 1", "at least tool_wait_ms + think_ms = 2"]),
        ({"hash_ids": [1, -2]}, ["hash_ids is [1, -2]"]),
        ({"kind": "llama"}, ["kind is 'llama'", "llm, tool, human, other"]),
        ({"api": 3}, ["api is 3"]),
        ({"deps": ["a"]}, ["deps is ['a']", "list of objects"]),
        ({"deps": [{"kind": "data"}]}, ["deps.on is None"]),
        ({"deps": [{"on": "a", "kind": "magic"}]}, ["deps.kind is 'magic'", "conversation"]),
        ({"deps": [{"on": "a", "confidence": 2}]}, ["deps.confidence is 2"]),
        ({"deps": [{"on": "a"}], "workflow_id": None}, ["workflow_id is None"]),
        ({"wait_for": ["a"]}, ["wait_for is ['a']", "joulegraph trace import"]),
        ({"request_id": ""}, ["request_id is ''"]),
        ({"messages": "hi"}, ["messages is 'hi'"]),
        ({"prefix_ref": "nobody", "prefix_blocks": 1}, ["prefix_ref is 'nobody'", "earlier row"]),
        ({"own_blocks": [[1]]}, ["own_blocks is [[1]]"]),
        ({"own_blocks": [[0, 2**60]]}, ["own_blocks", "fewer blocks"]),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, object], parts: list[str]) -> None:
    path = rows_file(tmp_path / "t.jsonl", {**ROW, "request_id": "first"}, {**ROW, **change})
    with pytest.raises(UserError) as caught:
        list(workflows(path))
    for part in (f"{path}:2: ", *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", b"hello world\n", "not a trace: line 1 is not JSON"),
        ("a.jsonl", b"[1,2]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"manifest":{"version":99}}\n', "manifest.version is 99"),
        ("a.jsonl", b'{"manifest":{"block_size":0}}\n', "manifest.block_size is 0"),
        ("a.jsonl", b'{"manifest":[]}\n', "manifest is []"),
        ("a.jsonl", b'{"a":1}\n', "not a trace: its first row has none of"),
        ("a.jsonl", orjson.dumps(ROW) + b"\n{oops\n", "a.jsonl:2: line is not JSON"),
        ("a.jsonl", b"\x00\xff\xfe" * 50, "not a trace"),
        ("a.jsonl.gz", gzip.compress(orjson.dumps(ROW) * 1000, mtime=0)[:60], "gzip data is cut short"),
        ("a.jsonl.gz", b"\x1f\x8bnonsense", "gzip data is cut short or damaged"),
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_trace_is_said_in_one_sentence(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        list(workflows(path))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")


def test_an_unwritable_place_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_trace(tmp_path / "no" / "t.jsonl", Manifest(), [])


def test_a_failing_source_leaves_no_file(tmp_path: Path) -> None:
    def flow():  # type: ignore[no-untyped-def]
        yield Workflow("w", (Node("w", "a", 0, 1, 1),))
        raise UserError("broken off")

    for suffix in SUFFIXES:
        with pytest.raises(UserError, match="broken off"):
            write_trace(tmp_path / f"t{suffix}", Manifest(), flow())
    assert list(tmp_path.iterdir()) == []


GRAPHS: list[tuple[str, Callable[[], list[Node]], str]] = [
    ("cycle", lambda: [Node("w", "r", 0, 1, 1), _waits("a", "b"), _waits("b", "a")], "break the cycle"),
    ("self", lambda: [Node("w", "r", 0, 1, 1), _waits("a", "a")], "a -> a"),
    ("unknown", lambda: [Node("w", "r", 0, 1, 1), _waits("a", "zz")], "deps.on is 'zz'"),
    ("duplicate", lambda: [Node("w", "a", 0, 1, 1), Node("w", "a", 0, 1, 1)], "request_id is 'a'"),
]


def _waits(name: str, on: str) -> Node:
    return Node("w", name, 0, 1, 1, deps=(Dep(on),))


@pytest.mark.parametrize(("nodes", "part"), [(g[1], g[2]) for g in GRAPHS], ids=[g[0] for g in GRAPHS])
def test_a_graph_that_can_never_run(tmp_path: Path, nodes: Callable[[], list[Node]], part: str) -> None:
    good = Node("ok", "x", 5_000_000, 1, 1)
    path = rows_file(tmp_path / "g.jsonl", *[node_row(n) for n in [*nodes(), good]])
    with pytest.raises(UserError, match=f"{path}:") as caught:
        list(workflows(path))
    assert part in str(caught.value)
    told: list[str] = []
    assert [w.workflow_id for w in workflows(path, told.append)] == ["ok"]
    assert len(told) == 1


def test_bad_rows_can_be_told_and_left_out(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "b.jsonl", ROW, {**ROW, "request_id": "x", "timestamp": -3}, {**ROW, "request_id": "y"})
    told: list[str] = []
    (workflow,) = workflows(path, told.append)
    assert [n.request_id for n in workflow.nodes] == ["r", "y"]
    assert len(told) == 1


@settings(max_examples=100, deadline=None)
@given(node=strategies.workflows("w").map(lambda w: w.nodes[-1]), class_name=st.sampled_from(["workflow", "chat"]))
def test_a_row_and_its_node_are_the_same_thing(node: Node, class_name: str) -> None:
    row = orjson.loads(orjson.dumps(node_row(node, class_name)))
    assert parse_row(row, Where("t", 1, 1)) == (node, class_name)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*ROW, "deps", "hash_ids", "delay", "own_blocks"]), strategies.VALUES))
def test_any_object_is_parsed_or_refused_with_a_sentence(tmp_path_factory: pytest.TempPathFactory, row: dict) -> None:  # type: ignore[type-arg]
    try:
        parse_row(row, Where("t", 1, 1))
    except UserError as error:
        assert str(error).startswith("t:1: ")


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for suffix in SUFFIXES:
            path = Path(folder) / f"x{suffix}"
            path.write_bytes(data)
            with pytest.raises(UserError):
                list(workflows(path))


def test_a_broken_promise_of_order_is_said(tmp_path: Path) -> None:
    rows = [node_row(Node(f"w{t}", "a", t * 1_000_000, 1, 1)) for t in (1, 3, 2)]
    path = rows_file(tmp_path / "t.jsonl", {"manifest": {"ordered": True}}, *rows)
    with pytest.raises(UserError, match=f"{path}:4: workflow arrives at 2 ms"):
        list(workflows(path))


def test_an_ordered_file_of_any_length_streams(tmp_path: Path) -> None:
    """With the promise kept, the first workflow comes out before the second row is even parsed."""
    path = tmp_path / "t.jsonl"
    write_trace(path, Manifest(), [Workflow(f"w{i}", (Node(f"w{i}", "a", i, 1, 1),)) for i in range(3)])
    with path.open("ab") as file:
        file.write(b"broken\n")
    flow = workflows(path)
    assert [next(flow).workflow_id for _ in range(2)] == ["w0", "w1"]
