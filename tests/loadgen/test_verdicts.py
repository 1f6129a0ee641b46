"""The generator judges itself: each sign of its own distortion is found, alone; what a server does wrong is none."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.pool import Pool
from joulegraph.virtual import VirtualLoop, run_virtual
from loadgen.client import Exchange
from loadgen.outbox import MOST, Outbox
from loadgen.pacing import Pacer
from loadgen.replay import ReplayOptions, replay
from loadgen.tally import Tally
from loadgen.target import Target
from loadgen.totals import Bounds, ReplayTotals, verdict
from traces.records import DispatchRecord, from_row
from traces.workflow import Node, Workflow

MS = 1_000_000
S = 1_000_000_000


def single(number: int, *, arrival: int = 0, tokens: int = 20, out: int = 4) -> Workflow:
    return Workflow(f"w{number}", (Node(f"w{number}", "n", arrival, tokens, out),))


def virtual(
    workflows: list[Workflow],
    script: Callable[[Any], Any],
    kit: Any,
    *,
    options: ReplayOptions | None = None,
    stall_ns: int = 0,
) -> tuple[list[DispatchRecord], ReplayTotals]:
    """Replay in virtual time. stall_ns: the process stands still for so long whenever it writes a row."""
    rows: list[dict[str, Any]] = []

    async def main(loop: VirtualLoop) -> ReplayTotals:
        stalled = 0

        def write(row: dict[str, Any]) -> None:
            nonlocal stalled
            stalled += stall_ns
            rows.append(row)

        async def sleep_until(due_ns: int) -> None:
            while loop.now_ns() + stalled < due_ns:
                await loop.sleep_until(due_ns - stalled)

        server = kit.Server(loop.now_ns, loop.sleep_until, script)
        listener, port = await server.start(loop)
        totals = await replay(
            workflows, Target("127.0.0.1", port, model="m"), t0_ns=loop.now_ns(), connect=loop.create_connection,
            now_ns=lambda: loop.now_ns() + stalled, sleep_until=sleep_until, write=write, options=options,
        )  # fmt: skip
        listener.close()
        return totals

    totals = run_virtual(main, start_ns=0)
    return [from_row(DispatchRecord, r) for r in rows], totals


FINE = ReplayTotals(requests=1000, token_events=1000, lateness_p99_ns=20 * MS, wake_p99_ns=20 * MS, queued_sends=10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lateness_p99_ns": 20 * MS + 1}, "lateness"),
        ({"wake_p99_ns": 20 * MS + 1}, "loop lag"),
        ({"queued_sends": 11}, "not taken by the kernel"),
        ({"merged_events": 201}, "in one read with others"),
    ],
)
def test_each_sign_invalidates_alone_and_only_past_its_bound(change: dict[str, int], says: str) -> None:
    assert verdict(replace(FINE, merged_events=200), Bounds()) == []
    (why,) = verdict(replace(FINE, **change), Bounds())  # type: ignore[arg-type]
    assert says in why
    loose = Bounds(S, S, 1.0, 1.0)
    assert verdict(replace(FINE, **change), loose) == []  # type: ignore[arg-type]


def test_nothing_measured_says_nothing_against_the_run() -> None:
    assert verdict(ReplayTotals(), Bounds()) == []


def one_write(kit: Any) -> Callable[[Any], Any]:
    """The whole reply in one write, as a gateway that batches would."""

    def script(asked: Any) -> Any:
        acts = kit.stream(asked, first_ns=0, gap_ns=0)
        return [(10 * MS, b"".join(data for _, data in acts))]

    return script


def test_tokens_that_share_a_read_are_found_and_told(kit: Any) -> None:
    records, totals = virtual([single(i, arrival=i * 50 * MS) for i in range(20)], one_write(kit), kit)
    assert {(r.outcome, r.read_tokens) for r in records} == {("ok", (4,))}
    assert (totals.token_events, totals.merged_events, totals.valid) == (80, 60, False)
    assert totals.why == [w for w in totals.why if "75% of the token events" in w]
    _, told = virtual([single(0)], one_write(kit), kit, options=ReplayOptions(bounds=Bounds(merged_share=1.0)))
    assert told.valid
    _, apart = virtual([single(0)], lambda a: kit.stream(a, first_ns=MS, gap_ns=MS), kit)
    assert (apart.merged_events, apart.valid) == (0, True)


def test_a_process_that_stands_still_is_found_by_its_lag(kit: Any) -> None:
    """Each row costs the process 60 ms: what was due meanwhile went out late, and the loop woke late for it."""
    work = [single(i, arrival=i * 40 * MS) for i in range(50)]
    script = lambda a: kit.stream(a, first_ns=5 * MS, gap_ns=MS)  # noqa: E731
    records, totals = virtual(work, script, kit, stall_ns=60 * MS)
    assert len(records) == 50
    assert all(r.t_sent_ns is not None and r.t_sent_ns >= r.due_ns for r in records)
    assert not totals.valid
    assert [sign for sign in ("lateness", "loop lag") if any(sign in why for why in totals.why)] == [
        "lateness",
        "loop lag",
    ]
    _, quick = virtual(work, script, kit)
    assert (quick.valid, quick.lateness_p99_ns is not None and quick.lateness_p99_ns < MS) == (True, True)


@contextmanager
def deaf() -> Iterator[int]:
    """A server that takes connections and never reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_request_that_the_kernel_does_not_take_is_found(kit: Any) -> None:
    """10 MB into a socket that nobody reads: its sent stamp says nothing of when it was out."""
    rows: list[dict[str, Any]] = []

    async def main(port: int) -> ReplayTotals:
        loop = asyncio.get_running_loop()
        with Pacer(loop, time.monotonic_ns) as pacer:
            return await replay(
                [single(0, tokens=1_600_000)], Target("127.0.0.1", port), t0_ns=time.monotonic_ns(),
                now_ns=time.monotonic_ns, sleep_until=pacer.sleep_until, connect=loop.create_connection,
                write=rows.append, options=ReplayOptions(timeout_ns=2 * S, bounds=Bounds(9 * S, 9 * S)),
            )  # fmt: skip

    with deaf() as port:
        totals = uvloop.run(main(port))
    assert [row["outcome"] for row in rows] == ["timeout"]
    assert (totals.queued_sends, totals.valid) == (1, False)
    assert totals.why == ["1 of 1 requests were not taken by the kernel at once: their sent stamps are too early."]


