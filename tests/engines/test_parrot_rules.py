"""Parrot's protocol, lineage and placement as values: tables and properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.parrot.hazards import hazard
from engines.parrot.lineage import Lineage
from engines.parrot.protocol import Call, Fault, Parameter, Route, complaint, read_call, route, split_template
from engines.parrot.scheduler import Scheduling, Seat, Task, place

OUT = {"name": "o", "is_output": True}


@pytest.mark.parametrize(
    ("method", "path", "kind", "name"),
    [
        ("POST", "/v1/session", "session_open", ""),
        ("POST", "/v1/session/", "session_open", ""),
        ("DELETE", "/v1/session/7", "session_close", "7"),
        ("GET", "/v1/session/7", "other", ""),
        ("POST", "/v1/semantic_call", "call", ""),
        ("POST", "/v1/py_native_call", "native", ""),
        ("POST", "/v1/semantic_var", "var_new", ""),
        ("POST", "/v1/semantic_var/x-1", "var_set", "x-1"),
        ("GET", "/v1/semantic_var/x-1", "var_get", "x-1"),
        ("GET", "/v1/semantic_var", "other", ""),
        ("GET", "/docs", "other", ""),
    ],
)
def test_routes(method: str, path: str, kind: Any, name: str) -> None:
    assert route(method, path) == Route(kind, name)


@given(st.lists(st.tuples(st.text("ab {}", max_size=4), st.sampled_from(["x", "_y1"])), max_size=5), st.text("ab "))
def test_templates_lose_no_text(pairs: list[tuple[str, str]], tail: str) -> None:
    template = "".join(f"{text}{{{{{name}}}}}" for text, name in pairs) + tail
    pieces = split_template(template)
    assert "".join(f"{{{{{t}}}}}" if is_name else t for t, is_name in pieces) == template
    assert all(t for t, _ in pieces)


HAZARDS = [
    ({}, None),
    ({"model_type": "weird"}, "model_type"),
    ({"model_type": "text", "output_criteria": None, "fuse_fill": False}, None),
    ({"fuse_fill": True}, "fuse_fill"),
    ({"output_criteria": "TTFT"}, "output_criteria"),
    ({"template": "{{o}}"}, "begin"),
    ({"template": "{{o}} hi"}, "begin"),
    ({"template": "hi {{o}} and {{p}}", "parameters": [OUT, {"name": "p", "is_output": True}]}, "one output"),
    ({"template": "hi {{o}} and {{o}}"}, "exactly once"),
    ({"template": "hi"}, "exactly once"),
    ({"parameters": None}, None),
]


@pytest.mark.parametrize(("change", "word"), HAZARDS)
def test_hazards(change: dict[str, Any], word: str | None) -> None:
    body = {"session_id": 0, "template": "hi {{o}}", "parameters": [OUT]} | change
    why = hazard(Route("call"), body)
    assert (why is None) if word is None else (why is not None and word in why)


def test_native_calls_pass_only_when_allowed() -> None:
    assert hazard(Route("native"), {}) is not None
    assert hazard(Route("native"), {}, allow_native=True) is None
    assert hazard(Route("other"), {"model_type": "weird"}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "is_output", "var_id", "value", "sampling_config", "max_gen_length"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])  # speed of drawing depends on what else the machine does
@given(st.dictionaries(st.sampled_from(["session_id", "template", "parameters", "models", "output_criteria",
                                        "model_type", "func_name"]), json_values))  # fmt: skip
def test_any_body_is_read_or_refused(body: dict[str, Any]) -> None:
    read = read_call(body)
    assert isinstance(read, Call | Fault)
    hazard(Route("call"), body)
    if isinstance(read, Fault):
        assert read.body()[1]


def call(session: int, *inputs: str, criteria: Any = None) -> Call:
    given = [Parameter(f"i{k}", False, var_id=v) for k, v in enumerate(inputs)]
    return Call(session, ("t", *given, Parameter("o", True)), criteria=criteria)


def test_workflows_are_told_apart_though_ids_come_back() -> None:
    seen = Lineage()
    seen.opened(0, 1)
    first = seen.called(call(0), 0, {"o": "a"}, 2)
    assert first is not None
    assert seen.closed(0, 3, "deleted") is first.workflow
    seen.opened(0, 4)
    second = seen.called(call(0, "a"), 0, {"o": "b"}, 5)
    assert second is not None and second.workflow.workflow_id != first.workflow.workflow_id
    assert second.deps == () and second.external == ("i0",)
    assert seen.opened(0, 6) is second.workflow and second.workflow.end == "replaced"
    assert [w.end for w in seen.core_died(7)] == ["lost"]
    seen.opened(0, 8)
    names = {first.workflow.workflow_id, second.workflow.workflow_id, seen.open[0].workflow_id}
    assert len(names) == 3
    assert seen.called(call(9), 0, {"o": "z"}, 9) is None


@given(st.data())
def test_activation_reaches_exactly_what_the_sink_needs_once(data: st.DataObject) -> None:
    seen = Lineage()
    seen.opened(0, 0)
    n = data.draw(st.integers(1, 12))
    parents = [data.draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set() for i in range(n)]
    nodes = []
    for i in range(n):
        node = seen.called(call(0, *(f"v{p}" for p in sorted(parents[i]))), i, {"o": f"v{i}"}, i)
        assert node is not None
        assert {d.on for d in node.deps} == {f"call.{p}" for p in parents[i]}
        nodes.append(node)

    def needs(i: int) -> set[int]:
        return {i}.union(*(needs(p) for p in parents[i])) if parents[i] else {i}

    first, second = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    assert {x.request_id for x in seen.asked(nodes[first], "latency", 100)} == needs(first)
    assert {x.request_id for x in seen.asked(nodes[second], "throughput", 200)} == needs(second) - needs(first)
    assert {x.request_id for x in nodes if x.t_active_ns == 100} == needs(first)


def seat(**more: Any) -> Seat:
    return Seat("m", "token_id", 256, 10_000, **more)


def test_packing_and_ties() -> None:
    def busy(tokens: int) -> Seat:
        return seat(running=(Task(0, tokens, "throughput"),))

    assert place([Task(1, 10, "throughput")], [busy(5), busy(50), busy(50)], Scheduling()) == [
        (Task(1, 10, "throughput"), 1)
    ]
    assert place([Task(1, 10_001, "throughput")], [seat()], Scheduling()) == []
    assert place([Task(1, 1, "throughput", models=("other",))], [seat()], Scheduling()) == []


def test_a_latency_task_throttles_everybody_on_its_engine() -> None:
    latency, others = Task(0, 1, "latency"), [Task(i, 1, "throughput") for i in range(1, 9)]
    assert len(place([latency, *others], [seat()], Scheduling())) == 4
    assert len(place([*others, latency], [seat()], Scheduling())) == 8  # it does not join eight


def test_groups_stay_together_or_split() -> None:
    group = [Task(i, 100, "throughput", consumers=frozenset({"r"})) for i in range(4)]
    loose = Task(9, 100, "throughput", consumers=frozenset({"q"}))
    seats = [seat(running=(Task(20, 9_700, "throughput"),)), seat()]
    rules = Scheduling(graph_group=True)
    assert {s for t, s in place(group, seats, rules)} == {1}  # 400 tokens fit only there
    alone = place([*group, loose], seats, Scheduling())
    assert [s for _, s in alone] == [0, 0, 0, 1, 1]
    tight = [seat(running=(Task(20, 9_800, "throughput"),))]
    assert len(place(group, tight, rules)) == 2
    shared = [Task(i, 100, "throughput", context="const:x") for i in range(4)]
    assert {s for _, s in place(shared, seats, Scheduling(ctx_group=True))} == {1}


def test_deeper_tasks_go_first_with_app_fifo() -> None:
    tasks = [Task(i, 6_000, "throughput", depth=i % 3) for i in range(6)]
    assert [t.order for t, _ in place(tasks, [seat()], Scheduling(app_fifo=True))] == [2]
    assert [t.order for t, _ in place(tasks, [seat()], Scheduling())] == [0]


tasks = st.builds(
    Task,
    order=st.integers(0, 10_000),
    tokens=st.integers(1, 4_000),
    criteria=st.sampled_from(["latency", "throughput"]),
    depth=st.integers(0, 3),
    consumers=st.frozensets(st.sampled_from("rq"), max_size=2),
    context=st.sampled_from(["", "const:x", "const:y"]),
)
flags = st.builds(
    Scheduling, app_fifo=st.booleans(), graph_group=st.booleans(), ctx_group=st.booleans(), ctx_aware=st.booleans()
)


@given(st.lists(tasks, max_size=14, unique_by=lambda t: t.order), st.integers(1, 3), flags)
def test_no_cap_is_ever_broken_and_no_task_starts_twice(queue: list[Task], seats: int, rules: Scheduling) -> None:
    given_seats = [Seat("m", "token_id", 6, 9_000) for _ in range(seats)]
    placed = place(queue, given_seats, rules)
    assert len({t.order for t, _ in placed}) == len(placed)
    for i in range(seats):
        held = [t for t, s in placed if s == i]
        assert sum(t.tokens for t in held) <= 9_000 and len(held) <= 6
        if not (rules.graph_group or rules.ctx_group):
            for k, task in enumerate(held):  # each found room under its own cap and that of those before it
                assert k + 1 <= min([task.cap, *(t.cap for t in held[:k])])
    if queue:
        alone = min(queue, key=lambda t: (-t.depth, t.order)) if rules.app_fifo else queue[0]
        if not (rules.graph_group or rules.ctx_group):
            assert alone in [t for t, _ in placed]  # an empty engine takes the first


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            "ParrotError(type=<class 'RuntimeError'>, msg=Session (session_id=0) not found.)",
            "Session (session_id=0) not found.",
        ),
        ("out of order", "out of order"),
        ({"message": "an engine's own form"}, None),
        (None, None),
    ],
)
def test_complaints(error: Any, why: str | None) -> None:
    assert complaint({"error": error}) == why
