"""Figures of a trace: against numbers worked out by hand, by brute force, and published for the real files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.quantum import time_quantum_ms
from traces.stats import Prefixes, arrivals, collect, shape_of, spread, text
from traces.trace import read_trace
from traces.workflow import Dep, Manifest, Node, Workflow

MS = 1_000_000


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.integers(1, 5), min_size=25, max_size=60),
    quantum=st.sampled_from([10, 50, 1000, 3000]),
    ties=st.integers(2, 4),
    jitter=st.integers(0, 3),
)
def test_quantised_stamps_are_noticed(steps: list[int], quantum: int, ties: int, jitter: int) -> None:
    """Multiples of a quantum, several rows each, off by up to 3 in a thousand."""
    stamps, at = [], 0
    for index, step in enumerate([1] * 5 + steps):
        at += step * quantum * MS
        stamps += [at + (index % 3 - 1) * jitter * quantum * MS // 2000] * ties
    found = time_quantum_ms(stamps)
    assert found is not None
    assert abs(found - quantum) <= 0.01 * quantum


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 5000), min_size=60, max_size=200, unique=True), st.randoms())
def test_continuous_stamps_are_not(gaps: list[float], pick: object) -> None:
    stamps, at = [], 0
    rng = pick.random  # type: ignore[attr-defined]
    for gap in gaps:
        at += int((gap + 3000 * rng()) * MS) + 1
        stamps.append(at)
    assert time_quantum_ms(stamps) is None


def test_a_constant_rate_is_not_a_quantum() -> None:
    assert time_quantum_ms([i * 250 * MS for i in range(100)]) is None
    assert time_quantum_ms([0] * 100) is None
    assert time_quantum_ms([]) is None


def chain(*edges: tuple[str, str], names: str) -> list[Node]:
    return [Node("w", name, 0, 1, 1, deps=tuple(Dep(a) for a, b in edges if b == name)) for name in names]


@pytest.mark.parametrize(
    ("names", "edges", "depth", "shape"),
    [
        ("a", "", 1, "single"),
        ("ab", "", 1, "independent"),
        ("abc", "ab bc", 3, "chain"),
        ("cba", "ab bc", 3, "chain"),
        ("abcd", "ab cd", 2, "chains"),
        ("abcd", "ab ac ad", 2, "fan-out"),
        ("abcd", "ad bd cd", 2, "fan-in"),
        ("abcd", "ab ac bd cd", 3, "fan-out/fan-in"),
        ("abcde", "ab ac bd be", 3, "tree"),
        ("abcde", "ab ac bd cd de ae", 4, "graph"),
    ],
)
def test_shapes_are_named(names: str, edges: str, depth: int, shape: str) -> None:
    assert shape_of(chain(*[(e[0], e[1]) for e in edges.split()], names=names)) == (depth, shape)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=12),
    st.sampled_from(["global", "workflow", "session"]),
)
def test_prefix_sharing_is_what_brute_force_counts(prompts: list[list[int]], scope: str) -> None:
    nodes = [
        Node(f"w{i % 2}", f"{i}", i, max(1, 16 * len(p) - 3), 1, session_id=f"s{i % 3}", hash_ids=tuple(p))
        for i, p in enumerate(prompts)
    ]
    prefixes = Prefixes(Manifest(block_size=16, hash_scope=scope))  # type: ignore[arg-type]
    hit = 0
    for index, node in enumerate(nodes):
        prefixes.add(node)
        same = {"global": lambda n: True, "workflow": lambda n: n.workflow_id == node.workflow_id}.get(  # noqa: B023
            scope,
            lambda n: n.session_id == node.session_id,  # noqa: B023
        )
        seen = {b for n in nodes[:index] if same(n) for b in n.hash_ids or ()}
        blocks = list(node.hash_ids or ())
        shared = next((i for i, b in enumerate(blocks) if b not in seen), len(blocks))
        hit += min(shared * 16, node.input_length)
    assert prefixes.hit_tokens == hit


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_percentiles_are_exact(values: list[int]) -> None:
    found = spread(values)
    assert found is not None
    for p in (5, 50, 95, 99):
        assert sum(v <= found[f"p{p}"] for v in values) * 100 >= p * len(values)
        assert sum(v < found[f"p{p}"] for v in values) * 100 < p * len(values)
    assert (found["sum"], found["max"]) == (sum(values), max(values))


def test_missing_figures_are_none() -> None:
    assert spread([]) is None
    assert arrivals([5]) == {
        "span_s": 0.0,
        "rate_per_s": None,
        "cv": None,
        "longest_gap_s": None,
        "same_instant_share": None,
    }


def test_a_long_silence_is_told() -> None:
    def flow() -> Iterable[Workflow]:
        for i in (0, 1, 90_000):
            yield Workflow(f"w{i}", (Node(f"w{i}", "a", i * 10**9, 100, 10),))

    row = collect(Manifest(), flow()).row()
    assert row["arrivals"]["longest_gap_s"] == 89_999
    assert "longest gap 89,999 s: replay with --idle-cap" in text(row, Manifest(), True)


def test_arrivals_of_a_constant_stream() -> None:
    found = arrivals([i * 500 * MS for i in range(11)])
    assert (found["span_s"], found["rate_per_s"], found["cv"]) == (5.0, 2.0, 0.0)


def test_the_published_figures_of_the_mooncake_conversation_trace(data: Path) -> None:
    """Rate, CV, lengths and prefix hits as measured independently for the reference."""
    trace = read_trace(data / "traces/mooncake/conversation_trace.jsonl")
    row = collect(trace.manifest, trace.workflows()).row()
    assert row["requests"] == 12_031
    assert math.isclose(row["arrivals"]["rate_per_s"], 3.40, abs_tol=0.005)
    assert math.isclose(row["arrivals"]["cv"], 3.03, abs_tol=0.005)
    assert math.isclose(row["prefix"]["token_hit_share"], 0.374, abs_tol=0.0005)
    assert row["time_quantum_ms"] == 3000
    assert (row["input_tokens"]["p50"], row["output_tokens"]["p50"]) == (6909, 350)
    shown = text(row, trace.manifest, trace.declared)
    assert "multiples of 3000 ms" in shown
    assert "37.4% of prompt tokens" in shown


def test_show_says_what_a_small_graph_trace_holds() -> None:
    def flow() -> Iterable[Workflow]:
        for i in range(3):
            a = Node(f"w{i}", "a", i * 10**9, 100, 10, model="m", hash_ids=(0, 1))
            b = Node(f"w{i}", "b", 0, 100, 10, model="m", deps=(Dep("a", kind="tool"),))
            c = Node(f"w{i}", "c", 0, 0, 0, kind="tool", deps=(Dep("b", blocking=False),))
            yield Workflow(f"w{i}", (a, b, c), "agentic")

    manifest = Manifest(source="here", licence="CC0-1.0", transforms=("one", "two"))
    shown = text(collect(manifest, flow()).row(), manifest, True)
    for part in (
        "3 with 9 nodes, 6 of them LLM",
        "agentic 3",
        "llm 6, tool 3",
        "m 6",
        "tool 3, data (not blocking) 3",
        "CC0-1.0",
        "two",
    ):
        assert part in shown