# ---------------------------------------------------------------------------------------------- bad servers


@st.composite
def bad_replies(draw: st.DrawFn) -> tuple[str, int]:
    """What a server may do wrong, and a number to do it with."""
    return draw(
        st.sampled_from(["junk", "junk in chunks", "cut", "reset", "429", "503", "stuck", "early", "fine"])
    ), draw(st.integers(0, 400))


def misbehaving(kit: Any, plan: dict[str, tuple[str, int]], junk: bytes) -> Callable[[Any], Any]:
    def script(asked: Any) -> Any:
        kind, number = plan[asked.headers["x-workflow-id"]]
        whole = [(0, data) for _, data in kit.stream(asked, first_ns=0, gap_ns=0)]
        wire = b"".join(data for _, data in whole)
        match kind:
            case "junk":
                return [(MS, junk or b"x"), (MS, None)]
            case "junk in chunks":
                return [(0, kit.head), (MS, kit.chunk(junk or b"x") + b"0\r\n\r\n")]
            case "cut":  # complete HTTP, half a stream
                return [(MS, kit.head + kit.chunk(kit.token()[: 1 + number % 40]) + b"0\r\n\r\n")]
            case "reset":
                return [(MS, wire[: 1 + number % (len(wire) - 1)]), (MS, None)]
            case "429" | "503":
                return kit.plain(int(kind), {"error": {"message": "later"}})
            case "stuck":
                return [(0, wire[: number % len(wire)] or kit.head)]
            case "early":
                return [(0, b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"), *whole]
        return whole

    return script


@settings(deadline=None, max_examples=60)
@given(st.lists(bad_replies(), min_size=1, max_size=12), st.binary(max_size=80))
@example([("junk in chunks", 0)], b"data:[DONE]")  # an end marker is no answer
def test_whatever_a_server_answers_each_request_has_one_row_and_the_others_are_unharmed(
    kit: Any, kinds: list[tuple[str, int]], junk: bytes
) -> None:
    plan = {f"w{i}": kind for i, kind in enumerate(kinds)}
    work = [single(i, arrival=i * 7 * MS) for i in range(len(kinds))]
    records, totals = virtual(work, misbehaving(kit, plan, junk), kit, options=ReplayOptions(timeout_ns=2 * S))
    assert sorted(r.workflow_id for r in records) == sorted(plan)
    want = {
        "fine": {"ok"},
        "early": {"ok"},
        "429": {"rejected"},
        "503": {"error"},
        "stuck": {"timeout"},
        "cut": {"error"},
    }
    for r in records:
        kind = plan[r.workflow_id][0]
        assert r.outcome in want.get(kind, {"error", "upstream_died"}), kind
        assert (r.error is None) == (r.outcome == "ok")
        assert r.t_sent_ns is not None
        assert r.t_sent_ns == r.due_ns, "no other reply delays a sending"
        assert sum(r.read_dt_ns) <= r.t_end_ns - r.t_sent_ns
        if kind in ("fine", "early"):
            assert (sum(r.read_tokens), r.completion_tokens, r.prompt_tokens) == (4, 4, 20)
    assert sum(totals.outcomes.values()) == len(kinds) == totals.requests
    failed = sum(r.outcome not in ("ok", "rejected") for r in records)
    assert (totals.errors, totals.workflows_failed) == (failed, sum(r.outcome != "ok" for r in records))


# ---------------------------------------------------------------------------------------------- the outbox


def test_what_comes_due_together_goes_out_together_in_order(kit: Any) -> None:
    work = [single(i) for i in range(3 * MOST + 1)]
    asked: list[str] = []

    def script(one: Any) -> Any:
        asked.append(one.headers["x-workflow-id"])
        return kit.stream(one, first_ns=MS, gap_ns=MS)

    records, totals = virtual(work, script, kit, options=ReplayOptions(prewarm=3 * MOST + 1))
    assert {r.t_sent_ns for r in records} == {0}
    assert asked == [w.workflow_id for w in work]
    assert totals.connections == 3 * MOST + 1


def test_the_outbox_sends_at_the_end_of_the_turn_or_when_full_and_nothing_that_was_given_up(kit: Any) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = kit.Server(loop.now_ns, loop.sleep_until, lambda _: [])
        listener, port = await server.start(loop)
        pool = Pool("127.0.0.1", port, connect=loop.create_connection, now_ns=loop.now_ns)
        await pool.prewarm(2 * MOST)
        sent: list[int] = []
        box = Outbox(
            pool, loop.now_ns, Tally(None, 0), spawn=lambda work: work.close(), flush=lambda: box.send(),
            sent=lambda exchange, _: sent.append(exchange.due_ns),
        )  # fmt: skip

        def put(number: int) -> Any:
            exchange = SimpleNamespace(outcome=None, due_ns=number)
            box.put(cast(Exchange, exchange), b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            return exchange

        put(0)
        put(1).outcome = "cancelled"
        put(2)
        assert sent == []
        await asyncio.sleep(0)
        assert sent == [0, 2]
        for number in range(3, 3 + MOST):
            put(number)
        assert sent == [0, 2, *range(3, 3 + MOST)], "full: the turn is not waited for"
        put(99)
        await asyncio.sleep(0)
        assert sent[-1] == 99
        pool.close()
        listener.close()

    run_virtual(main, start_ns=0)
