"""Traces onto a Parrot: plans as values, then played against the embedded one in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engines.embedded.server import EngineOptions
from engines.embedded.types import Limits
from engines.parrot.server import ParrotOptions, RunningParrot, start
from joulegraph.virtual import VirtualLoop, run_virtual
from loadgen.parrot_plan import PlannedCall, Prefixes, plan_calls
from loadgen.prompts import Words
from loadgen.replay import ReplayOptions, replay
from loadgen.target import Target
from loadgen.totals import ReplayTotals
from traces.records import DispatchRecord, from_row
from traces.workflow import Dep, Manifest, Node, Workflow

MS = 1_000_000
MANIFEST = Manifest(block_size=16)


def node(wf: str, name: str, *deps: str, n: int = 100, out: int = 20, **more: Any) -> Node:
    arrival = more.pop("arrival_ns", 0)
    return Node(wf, name, arrival, n, out, deps=tuple(Dep(d) for d in deps), **more)


def chain(wf: str, length: int = 4, **more: Any) -> Workflow:
    names = [f"s{i}" for i in range(length)]
    return Workflow(wf, tuple(node(wf, x, *names[max(0, i - 1) : i], **more) for i, x in enumerate(names)), "chain")


def map_reduce(wf: str, width: int = 12, arrival_ns: int = 0, **more: Any) -> Workflow:
    maps = [node(wf, f"m{i}", arrival_ns=arrival_ns, **more) for i in range(width)]
    reduce = node(wf, "r", *(m.request_id for m in maps), n=width * 21 + 40)
    return Workflow(wf, (*maps, reduce), "map_reduce")


def planned(workflow: Workflow, rule: Any = "pattern", prefixes: Prefixes | None = None) -> dict[str, PlannedCall]:
    return plan_calls(workflow, MANIFEST, Words("s", block_size=16), prefixes or Prefixes(), rule)


def test_a_chain_is_asked_for_at_its_end_only() -> None:
    calls = planned(chain("w"))
    assert [c.asked for c in calls.values()] == [False, False, False, True]
    assert {c.criteria for c in calls.values()} == {"latency"} and {c.at_once for c in calls.values()} == {None}
    assert calls["s1"].inputs == (("in_0", "s0"),) and calls["s1"].template == "{{in_0}} the{{own}} of{{out}}"


def test_maps_start_at_once_for_throughput() -> None:
    calls = planned(map_reduce("w", 3))
    assert [calls[m].at_once for m in ("m0", "m1", "m2", "r")] == ["throughput"] * 3 + [None]
    assert calls["r"].criteria == "latency" and calls["r"].asked and not calls["m0"].asked
    plain = planned(map_reduce("w", 3), "throughput")
    assert {(c.at_once, c.criteria) for c in plain.values()} == {(None, "throughput")}


def test_shared_blocks_lead_as_constant_text() -> None:
    shared, met = tuple(range(3)), Prefixes()
    one = [Workflow(f"w{i}", (node(f"w{i}", "a", n=100, hash_ids=(*shared, 100 + i)),)) for i in range(3)]
    calls = [planned(w, prefixes=met)["a"] for w in one]
    constants = [c.template.partition("{{own}}")[0] for c in calls]
    assert constants[0] == "" and constants[1] == constants[2] and len(constants[1].split()) == 48
    pair = (node("w", "a", hash_ids=(1, 2)), node("w", "b", hash_ids=(1, 3)))
    both = planned(Workflow("w", pair))
    assert len({c.template for c in both.values()}) == 1
    assert both["a"].template.startswith(" ") and len(both["a"].template.partition("{{own}}")[0].split()) == 16


def test_nodes_that_wait_at_the_client() -> None:
    wf = Workflow("w", (
        node("w", "a"), node("w", "b", "a", delay_ns=5 * MS), node("w", "t", "b", kind="tool", t_end_ns=9 * MS),
        node("w", "c", "t"), node("w", "d", "c"),
    ))  # fmt: skip
    calls = planned(wf)
    assert set(calls) == {"a", "b", "c", "d"}
    assert {n for n, c in calls.items() if c.timed} == {"b", "c"}
    assert {n for n, c in calls.items() if c.asked} == {"a", "b", "d"}
    assert calls["c"].inputs == ()  # a tool has no variable


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60), st.sets(st.integers(0, 7), max_size=3)), max_size=8),
    st.integers(0, 6),
)
def test_prompts_have_the_planned_length_wherever_their_inputs_leave_room(
    shapes: list[tuple[int, int, set[int]]], blocks: int
) -> None:
    nodes = [
        node("w", f"n{i}", *(f"n{d}" for d in sorted(deps) if d < i), n=n, out=out, hash_ids=tuple(range(blocks)))
        for i, (n, out, deps) in enumerate(shapes)
    ]
    calls = planned(Workflow("w", tuple(nodes)))
    assert list(calls) and set(calls) == {n.request_id for n in nodes} if nodes else not calls
    for call in calls.values():
        own, given_tokens = call.own or "", sum(calls[m].node.output_length for _, m in call.inputs)
        text = call.template.replace("{{own}}", own).replace("{{out}}", "")
        for name, _ in call.inputs:
            text = text.replace(f"{{{{{name}}}}}", "")
        assert call.prompt_tokens == len(text.split()) + given_tokens
        least = given_tokens + len(call.inputs) + 1
        assert call.prompt_tokens == max(least, call.node.input_length)
        assert not call.template.startswith("{{out}}")


# ---------------------------------------------------------------------------------------- against the embedded Parrot


def played(
    workflows: list[Workflow], work: Callable[[VirtualLoop, RunningParrot, asyncio.Event], Any] | None = None,
    replicas: int = 1, criteria: Any = "pattern", **options: Any,
) -> tuple[list[DispatchRecord], ReplayTotals, RunningParrot]:  # fmt: skip
    rows: list[dict[str, Any]] = []

    async def main(loop: VirtualLoop) -> tuple[ReplayTotals, RunningParrot]:
        running = await start(
            ParrotOptions(EngineOptions(limits=Limits(replicas=replicas))), now_ns=loop.now_ns,
            sleep_until=loop.sleep_until, serve=loop.create_server,
        )  # fmt: skip
        stop = asyncio.Event()
        beside = asyncio.ensure_future(work(loop, running, stop)) if work is not None else None
        target = Target("127.0.0.1", running.port, "m", api="parrot", criteria=criteria)
        try:
            totals = await replay(
                workflows, target, t0_ns=loop.now_ns(), now_ns=loop.now_ns, sleep_until=loop.sleep_until,
                connect=loop.create_connection, write=rows.append, stop=stop,
                options=ReplayOptions(manifest=MANIFEST, **options),
            )  # fmt: skip
        finally:
            if beside is not None:
                beside.cancel()
            await running.close()
        return totals, running

    totals, running = run_virtual(main)
    return [from_row(DispatchRecord, r) for r in rows], totals, running


def test_lengths_are_exact_and_every_node_is_timed() -> None:
    todo = [chain("c"), map_reduce("m", arrival_ns=40 * MS), Workflow("solo", (node("solo", "a", n=1, out=3),))]
    records, totals, running = played(todo)
    assert totals.outcomes == {"ok": 18} and (totals.workflows_done, totals.usage_off) == (3, 0)
    counters = running.engine.counters
    assert counters.prompt_tokens == sum(r.prompt_tokens or 0 for r in records)
    assert counters.generation_tokens == sum(r.completion_tokens or 0 for r in records)
    got = {(r.workflow_id, r.request_id): r for r in records}
    for record in records:
        assert record.api == "parrot" and record.prompt_tokens == record.planned_input_tokens
        assert record.completion_tokens == record.planned_output_tokens
        assert record.due_ns <= (record.t_sent_ns or 0) < record.t_end_ns
        for dep in record.deps:  # data order, and due as the trace has it: at the end of the last thing needed
            assert got[record.workflow_id, dep["on"]].t_end_ns <= record.due_ns
    assert got["c", "s1"].due_ns == got["c", "s0"].t_end_ns
    assert got["m", "r"].due_ns == max(got["m", f"m{i}"].t_end_ns for i in range(12))


def test_the_pattern_rule_spares_maps_the_cap_of_four() -> None:
    def took(rule: Any) -> tuple[int, int]:
        records, _, running = played([map_reduce("m", out=60)], criteria=rule)
        return max(r.t_end_ns for r in records) - min(r.due_ns for r in records), running.core.runner.peak[0]

    (fast, many), (slow, four) = took("pattern"), took("latency")
    assert (many, four) == (12, 4) and fast < 0.6 * slow


def test_delays_and_tools_are_waited_out_by_the_client() -> None:
    wf = Workflow("w", (
        node("w", "a"), node("w", "b", "a", delay_ns=500 * MS),
        node("w", "t", "b", kind="tool", t_end_ns=900 * MS), node("w", "c", "t", "b"), node("w", "d", "c"),
    ))  # fmt: skip
    records, totals, _ = played([wf])
    got = {r.request_id: r for r in records}
    assert totals.outcomes == {"ok": 4} and totals.tools == 1
    assert got["b"].due_ns == got["a"].t_end_ns + 500 * MS
    assert got["t"].due_ns == got["b"].t_end_ns and got["t"].t_end_ns - got["t"].due_ns == 900 * MS
    assert got["c"].due_ns == got["t"].t_end_ns and got["d"].due_ns == got["c"].t_end_ns


def test_what_needs_a_failed_call_is_skipped_and_others_go_on() -> None:
    big = Workflow("big", (node("big", "a", n=140_000), node("big", "b", "a"), node("big", "c", "b")))
    records, totals, _ = played([big, chain("fine")], timeout_ns=20_000 * MS)
    got = {(r.workflow_id, r.request_id): r for r in records}
    assert got["big", "a"].outcome == "error" and "Session (session_id=" in (got["big", "a"].error or "")
    assert got["big", "b"].outcome in ("skipped", "error")  # both at once: read in vain, and needing what failed
    assert got["big", "c"].outcome == "skipped"  # would have waited for ever
    assert max(r.t_end_ns for r in records) - min(r.due_ns for r in records) < 10_000 * MS
    assert (totals.workflows_done, totals.workflows_failed) == (1, 1)


def test_no_server_is_a_row_each() -> None:
    async def gone(loop: VirtualLoop, running: RunningParrot, stop: asyncio.Event) -> None:
        await loop.sleep_until(loop.now_ns() + 1)
        await running.close()

    records, totals, _ = played([chain("c", out=400), map_reduce("late", 3, arrival_ns=3600 * 1000 * MS)], gone)
    assert len(records) == 8 and totals.workflows_failed == 2
    assert {r.outcome for r in records if r.workflow_id == "late"} == {"unreachable"}
    assert {r.outcome for r in records if r.workflow_id == "c"} <= {"upstream_died", "unreachable", "skipped"}


def test_a_stop_ends_everything_with_a_record() -> None:
    async def soon(loop: VirtualLoop, running: RunningParrot, stop: asyncio.Event) -> None:
        await loop.sleep_until(loop.now_ns() + 300 * MS)
        stop.set()

    todo = [chain("c", 6, out=300), chain("never", arrival_ns=3600 * 1000 * MS)]
    records, totals, _ = played(todo, soon, drain_ns=1_000 * MS)
    assert totals.stopped and len(records) == 6
    assert {r.outcome for r in records} <= {"ok", "cancelled", "skipped"}
    assert "cancelled" in {r.outcome for r in records}


def test_two_virtual_runs_are_the_same_to_the_nanosecond() -> None:
    def once() -> list[Any]:
        records, _, _ = played([chain("c"), map_reduce("m"), map_reduce("n", 5)], replicas=2)
        return sorted((r.workflow_id, r.request_id, r.due_ns, r.t_sent_ns, r.t_end_ns) for r in records)

    assert once() == once()


def test_closed_loop_gives_each_user_the_next_workflow_when_the_last_has_ended() -> None:
    flows = [chain(f"c{i}", arrival_ns=7 * MS * i) for i in range(5)]
    rows, totals, _ = played(flows, closed_loop_users=2, closed_loop_think_ns=30 * MS)
    assert totals.workflows == 5 and {r.outcome for r in rows} == {"ok"}
    spans = sorted(
        (min(r.due_ns for r in mine), max(r.t_end_ns for r in mine))
        for mine in ([r for r in rows if r.workflow_id == f.workflow_id] for f in flows)
    )
    assert spans[0][0] == spans[1][0]  # both users begin at once, whatever the trace's arrivals say
    for k in range(2, 5):
        under_way = [end for start, end in spans[:k] if end + 30 * MS > spans[k][0]]
        assert len(under_way) < 2


def test_users_begin_a_ramp_apart() -> None:
    rows, _, _ = played([chain(f"c{i}") for i in range(3)], closed_loop_users=3, closed_loop_ramp_ns=5 * MS)
    first = sorted(min(r.due_ns for r in rows if r.workflow_id == f"c{i}") for i in range(3))
    assert [b - a for a, b in pairwise(first)] == [5 * MS, 5 * MS]


def test_the_same_trace_on_both_engines_joins_node_by_node() -> None:
    from engines.embedded.server import start as start_engine

    todo = [chain("c"), map_reduce("m")]
    onto_parrot, _, _ = played(todo)
    rows: list[dict[str, Any]] = []

    async def main(loop: VirtualLoop) -> None:
        engine = await start_engine(
            EngineOptions(), host="127.0.0.1", port=0, now_ns=loop.now_ns, sleep_until=loop.sleep_until,
            serve=loop.create_server,
        )  # fmt: skip
        try:
            await replay(
                todo, Target("127.0.0.1", engine.port, "h100-llama8b"), t0_ns=loop.now_ns(), now_ns=loop.now_ns,
                sleep_until=loop.sleep_until, connect=loop.create_connection, write=rows.append,
                options=ReplayOptions(manifest=MANIFEST),
            )  # fmt: skip
        finally:
            await engine.close()

    run_virtual(main)
    plain = {r["wire_id"]: from_row(DispatchRecord, r) for r in rows}
    assert {r.wire_id for r in onto_parrot} == set(plain)
    for record in onto_parrot:
        other = plain[record.wire_id]
        assert (record.prompt_tokens, record.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
        assert record.deps == other.deps
