"""Workloads: graphs, lengths and block ids agree; equal seeds give equal traces; the published figures come out."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from statistics import mean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.errors import UserError
from traces.graph import find_cycle, topological
from traces.workflow import Node, Workflow
from traces.workloads import PATTERNS, PRESETS, Flow, Stream, Wire, demo_trace, generate
from traces.workloads.blocks import Blocks, Memo
from traces.workloads.generate import parameters, resolve
from traces.workloads.spread import Spread, parse

SMALL = {
    "sequential": {"document": "100-900", "chunk": 128, "output": "5-50"},
    "interactive": {"prefix": 200, "query": "5-90", "output": "10-40", "turns": "1-4"},
    "agentic": {"files": "1-4", "rounds": "0-2", "coder_guide": 50},
    "tool-loop": {"system": 100, "steps": "0-6", "result": "10-60"},
    "debate": {"debaters": "1-4", "rounds": "1-3"},
    "plan-execute": {"steps": "1-4", "waves": "1-3"},
    "chat": {"prompt": "1-40", "output": "1-40", "turns": "1-4", "system": 30},
    "composite": {"mix": "chat:2,debate:1"},
}


def made(name: str, count: int = 4, seed: int = 0, block_size: int = 16, **params: object) -> list[Workflow]:
    return list(generate([Stream(name, count, params={**SMALL[name], **params})], seed=seed, block_size=block_size))


def nodes_of(workflows: list[Workflow]) -> list[Node]:
    return [n for w in workflows for n in w.nodes]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SMALL)), seed=st.integers(0, 10_000), size=st.sampled_from([1, 7, 16, 512]))
def test_every_workload_is_a_runnable_graph_with_exact_blocks(name: str, seed: int, size: int) -> None:
    workflows = made(name, seed=seed, block_size=size)
    assert len({w.workflow_id for w in workflows}) == 4
    for workflow in workflows:
        ids = [n.request_id for n in workflow.nodes]
        by_id = {n.request_id: n for n in workflow.nodes}
        assert len(by_id) == len(ids)
        assert find_cycle(workflow.nodes) is None
        assert [n.request_id for n in topological(workflow.nodes)] and workflow.arrival_ns >= 0
        for place, node in enumerate(workflow.nodes):
            assert all(d.on in ids[:place] for d in node.deps), "a call depends on earlier calls only"
            read = sum(by_id[d.on].output_length for d in node.deps if d.kind in ("data", "conversation", "spawn"))
            assert node.input_length >= max(1, read) and node.output_length >= 1
            assert node.hash_ids is not None and len(node.hash_ids) == -(-node.input_length // size)
            assert len(set(node.hash_ids)) == len(node.hash_ids)
            assert node.delay_ns == node.tool_wait_ns + node.think_ns
    chained: dict[int, tuple[int, ...]] = {}
    for node in nodes_of(workflows):
        for i, block in enumerate(node.hash_ids or ()):
            assert chained.setdefault(block, (node.hash_ids or ())[:i]) == (node.hash_ids or ())[:i], (
                "a block id implies its whole prefix"
            )


@given(name=st.sampled_from(sorted(SMALL)), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_equal_seeds_give_equal_traces_and_other_seeds_others(name: str, seed: int) -> None:
    assert made(name, seed=seed) == made(name, seed=seed)
    lengths = [(n.input_length, n.output_length) for n in nodes_of(made(name, 20, seed=seed))]
    assert lengths != [(n.input_length, n.output_length) for n in nodes_of(made(name, 20, seed=seed + 1))]


def test_a_stream_does_not_change_when_another_joins_it() -> None:
    chats = Stream("chat", 5, params=SMALL["chat"], rate=2.0)
    both = [w for w in generate([chats, Stream("debate", 3, rate=1.0)]) if w.class_name == "chat"]
    alone = list(generate([chats]))
    shape = [[(n.request_id, n.arrival_ns, n.input_length, n.output_length, n.deps) for n in w.nodes] for w in alone]
    assert shape == [
        [(n.request_id, n.arrival_ns, n.input_length, n.output_length, n.deps) for n in w.nodes] for w in both
    ]


def test_shared_prompts_are_shared_between_workflows_and_private_ones_are_not() -> None:
    first, second = made("interactive", 2, prefix=160, query="33", turns=1)
    a, b = (n.hash_ids or () for n in (first.nodes[0], second.nodes[0]))
    assert a[:10] == b[:10] and not set(a[10:]) & set(b)


def test_a_conversation_keeps_its_whole_prefix() -> None:
    (flow,) = made("tool-loop", 1, steps=3)
    for before, after in pairwise(flow.nodes):
        whole = before.input_length // 16
        assert (after.hash_ids or ())[:whole] == (before.hash_ids or ())[:whole]
        assert after.deps[0].kind == "conversation" and after.tool_wait_ns > 0
        assert after.input_length > before.input_length + before.output_length


def test_agentic_rounds_are_barriers() -> None:
    (flow,) = made("agentic", 1, files=3, rounds=2)
    waits = {n.request_id.split(":")[1]: {d.on.split(":")[1]: d.kind for d in n.deps} for n in flow.nodes}
    assert waits["coder-0"] == {"architect": "data"}
    assert waits["review-0-1"] == dict.fromkeys(("coder-0", "coder-1", "coder-2"), "data")
    revise = waits["revise-0-1"]
    assert [revise[f"review-0-{i}"] for i in range(3)] == ["control", "data", "control"]
    assert waits["review-1-0"] == dict.fromkeys(("revise-0-0", "revise-0-1", "revise-0-2"), "data")
    assert len(flow.nodes) == 1 + 3 + 2 * 6


def test_the_published_figures_come_out() -> None:
    coding = nodes_of(list(generate(PRESETS["agentic"]["parrot-fig17"].streams)))
    assert len(coding) == 1 + 8 + 4 * 16
    by_role = {
        role: [n for n in coding if n.agent_id == role] for role in ("architect", "coder", "reviewer", "reviser")
    }
    assert [(n.input_length, n.output_length) for n in by_role["architect"]] == [(182, 706)]
    assert {n.input_length for n in by_role["coder"]} == {2991}
    assert abs(mean(n.input_length for n in by_role["reviewer"]) / 3717 - 1) < 0.1
    assert abs(mean(n.input_length for n in by_role["reviser"]) / 4175 - 1) < 0.1
    bing = nodes_of(list(generate([*PRESETS["interactive"]["parrot-fig14"].streams] * 20)))
    assert min(n.input_length for n in bing) >= 5224 and max(n.input_length for n in bing) <= 7492
    assert abs(median(n.input_length for n in bing) / 6146 - 1) < 0.02
    papers = list(generate(PRESETS["sequential"]["parrot-fig11"].streams))
    assert {len(n.deps) for n in papers[0].nodes[1:]} == {1} and {n.output_length for n in nodes_of(papers)} == {50}
    mixed = list(generate(PRESETS["composite"]["parrot-fig18"].streams))
    assert Counter(w.class_name for w in mixed) == {"chat": 40, "map-reduce": 9}
    assert [w.arrival_ns // 10**8 for w in mixed if w.class_name == "map-reduce"][:4] == [150, 155, 160, 260]
    assert all(
        n.input_length <= 1024 and n.input_length + n.output_length <= 2048
        for w in mixed
        for n in w.nodes
        if n.agent_id == "chat"
    )


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, presets in PRESETS.items() for p in presets])
def test_every_preset_generates_and_says_where_it_is_from(name: str, preset: str) -> None:
    entry = PRESETS[name][preset]
    assert entry.source
    workflows = list(generate(entry.streams))
    assert [w.arrival_ns for w in workflows] == sorted(w.arrival_ns for w in workflows)
    if preset == "paper":
        assert max(n.input_length + n.output_length for n in nodes_of(workflows)) <= 4096


@pytest.mark.parametrize("seed", range(8))
def test_the_demo_has_all_four_patterns_and_fits_its_minute(seed: int) -> None:
    _, workflows = demo_trace(seed)
    nodes = nodes_of(workflows)
    assert {w.class_name for w in workflows} == {"sequential", "interactive", "agentic", "composite"}
    assert 200 <= len(nodes) <= 300
    assert workflows[-1].arrival_ns < 35e9
    assert sum(n.output_length for n in nodes) / 40 < 2000
    assert max(n.input_length + n.output_length for n in nodes) < 2048


def test_arrival_processes() -> None:
    def gaps(**how: float) -> list[float]:
        at = [
            w.arrival_ns / 1e9 for w in generate([Stream("chat", 2000, params={"prompt": "1", "output": "1"}, **how)])
        ]  # type: ignore[arg-type]
        return [b - a for a, b in pairwise(at)]

    assert set(gaps(rate=0)) == {0.0}
    assert max(abs(g - 0.25) for g in gaps(rate=4, cv=0)) < 1e-6
    for cv in (0.5, 1.0, 3.0):
        drawn = gaps(rate=4, cv=cv)
        average = mean(drawn)
        spread = (sum((g - average) ** 2 for g in drawn) / len(drawn)) ** 0.5 / average
        assert abs(average / 0.25 - 1) < 0.25 and abs(spread / cv - 1) < 0.25


def test_users_wire_and_scale() -> None:
    stream = Stream("chat", 5, params={"prompt": "100", "output": "50"}, users=2, scale=0.5)
    nodes = nodes_of(list(generate([stream], wire=Wire(api="chat", model="m", stream=False))))
    assert [n.session_id for n in nodes] == ["user-0", "user-1", "user-0", "user-1", "user-0"]
    assert {(n.input_length, n.output_length, n.api, n.model, n.stream) for n in nodes} == {
        (50, 25, "chat", "m", False)
    }


def test_a_mix_follows_its_weights_and_its_label() -> None:
    params = {"mix": "chat:3,debate:1", "chat.prompt": "7", "chat.output": "9"}
    split = list(generate([Stream("composite", 400, params=params)]))
    counts = Counter(w.class_name for w in split)
    assert set(counts) == {"chat", "debate"} and 0.65 < counts["chat"] / 400 < 0.85
    assert {n.input_length for w in split if w.class_name == "chat" for n in w.nodes} == {7}
    whole = generate([Stream("composite", 20, params={**params, "label": "whole"})])
    assert {w.class_name for w in whole} == {"composite"}


@pytest.mark.parametrize(
    ("pattern", "params", "words"),
    [
        ("agentic", {"file": 3}, "files"),
        ("sequential", {"chunk": "many"}, "whole number"),
        ("sequential", {"chunk": 0}, "at least one token"),
        ("sequential", {"shape": "ring"}, "map-reduce"),
        ("sequential", {"output": "5-"}, "183-800"),
        ("composite", {"mix": "chat:x"}, "weight"),
        ("composite", {"mix": "nothing:1"}, "choose one of"),
        ("composite", {"mix": "composite:1"}, "itself"),
        ("composite", {"mix": "chat:1", "debate.rounds": 2}, "members are chat"),
        ("composite", {"label": "half"}, "whole"),
        ("interactive", {"prefix": 0, "query": "0"}, "empty prompt"),
        ("nothing", {}, "choose one of"),
    ],
)
def test_bad_parameters_get_one_sentence(pattern: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        list(generate([Stream(pattern, 1, params=params)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"count": 0}, {"rate": -1.0}, {"scale": 0.0}, {"users": -1}, {"cv": -1.0}])
def test_bad_streams_get_one_sentence(change: dict[str, float]) -> None:
    with pytest.raises(UserError):
        list(generate([Stream("chat", **{"count": 1, **change})]))  # type: ignore[arg-type]


def test_every_parameter_is_documented_in_its_pattern() -> None:
    for name in (*PATTERNS, "composite"):
        text = resolve(name).__doc__ or ""
        for parameter in parameters(name):
            said = parameter in text or (parameter.endswith("_guide") and "*_guide" in text)
            assert said, f"{name} does not say what {parameter} is"


def test_two_calls_of_one_name_and_no_calls_at_all_are_refused() -> None:
    def twice(flow: Flow) -> None:
        for _ in range(2):
            flow.call("same", [flow.text(5)], 5)

    with pytest.raises(UserError, match="twice"):
        list(generate([Stream(twice, 1)]))
    with pytest.raises(UserError, match="no calls"):
        list(generate([Stream(lambda flow: None, 1, class_name="empty")]))


# --- spreads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form", "average"),
    [
        ("50", "fixed", 50),
        (7.5, "fixed", 7.5),
        ("183-800", "uniform", 491.5),
        ("25|50|75|100", "choice", 62.5),
        ("q(0:0,0.5:10,1:30)", "quantiles", 12.5),
        ("lognormal(343, 0.8)", "lognormal", 343),
        ("exp(2000)", "exp", 2000),
    ],
)
def test_spreads_have_the_mean_they_say(text: str | float, form: str, average: float) -> None:
    spread = parse(text)
    assert spread.form == form and spread.mean == average
    rng = Random(1)
    drawn = [spread.draw(rng) for _ in range(20_000)]
    assert min(drawn) >= 0 and abs(mean(drawn) / average - 1) < 0.05


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=6), st.integers(0, 1000))
def test_quantile_draws_stay_inside(values: list[int], seed: int) -> None:
    values.sort()
    points = tuple(x for i, v in enumerate(values) for x in (i / (len(values) - 1), float(v)))
    assert values[0] <= Spread("quantiles", points).draw(Random(seed)) <= values[-1]


@pytest.mark.parametrize(
    "text", ["", "-5", "9-3", "q(0:1)", "q(0:5,1:3)", "q(0.1:1,1:2)", "lognormal(3)", "exp(1,2)", "abc", "1|x", "nan"]
)
def test_nonsense_amounts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="amount"):
        parse(text)


# --- blocks ------------------------------------------------------------------------------------------------------


@given(
    prompts=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=6), min_size=2, max_size=8
    ),
    size=st.integers(1, 20),
)
def test_blocks_are_equal_exactly_where_prompts_are(prompts: list[list[tuple[int, int]]], size: int) -> None:
    """Against an oracle that counts: two prompts share the blocks that lie wholly inside their common pieces."""
    blocks = Blocks(size)
    memo: Memo = {}
    made: list[tuple[list[tuple[int, int]], tuple[int, ...]]] = []
    for pieces in prompts:
        state = blocks.root
        for name, length in pieces:
            state = blocks.extend(state, (name, length), length, memo, shared=name < 2)
        made.append((pieces, blocks.ids(state)))
        assert len(made[-1][1]) == -(-sum(length for _, length in pieces) // size)
    for pieces, ids in made:
        for others, other_ids in made:
            common = 0
            for mine, theirs in zip(pieces, others, strict=False):
                if mine != theirs:
                    break
                common += mine[1]
            wanted = len(ids) if pieces == others else common // size
            assert ids[:wanted] == other_ids[:wanted]
            assert not set(ids[wanted:]) & set(other_ids[wanted:])
