"""The replay shell against a scripted server: exact instants in virtual time, every outcome, drain, and real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegraph.virtual import VirtualLoop, run_virtual
from loadgen.metrics import by_workflow, itl_ns, request_figures, workflow_figures
from loadgen.pacing import Pacer
from loadgen.replay import ReplayOptions, replay
from loadgen.tally import slot_names
from loadgen.target import Target
from loadgen.totals import Bounds, ReplayTotals
from loadgen.walk import Walk
from traces.graph import makespan_ns
from traces.records import DispatchRecord, from_row
from traces.status import StatusPage, StatusReader
from traces.workflow import ANCHORS, Dep, Manifest, Node, Workflow

MS = 1_000_000
S = 1_000_000_000


def node(name: str, *deps: Dep, wf: str = "w", arrival: int = 0, delay: int = 0, out: int = 4, **more: Any) -> Node:
    return Node(wf, name, arrival, 20, out, deps=deps, delay_ns=delay, **more)


def virtual(
    workflows: Iterable[Workflow],
    script: Callable[[Any], Any],
    kit: Any,
    *,
    options: ReplayOptions | None = None,
    stop_after_ns: int | None = None,
    status: StatusPage | None = None,
    t0_in_ns: int = 0,
) -> tuple[list[DispatchRecord], ReplayTotals, Any]:
    """Replay in virtual time; records, totals and the server (with all it was asked)."""
    rows: list[dict[str, Any]] = []

    async def main(loop: VirtualLoop) -> tuple[ReplayTotals, Any]:
        server = kit.Server(loop.now_ns, loop.sleep_until, script)
        listener, port = await server.start(loop)
        stop = asyncio.Event()
        if stop_after_ns is not None:
            loop.call_at((loop.now_ns() + stop_after_ns) / 1e9, stop.set)
        totals = await replay(
            workflows, Target("127.0.0.1", port, model="m"), t0_ns=loop.now_ns() + t0_in_ns, now_ns=loop.now_ns,
            sleep_until=loop.sleep_until, connect=loop.create_connection, write=rows.append, status=status,
            stop=stop, options=options,
        )  # fmt: skip
        listener.close()
        return totals, server

    totals, server = run_virtual(main, start_ns=0)
    return [from_row(DispatchRecord, r) for r in rows], totals, server


def steady(kit: Any) -> Callable[[Any], Any]:
    """First token after 10 ms, then one every 5 ms."""
    return lambda asked: kit.stream(asked, first_ns=10 * MS, gap_ns=5 * MS)


def test_one_request_has_exact_stamps(kit: Any) -> None:
    page = StatusPage(slot_names())
    (record,), totals, server = virtual(
        [Workflow("w", (node("a", arrival=3 * MS),), "chat")], steady(kit), kit, status=page
    )
    assert record.outcome == "ok" and record.status == 200 and record.finish_reason == "length"
    assert record.due_ns == record.t_sent_ns == 3 * MS
    assert (record.t_first_byte_ns, record.t_first_token_ns, record.t_last_token_ns) == (3 * MS, 13 * MS, 28 * MS)
    assert record.t_end_ns == 28 * MS
    assert (record.prompt_tokens, record.completion_tokens) == (20, 4)
    assert record.read_tokens[:4] == (1, 1, 1, 1) and sum(record.read_dt_ns) == 25 * MS
    assert itl_ns(record) == [5 * MS] * 3
    figures = request_figures(record)
    assert figures is not None and figures.tpot_ns == 5 * MS and figures.ttft_due_ns == 10 * MS
    (asked,) = server.asked
    assert asked.headers["x-workflow-id"] == "w" and asked.headers["x-workflow-node"] == "a"
    assert asked.headers["x-workflow-class"] == "chat" and asked.headers["x-request-id"] == record.wire_id
    assert totals.valid and totals.usage_exact == 1 and totals.outcomes == {"ok": 1}
    seen = StatusReader(page).all()
    assert (seen["requests_sent"], seen["requests_done"], seen["workflows_done"], seen["finished"]) == (1, 1, 1, 1)
    assert (seen["tokens_in"], seen["tokens_out"]) == (20, 4)


def test_the_loop_is_open(kit: Any) -> None:
    """A server that answers after 60 s changes no due instant: 50 requests are in flight together."""
    work = [Workflow(f"w{i}", (node("a", wf=f"w{i}", arrival=i * 100 * MS, out=1),)) for i in range(50)]
    records, _, server = virtual(work, lambda a: kit.stream(a, first_ns=60 * S, gap_ns=0), kit)
    assert [a.t_ns for a in server.asked] == [i * 100 * MS for i in range(50)]
    assert server.connections == 50 and all(r.t_end_ns - r.due_ns == 60 * S for r in records)


def test_joins_on_all_anchors(kit: Any) -> None:
    work = Workflow(
        "w",
        (
            node("a"),
            node("s", Dep("a", anchor="start"), delay=1 * MS),
            node("f", Dep("a", anchor="first_token")),
            node("e", Dep("a"), Dep("s", blocking=False), delay=2 * MS),
            node("t", Dep("e"), kind="tool", arrival=100, t_end_ns=100 + 7 * MS, delay=MS),
            node("z", Dep("t"), Dep("f"), Dep("s")),
        ),
    )
    records, totals, _ = virtual([work], steady(kit), kit)
    due = {r.request_id: r.due_ns // MS for r in records}
    # a: 0..25; e: 27..52; tool: 53..60
    assert due == {"a": 0, "s": 1, "f": 10, "e": 27, "t": 53, "z": 60}
    figures = workflow_figures(records)
    assert figures.complete and figures.makespan_ns == 85 * MS
    assert [s.request_id for s in figures.path] == ["a", "e", "t", "z"]
    assert (figures.serving_ns, figures.tool_ns, figures.late_ns) == (75 * MS, 10 * MS, 0)
    assert totals.workflows_done == 1 and totals.tools == 1 and totals.requests == 5


@st.composite
def dags(draw: st.DrawFn) -> Workflow:
    nodes = []
    for i in range(draw(st.integers(1, 8))):
        on = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        deps = [Dep(f"n{j}", anchor=draw(st.sampled_from(ANCHORS))) for j in sorted(on)]
        nodes.append(
            node(f"n{i}", *deps, arrival=draw(st.integers(0, 9)) * MS, delay=draw(st.integers(0, 9)) * MS, out=2)
        )
    return Workflow("w", tuple(nodes))


@settings(max_examples=40, deadline=None)
@given(dags())
def test_replay_agrees_with_the_pure_walk(kit: Any, workflow: Workflow) -> None:
    """Whatever the graph: nodes are sent when due, and due as the walk says given the observed anchors."""
    records, totals, _ = virtual([workflow], steady(kit), kit)
    seen = {r.request_id: r for r in records}
    assert len(seen) == len(records) == len(workflow.nodes) and totals.workflows_done == 1
    walk = Walk(workflow, 0)
    due = {r.node.request_id: r.due_ns for r in walk.start()}
    moments = sorted(
        (t, rank, r.request_id, anchor)
        for r in records
        for rank, (anchor, t) in enumerate(
            (("start", r.t_sent_ns or 0), ("first_token", r.t_first_token_ns or 0), ("end", r.t_end_ns))
        )
    )
    for t, _, name, anchor in moments:
        due |= {r.node.request_id: r.due_ns for r in walk.reach(name, anchor, t)}  # type: ignore[arg-type]
    assert due == {k: r.due_ns for k, r in seen.items()} == {k: r.t_sent_ns for k, r in seen.items()}
    figures = workflow_figures(records)
    assert figures.serving_ns + figures.tool_ns + figures.late_ns <= figures.makespan_ns
    assert figures.makespan_ns == max(r.t_end_ns for r in records) - min(r.due_ns for r in records)


def outcome_script(kit: Any) -> Callable[[Any], Any]:
    def script(asked: Any) -> Any:
        match asked.headers["x-workflow-node"]:
            case "rejected":
                return kit.plain(400, {"error": {"message": "too long"}})
            case "busy":
                return kit.plain(429, {"error": {"message": "slow down"}})
            case "broken":
                return kit.plain(500, {"error": {"message": "oops"}})
            case "nonsense":
                return [(0, kit.head), (0, kit.chunk(b"data: {nonsense\n\n") + b"0\r\n\r\n")]
            case "cut":
                return [(0, kit.head), (MS, kit.chunk(kit.token()) + b"0\r\n\r\n")]
            case "reset":
                return [(0, kit.head), (MS, kit.chunk(kit.token())), (MS, None)]
            case "nohttp":
                return [(0, b"SSH-2.0-nonsense\r\n\r\n")]
            case "stuck":
                return [(0, kit.head)]
            case _:
                return kit.stream(asked, first_ns=MS, gap_ns=MS)

    return script


OUTCOMES = {
    "rejected": ("rejected", 400, "400: too long"),
    "busy": ("rejected", 429, "429: slow down"),
    "broken": ("error", 500, "500: oops"),
    "nonsense": ("error", 200, "1 events of the reply are not what the dialect promises"),
    "cut": ("error", 200, "the reply ended without its end marker"),
    "reset": ("upstream_died", 200, None),
    "nohttp": ("error", None, None),
    "stuck": ("timeout", 200, "no complete reply within 2 s"),
    "fine": ("ok", 200, None),
}


def test_every_failure_is_data_and_the_rest_goes_on(kit: Any) -> None:
    work = [
        Workflow(f"w-{name}", (node(name, wf=f"w-{name}"), node("after", Dep(name), wf=f"w-{name}")))
        for name in OUTCOMES
    ]
    records, totals, _ = virtual(work, outcome_script(kit), kit, options=ReplayOptions(timeout_ns=2 * S))
    got = {r.request_id: r for r in records if r.request_id != "after"}
    for name, (outcome, status, error) in OUTCOMES.items():
        assert (name, got[name].outcome, got[name].status) == (name, outcome, status)
        assert error is None or got[name].error == error
    assert got["stuck"].t_end_ns == 2 * S
    after = {r.workflow_id: r for r in records if r.request_id == "after"}
    assert after.pop("w-fine").outcome == "ok"
    assert {r.outcome for r in after.values()} == {"skipped"}
    assert after["w-busy"].error == "it needs busy, which failed"
    assert (totals.errors, totals.rejected, totals.workflows_done, totals.workflows_failed) == (6, 2, 1, 8)


def test_nobody_listens(kit: Any) -> None:
    async def main(loop: VirtualLoop) -> ReplayTotals:
        return await replay(
            [Workflow("w", (node("a"), node("b", Dep("a"))))], Target("127.0.0.1", 9, model="m"), t0_ns=0,
            now_ns=loop.now_ns, sleep_until=loop.sleep_until, connect=loop.create_connection, write=rows.append,
        )  # fmt: skip

    rows: list[dict[str, Any]] = []
    totals = run_virtual(main, start_ns=0)
    records = [from_row(DispatchRecord, r) for r in rows]
    assert [r.outcome for r in records] == ["unreachable", "skipped"]
    assert "127.0.0.1:9" in (records[0].error or "") and records[0].t_sent_ns is None
    assert totals.errors == 1 and totals.requests == 1


def test_cycles_zero_lengths_and_unknown_parents_end(kit: Any) -> None:
    loop = Workflow("w1", (node("a", Dep("b"), wf="w1"), node("b", Dep("a"), wf="w1")))
    zero = Workflow("w2", (node("a", wf="w2", out=0), node("b", Dep("a"), Dep("gone"), wf="w2")))
    records, totals, _ = virtual([loop, zero], steady(kit), kit)
    assert {(r.workflow_id, r.request_id): r.outcome for r in records} == {
        ("w1", "a"): "skipped", ("w1", "b"): "skipped", ("w2", "a"): "skipped", ("w2", "b"): "ok",
    }  # fmt: skip
    assert totals.workflows_failed == 1 and totals.workflows_done == 1


def test_stop_sends_nothing_more_and_drains(kit: Any) -> None:
    work = [
        Workflow(f"w{i}", (node("a", wf=f"w{i}", arrival=i * S), node("b", Dep("a"), wf=f"w{i}"))) for i in range(9)
    ]
    slow = {"w3": 100 * S}
    script = lambda a: kit.stream(a, first_ns=slow.get(a.headers["x-workflow-id"], 700 * MS), gap_ns=0)  # noqa: E731
    records, totals, server = virtual(
        work, script, kit, stop_after_ns=3 * S + MS, options=ReplayOptions(drain_ns=5 * S)
    )
    assert totals.stopped and len(server.asked) == 7  # w0 to w2 both, w3 its first
    assert (totals.workflows_done, totals.workflows_failed) == (3, 1)
    outcomes = {(r.workflow_id, r.request_id): r.outcome for r in records}
    assert outcomes[("w3", "a")] == "cancelled" and outcomes[("w3", "b")] == "skipped"
    assert outcomes[("w0", "a")] == outcomes[("w1", "b")] == "ok" and ("w4", "a") not in outcomes
    assert totals.t_end_ns == 8 * S + MS


def test_cancellation_injection(kit: Any) -> None:
    work = [Workflow(f"w{i}", (node("a", wf=f"w{i}"),)) for i in range(400)]
    options = ReplayOptions(cancel_share=0.25, cancel_after_ns=12 * MS)
    records, totals, _ = virtual(work, steady(kit), kit, options=options)
    assert {(r.outcome, r.t_end_ns) for r in records} == {("cancelled", 12 * MS), ("ok", 25 * MS)}
    assert 70 <= totals.outcomes["cancelled"] <= 130
    assert all(sum(r.read_tokens) == 1 for r in records if r.outcome == "cancelled")
    late, _, _ = virtual(work, steady(kit), kit, options=ReplayOptions(cancel_share=1, cancel_after_ns=S))
    assert {r.outcome for r in late} == {"ok"}


def test_live_outputs_reach_the_children(kit: Any) -> None:
    chain = Workflow("w", (node("a", api="completions"), node("b", Dep("a", kind="data"))))
    _, _, server = virtual([chain], steady(kit), kit, options=ReplayOptions(outputs="live"))
    prompt = server.asked[1].body["prompt"]
    assert prompt.startswith(" tok t1 t2 t3") and len(prompt.split()) == 20


def test_lateness_past_the_bound_invalidates(kit: Any) -> None:
    work = [Workflow("w", (node("a", arrival=0),))]
    _, totals, _ = virtual(work, steady(kit), kit, t0_in_ns=-100 * MS)
    assert not totals.valid and "lateness" in totals.why[0]
    _, totals, _ = virtual(work, steady(kit), kit, t0_in_ns=-100 * MS, options=ReplayOptions(bounds=Bounds(S)))
    assert totals.valid


def test_memory_holds_one_workflow_ahead_only(kit: Any) -> None:
    """The source is read as the replay goes, not beforehand."""
    drawn = 0

    def source() -> Iterable[Workflow]:
        nonlocal drawn
        for i in range(100):
            drawn += 1
            yield Workflow(f"w{i}", (node("a", wf=f"w{i}", arrival=i * S),))

    seen: list[tuple[str, int]] = []
    script = lambda a: seen.append((a.headers["x-workflow-id"], drawn)) or steady(kit)(a)  # type: ignore[func-returns-value] # noqa: E731
    virtual(source(), script, kit)
    assert seen == [(f"w{i}", min(100, i + 2)) for i in range(100)]


def test_a_failing_recorder_surfaces(kit: Any) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = kit.Server(loop.now_ns, loop.sleep_until, steady(kit))
        listener, port = await server.start(loop)
        with pytest.raises(ZeroDivisionError):
            await replay(
                [Workflow("w", (node("a"),))], Target("127.0.0.1", port), t0_ns=0, now_ns=loop.now_ns,
                sleep_until=loop.sleep_until, connect=loop.create_connection, write=lambda _: 1 // 0,  # type: ignore[arg-type,return-value]
            )  # fmt: skip
        listener.close()

    run_virtual(main, start_ns=0)


def test_real_time_on_uvloop(kit: Any) -> None:
    """The same code on real sockets: 60 requests over 0.3 s, none early, tokens and usage exact."""
    rows: list[dict[str, Any]] = []

    async def main() -> ReplayTotals:
        loop = asyncio.get_running_loop()
        with Pacer(loop, time.monotonic_ns) as pacer:
            server = kit.Server(
                time.monotonic_ns, pacer.sleep_until, lambda a: kit.stream(a, first_ns=2 * MS, gap_ns=MS)
            )
            listener, port = await server.start(loop)
            totals = await replay(
                (Workflow(f"w{i}", (node("a", wf=f"w{i}", arrival=i * 5 * MS, hash_ids=(1, 2)),)) for i in range(60)),
                Target("127.0.0.1", port, model="m"), t0_ns=time.monotonic_ns() + 20 * MS, now_ns=time.monotonic_ns,
                sleep_until=pacer.sleep_until, connect=loop.create_connection, write=rows.append,
                options=ReplayOptions(prewarm=4, manifest=Manifest(block_size=16), bounds=Bounds(S, S, 1.0, 1.0)),
            )  # fmt: skip
            listener.close()
            await listener.wait_closed()
            while server.tasks:
                await asyncio.gather(*server.tasks)
            return totals

    totals = uvloop.run(main())
    records = [from_row(DispatchRecord, r) for r in rows]
    assert totals.outcomes == {"ok": 60} and totals.usage_exact == 60 and totals.valid
    assert all(r.t_sent_ns is not None and r.t_sent_ns >= r.due_ns for r in records)
    assert all(sum(r.read_tokens) == 4 for r in records)
    assert len(by_workflow(records)) == 60 and orjson.dumps(records)
    assert makespan_ns({}) is None


def test_retries_are_off_by_default_and_on_request_stay_due_when_they_were(kit: Any) -> None:
    def flaky(refusals: int) -> Callable[[Any], Any]:
        seen: list[int] = []

        def script(asked: Any) -> Any:
            seen.append(asked.t_ns)
            if len(seen) <= refusals:
                return kit.plain(503, {"error": {"message": "warming up"}})
            return kit.stream(asked, first_ns=10 * MS, gap_ns=0)

        return script

    work = [Workflow("w", (node("a", arrival=5 * MS, out=1),))]
    (record,), totals, server = virtual(work, flaky(1), kit)
    assert (record.outcome, record.attempts, totals.retries, len(server.asked)) == ("error", 1, 0, 1)
    (record,), totals, server = virtual(work, flaky(2), kit, options=ReplayOptions(retries=2, retry_wait_ns=100 * MS))
    assert (record.outcome, record.attempts, totals.retries, totals.requests) == ("ok", 3, 2, 1)
    assert [a.t_ns for a in server.asked] == [5 * MS, 105 * MS, 305 * MS]
    assert (record.due_ns, record.t_sent_ns, record.t_end_ns) == (5 * MS, 305 * MS, 315 * MS)
    assert len({a.headers["x-request-id"] for a in server.asked}) == 3
    (record,), totals, _ = virtual(work, flaky(9), kit, options=ReplayOptions(retries=2, retry_wait_ns=100 * MS))
    assert (record.outcome, record.attempts, totals.errors) == ("error", 3, 1)
    (record,), totals, _ = virtual(
        work, flaky(9), kit, options=ReplayOptions(retries=9, timeout_ns=150 * MS, retry_wait_ns=100 * MS)
    )
    assert record.attempts == 2, "no repetition beyond the allowance from due"
    # refused by rule: asking again would change nothing
    (record,), totals, server = virtual(
        work, lambda a: kit.plain(400, {"error": {"message": "too long"}}), kit, options=ReplayOptions(retries=3)
    )
    assert (record.outcome, record.attempts, len(server.asked)) == ("rejected", 1, 1)


def test_a_repetition_has_no_more_time_than_its_first_sending(kit: Any) -> None:
    """B is sent between A's two sendings and hangs as A does: A's time, counted from its own due, ends first."""
    asked_a: list[int] = []

    def script(asked: Any) -> Any:
        if asked.headers["x-workflow-id"] == "A":
            asked_a.append(asked.t_ns)
            if len(asked_a) == 1:
                return kit.plain(503, {})
        return kit.stream(asked, first_ns=60 * S, gap_ns=0)

    work = [Workflow("A", (node("a", wf="A"),)), Workflow("B", (Node("B", "a", 200 * MS, 20, 4),))]
    wanted = ReplayOptions(retries=1, retry_wait_ns=300 * MS, timeout_ns=1 * S)
    records, _, _ = virtual(work, script, kit, options=wanted)
    ended = {r.workflow_id: r.t_end_ns for r in records}
    assert len(asked_a) == 2 and {r.outcome for r in records} == {"timeout"}
    assert ended["B"] == 1200 * MS and 1000 * MS <= ended["A"] <= 1100 * MS


def test_nothing_is_in_flight_after_cancellations_and_repetitions(kit: Any) -> None:
    page, seen = StatusPage(slot_names()), set()

    def script(asked: Any) -> Any:
        first = asked.headers["x-workflow-id"] not in seen
        seen.add(asked.headers["x-workflow-id"])
        return kit.plain(503, {}) if first else kit.stream(asked, first_ns=10 * MS, gap_ns=5 * MS)

    work = [Workflow(f"w{i}", (node("a", wf=f"w{i}"),)) for i in range(20)]
    wanted = ReplayOptions(retries=1, cancel_share=0.5, cancel_after_ns=MS, retry_wait_ns=MS)
    _, totals, server = virtual(work, script, kit, status=page, options=wanted)
    told = StatusReader(page).all()
    assert totals.retries and totals.outcomes["cancelled"], "both came about"
    assert told["requests_sent"] == told["requests_over"] == len(server.asked)


def test_a_stop_ends_what_waits_for_its_repetition(kit: Any) -> None:
    (record,), totals, _ = virtual(
        [Workflow("w", (node("a"),))], lambda a: kit.plain(503, {}), kit, stop_after_ns=50 * MS,
        options=ReplayOptions(retries=5, retry_wait_ns=1 * S),
    )  # fmt: skip
    assert (record.outcome, totals.stopped) == ("cancelled", True)
