"""Importers: each public format from its real files (where present) or from rows written to its published shape."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.check import check
from traces.errors import UserError
from traces.fields import Where
from traces.importers import FORMATS, ImportOptions, detect, open_import
from traces.importers.azure import stamp_ns
from traces.trace import read_trace, write_trace
from traces.workflow import Manifest, Workflow


def imported(path: Path, name: str | None = None, **options: object) -> tuple[list[Workflow], Manifest]:
    """All workflows of a foreign file, and the manifest with what was lost."""
    found = open_import(path, name, ImportOptions(**options))  # type: ignore[arg-type]
    flow = list(found.workflows)
    return flow, found.settled()


def through_file(tmp_path: Path, flow: Sequence[Workflow], manifest: Manifest) -> None:
    """What was imported can be written, checked without a fault, and read back the same."""
    out = tmp_path / "imported.jsonl"
    write_trace(out, manifest, flow)
    report = check(out)
    assert report.problems == []
    assert list(read_trace(out).workflows()) == list(flow)


def test_mooncake(data: Path, tmp_path: Path) -> None:
    path = data / "traces/mooncake/conversation_trace.jsonl"
    assert detect(path) == "mooncake"
    flow, manifest = imported(path)
    assert len(flow) == 12_031
    assert (manifest.time_quantum_ms, manifest.block_size, manifest.block_rounding) == (3000, 512, "ceil")
    assert manifest.transforms == ()
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    for row, workflow in zip(rows, flow, strict=True):
        (node,) = workflow.nodes
        assert node.arrival_ns == row["timestamp"] * 1_000_000
        assert (node.input_length, node.output_length) == (row["input_length"], row["output_length"])
        assert list(node.hash_ids or ()) == row["hash_ids"]
    through_file(tmp_path, flow, manifest)


@pytest.mark.parametrize(("size", "rounding"), [(16, "ceil"), (64, "floor"), (512, "ceil")])
def test_mooncake_like_files_with_other_blocks(tmp_path: Path, size: int, rounding: str) -> None:
    rows = []
    for i in range(40):
        tokens = 700 + 131 * i
        blocks = tokens // size if rounding == "floor" else -(-tokens // size)
        row = {"timestamp": 17 * i * i + i % 7, "input_length": tokens, "output_length": 3}
        rows.append({**row, "hash_ids": list(range(blocks))})
    path = tmp_path / "toolagent_trace.jsonl"
    path.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    _, manifest = imported(path)
    assert (manifest.block_size, manifest.block_rounding, manifest.time_quantum_ms) == (size, rounding, None)


@pytest.mark.parametrize(("name", "rows", "span"), [("code", 8_819, 3435.9), ("conv", 19_366, 3501.7)])
def test_azure_2023(data: Path, tmp_path: Path, name: str, rows: int, span: float) -> None:
    path = data / f"traces/azure2023/AzureLLMInferenceTrace_{name}.csv"
    assert detect(path) == "azure"
    flow, manifest = imported(path)
    assert len(flow) == rows
    assert flow[0].arrival_ns == 0
    assert round(flow[-1].arrival_ns / 1e9, 1) == span
    assert manifest.content_mode == "lengths"
    assert "2023-11-16 18:1" in manifest.transforms[0]
    through_file(tmp_path, flow, manifest)


def test_azure_2024_and_2025(tmp_path: Path) -> None:
    path = tmp_path / "week.csv.gz"
    path.write_bytes(
        gzip.compress(
            b"\xef\xbb\xbfTIMESTAMP,NumImages,ContextTokens,GeneratedTokens\r\n"
            b"2024-05-10 00:00:00.009930+00:00,0,2162,5\r\n2024-05-10 00:00:01.009931+00:00,2,2399,6\r\n"
        )
    )
    flow, manifest = imported(path)
    assert [w.nodes[0].arrival_ns for w in flow] == [0, 1_000_001_000]
    assert flow[1].nodes[0].attrs == {"num_images": 2}
    assert any(t.startswith("1 x a request has images") for t in manifest.transforms)


def test_azure_rows_out_of_order_keep_their_times(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 00:00:02.0000001,1,1\n2023-11-16 00:00:01.0000000,2,2\n"
    )
    flow, manifest = imported(path)
    write_trace(tmp_path / "o.jsonl", manifest, flow)
    trace = read_trace(tmp_path / "o.jsonl")
    assert not trace.manifest.ordered
    assert [(w.arrival_ns, w.nodes[0].input_length) for w in trace.workflows()] == [(0, 2), (1_000_000_100, 1)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4 * 10**18), st.sampled_from(["", "+00:00"]))
def test_azure_stamps_keep_every_digit(hundreds: int, suffix: str) -> None:
    from datetime import UTC, datetime

    ns = hundreds // 100 * 100
    whole = datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    text = f"{whole}.{ns % 10**9 // 100:07d}{suffix}"
    assert stamp_ns(Where("t", 1, 1), text) == ns


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("TIME,ContextTokens,GeneratedTokens\n1,2,3\n", "CSV columns TIME, ContextTokens"),
        ("hello\n", "no known trace format"),
        ("", "is empty"),
        ('{"a": 1}\n', "JSON keys a"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 00:00:00.1,x,3\n", ":2: ContextTokens is 'x'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 00:00:00.1,-4,3\n", ":2: ContextTokens is '-4'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,3\n", ":2: TIMESTAMP is 'yesterday'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 00:00:00.1,3\n", ":2: row is"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        imported(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_column_with_the_format_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("TIMESTAMP,ContextTokens,Generated\n2023-11-16 00:00:00.1,1,3\n")
    with pytest.raises(UserError, match="column 'GeneratedTokens' is missing"):
        imported(path, "azure")


def test_a_truncated_gzip_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    rows = "".join(f"2023-11-16 00:00:00.{i:07d},1,3\n" for i in range(100_000))
    path.write_bytes(gzip.compress(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}".encode())[:-2000])
    with pytest.raises(UserError, match="cut short or damaged"):
        imported(path)


def test_an_unknown_format_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match="--format nonsense: not known"):
        imported(tmp_path / "x", "nonsense")
    with pytest.raises(UserError, match="no such file"):
        imported(tmp_path / "y")


def test_options_shape_an_import(data: Path) -> None:
    flow, manifest = imported(
        data / "traces/mooncake/conversation_trace.jsonl", limit=3, class_name="chat", source="s", licence="Apache-2.0"
    )
    assert [w.class_name for w in flow] == ["chat"] * 3
    assert (manifest.source, manifest.licence, manifest.transforms) == (
        "s",
        "Apache-2.0",
        ("only the first 3 workflows",),
    )


def test_a_limit_that_nothing_exceeds_leaves_no_note(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"timestamp": 0, "input_length": 20, "output_length": 2, "hash_ids": [0]}\n' * 3)
    for limit, said in ((4, ()), (3, ()), (2, ("only the first 2 workflows",))):
        flow, manifest = imported(path, limit=limit)
        assert len(flow) == min(limit, 3) and tuple(s for s in manifest.transforms if "only" in s) == said


def test_own_files_change_their_container(tmp_path: Path, data: Path) -> None:
    flow, manifest = imported(data / "traces/mooncake/conversation_trace.jsonl", limit=50)
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        write_trace(tmp_path / name, manifest, flow)
        assert detect(tmp_path / name) == "joulegraph"
        again, same = imported(tmp_path / name)
        assert again == flow
        assert same.time_quantum_ms == 3000


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=30, deadline=None)
@given(
    content=st.binary(max_size=80)
    | st.recursive(
        st.none() | st.integers(-(2**50), 2**50) | st.text(max_size=5),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
        max_leaves=8,
    ).map(orjson.dumps)
)
def test_nothing_but_a_sentence_ever_comes_of_nonsense(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("n") / "x.json"
    path.write_bytes(content)
    try:
        imported(path, name)
    except UserError as error:
        assert str(path) in str(error)
