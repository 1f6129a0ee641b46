"""Amortised prefixes: who hit what, joules by tokens, sums unchanged to the microjoule, clear words where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.amortise import amortised, keys, moved, prompts_of, uses
from energy.attribute import attribute_run
from energy.rollup import Figures
from energy.tables import RequestTable, request_table
from energy.truth import score_truth
from traces.errors import UserError
from traces.records import RequestRecord
from traces.rundir import RunDir
from traces.workflow import Manifest, Node


def _table(*rows: tuple[int | None, int | None, int | None]) -> RequestTable:
    """Requests from (first token, prompt, cached)."""
    return request_table(
        [{"id": f"r{i}", "node": f"n{i}", "first_ns": t, "prompt": p, "cached": c} for i, (t, p, c) in enumerate(rows)]
    )


A, B = [1, 2], [1, 3]
CASES: list[tuple[str, RequestTable, list[Any], list[int], list[int], int]] = [
    # name, requests, prompts (blocks of 10), own uJ, uJ gained, tokens without creator
    ("nobody hits", _table((1, 20, 0), (2, 20, 0)), [A, [8, 9]], [100, 100], [0, 0], 0),
    ("one block hit once", _table((1, 20, 0), (2, 20, 10)), [A, B], [100, 60], [-25, 25], 0),
    ("one block hit twice", _table((1, 10, 0), (2, 12, 10), (3, 12, 10)), [[1]] * 3, [90, 0, 0], [-60, 30, 30], 0),
    ("half a block hit", _table((1, 10, 0), (2, 10, 5)), [[1], [1]], [90, 0], [-30, 30], 0),
    ("file order is not time", _table((9, 20, 10), (1, 20, 0)), [B, A], [60, 100], [25, -25], 0),
    ("both in one step", _table((1, 20, 10), (1, 20, 0)), [B, A], [60, 100], [25, -25], 0),
    ("evicted, made anew", _table((1, 10, 0), (2, 10, 0), (3, 11, 10)), [[1]] * 3, [50, 70, 0], [0, -35, 35], 0),
    ("warm before the run", _table((1, 20, 10), (2, 20, 0)), [A, [8, 9]], [50, 100], [0, 0], 10),
    ("cached beyond its known blocks", _table((1, 30, 25),), [A], [50], [0], 25),
    ("counts missing", _table((1, 20, None), (2, 20, 10), (None, 20, 0)), [A, A, A], [100, 50, 9], [0, 0, 0], 10),
    ("blocks unknown", _table((1, 20, 0), (2, 20, 10)), [None, A], [100, 50], [0, 0], 10),
    ("tail beyond the blocks stays", _table((1, 40, 0), (2, 21, 20)), [A, A], [80, 1], [-20, 20], 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("requests", "prompts", "own", "gained", "lost"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_who_pays(requests: RequestTable, prompts: list[Any], own: list[int], gained: list[int], lost: int) -> None:
    found = uses(requests, prompts, 10)
    computed = np.maximum(np.where(requests.prompt < 0, 0, requests.prompt) - np.maximum(requests.cached, 0), 0)
    assert moved(found, np.array(own), computed.astype(float)).tolist() == gained
    assert found.lost == lost


@st.composite
def _runs(draw: Any) -> tuple[RequestTable, list[Any], list[Figures]]:
    n = draw(st.integers(1, 12))
    count = st.one_of(st.none(), st.integers(0, 60))
    table = _table(*[(draw(st.one_of(st.none(), st.integers(0, 9))), draw(count), draw(count)) for _ in range(n)])
    prompts = [draw(st.one_of(st.none(), st.lists(st.integers(0, 6), max_size=5))) for _ in range(n)]
    steps = [draw(st.lists(st.integers(0, 10**9), min_size=2 * n, max_size=2 * n)) for _ in range(4)]
    own, more, extra, wide = (np.array(x, np.int64).reshape(n, 2) for x in steps)
    active = own + more
    figures = Figures("gpu", own, active, active + extra, np.maximum(active - wide, 0), active + wide)
    return table, prompts, [figures]


@given(_runs(), st.sampled_from([1, 7, 16]))
def test_sums_stay_to_the_microjoule(run: tuple[RequestTable, list[Any], list[Figures]], size: int) -> None:
    requests, prompts, before = run
    (after,) = amortised(before, requests, uses(requests, prompts, size))
    for name in ("own", "active", "full"):
        old, new = getattr(before[0], name), getattr(after, name)
        assert np.array_equal(new.sum(0), old.sum(0))
        assert np.array_equal(new[:, 1], old[:, 1])  # decode is nobody's prefix
    assert np.all(after.own >= 0)
    assert np.all((after.own <= after.active) & (after.active <= after.full))
    assert np.all((after.low >= 0) & (after.low <= after.active) & (after.active <= after.high))


def test_a_block_names_its_prefix_and_scope() -> None:
    one, two = (Node(w, "r", 0, 30, 1, session_id=s, hash_ids=(5, 6)) for w, s in (("w1", "s"), ("w2", "s")))
    assert keys(one, Manifest()) == keys(two, Manifest())
    assert keys(one, Manifest(hash_scope="session")) == keys(two, Manifest(hash_scope="session"))
    assert keys(one, Manifest(hash_scope="workflow")) != keys(two, Manifest(hash_scope="workflow"))
    after = Node("w1", "q", 0, 30, 1, hash_ids=(7, 6))
    assert keys(after, Manifest(chained=False))[1] != keys(one, Manifest(chained=False))[1]


ROW = {"workflow_id": "w", "timestamp": 0, "input_length": 20, "output_length": 1}
TOKENS = {"manifest": {"block_size": 10}}


@pytest.mark.parametrize(
    ("lines", "cached", "said"),
    [
        (None, 5, "no trace.jsonl"),
        ([TOKENS, ROW | {"request_id": "n0"}], 5, "nobody recorded the blocks"),
        ([TOKENS, ROW | {"request_id": "other", "hash_ids": [1, 2]}], 5, "nobody recorded the blocks"),
        ([TOKENS, ROW | {"request_id": "n0", "hash_ids": [1, 2]}], None, "how much was cached"),
        ([TOKENS, ROW | {"request_id": "n0", "hash_ids": [1, 2]}], 5, None),
    ],
)
def test_where_nobody_says_who_hit_what(
    tmp_path: Path, lines: list[Any] | None, cached: int | None, said: str | None
) -> None:
    run = RunDir.create(tmp_path)
    if lines is not None:
        run.file("trace.jsonl").write_bytes(b"\n".join(orjson.dumps(x) for x in lines) + b"\n")
    requests = _table((1, 20, cached))
    if said is None:
        found = prompts_of(run, requests)
        assert (found.prompts, found.size.tolist(), found.estimated) == ([[1, 2]], [10.0], False)
        return
    with pytest.raises(UserError, match=said) as error:
        prompts_of(run, requests)
    assert "creators pay" in str(error.value)


def test_replies_without_a_first_token_are_ordered_by_their_end() -> None:
    rows = [
        {"id": f"r{i}", "end_ns": 9 - i, "completion": 5, "prompt": 20, "cached": c} for i, c in enumerate((10, 0, 0))
    ]
    rows[2]["completion"] = 0
    found = uses(request_table(rows), [B, A, A], 10)
    assert found.creator[found.row == 0].tolist() == [1, 0]
    assert 2 not in found.row


def test_blocks_of_bytes_are_scaled_by_each_prompts_own_tokens(tmp_path: Path) -> None:
    """Live traffic: the proxy knows bytes, the engine's usage tokens. 512 bytes of prompt are 4 blocks and 100 tokens:
    25 tokens a block; without messages half a block more is taken."""
    run = RunDir.create(tmp_path)
    messages = ({"role": "user", "length": 512 - 6, "digest": "d"},)
    writer = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    writer.write(RequestRecord("r0", None, None, "ok", 0, 9, block_hashes=(1, 2, 3, 4), messages=messages))
    writer.write(RequestRecord("r1", None, None, "ok", 0, 9, block_hashes=(1, 2)))
    writer.write(RequestRecord("r2", None, None, "ok", 0, 9))
    writer.close()
    run.write_info({"manifest": {"block_size": 128, "block_unit": "bytes"}})
    requests = _table((1, 100, 0), (2, 62, 50), (3, 9, 0))
    found = prompts_of(run, requests)
    assert found.estimated
    assert found.prompts == [[1, 2, 3, 4], [1, 2], None]
    assert found.size[:2] == pytest.approx([25, 62 / 2.5])
    hits = uses(requests, found.prompts, found.size)
    assert hits.tokens[hits.row == 1].tolist() == [25, 25]
    own = np.array([104, 12, 9])
    assert moved(hits, own, np.array([100.0, 12.0, 9.0])).tolist() == [-26, 26, 0]


def test_a_policy_without_own_joules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take fitted or shapley"):
        attribute_run(RunDir.create(tmp_path), policy="equal", prefixes="amortised")


@pytest.mark.parametrize(("prefixes", "scored"), [("creator", True), ("amortised", False)])
def test_truth_says_nothing_of_who_shall_pay(tmp_path: Path, prefixes: str, scored: bool) -> None:
    run = RunDir.create(tmp_path)
    run.file("truth.jsonl").write_bytes(orjson.dumps({"request_id": "a", "component": "gpu", "active_uj": 7}) + b"\n")
    row = {"request_id": ["a"], "component": ["gpu"], "active_uj": [7]}
    pq.write_table(pa.table(row), run.file("attribution.parquet"))
    run.write_json("ledger.json", {"prefixes": prefixes})
    assert score_truth(run) == ({"median": 0.0, "p95": 0.0, "requests": 1.0} if scored else None)
