"""Against the embedded engine in virtual time: exact lengths, every dialect, prefix sharing, rejection, calibration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import pytest

from engines.embedded.server import EngineOptions, start
from joulegraph.virtual import VirtualLoop, run_virtual
from loadgen.calibrate import Calibration, calibrate, fitted
from loadgen.replay import ReplayOptions, replay
from loadgen.summary import summarise
from loadgen.target import Target
from loadgen.totals import ReplayTotals
from traces.errors import UserError
from traces.records import DispatchRecord, from_row
from traces.workflow import Dep, Manifest, Node, Workflow

MS = 1_000_000
MODEL = "h100-llama8b"
T = TypeVar("T")


def with_engine(main: Callable[[VirtualLoop, int], Awaitable[T]]) -> T:
    """Run `main(loop, port)` beside an embedded engine."""

    async def session(loop: VirtualLoop) -> T:
        engine = await start(
            EngineOptions(), host="127.0.0.1", port=0, now_ns=loop.now_ns, sleep_until=loop.sleep_until,
            serve=loop.create_server, truth=None, steps=None, status=None,
        )  # fmt: skip
        try:
            return await main(loop, engine.port)
        finally:
            await engine.close()

    return run_virtual(session)


def played(
    workflows: Iterable[Workflow], target: Callable[[int], Target], **options: Any
) -> tuple[list[DispatchRecord], ReplayTotals]:
    rows: list[dict[str, Any]] = []

    async def main(loop: VirtualLoop, port: int) -> ReplayTotals:
        return await replay(
            workflows, target(port), t0_ns=loop.now_ns(), now_ns=loop.now_ns, sleep_until=loop.sleep_until,
            connect=loop.create_connection, write=rows.append,
            options=ReplayOptions(manifest=Manifest(block_size=16), **options),
        )  # fmt: skip

    totals = with_engine(main)
    return [from_row(DispatchRecord, r) for r in rows], totals


def work(count: int, **more: Any) -> list[Workflow]:
    """Chains of two with a shared prefix, lengths all different."""
    out = []
    for i in range(count):
        wf, shared = f"w{i}", tuple(range(8))
        first = Node(wf, "a", i * 50 * MS, 140 + 7 * i, 3 + i, hash_ids=(*shared, 100 + i), **more)
        second = Node(wf, "b", 0, 150 + 9 * i, 5, hash_ids=(*shared, 100 + i), deps=(Dep("a"),), delay_ns=MS, **more)
        out.append(Workflow(wf, (first, second)))
    return out


def test_id_prompts_are_exact_and_share_their_prefix() -> None:
    records, totals = played(work(12), lambda port: Target("127.0.0.1", port, MODEL))
    assert totals.outcomes == {"ok": 24} and (totals.usage_exact, totals.usage_off) == (24, 0)
    usage = summarise(records)["all"]["usage"]
    assert usage["prompt"]["exact_share"] == usage["output"]["exact_share"] == 1.0
    assert all(sum(r.read_tokens) == r.completion_tokens for r in records)
    assert all(r.engine_prefill_ns is not None for r in records)
    hits = {(r.workflow_id, r.request_id): r.cached_tokens for r in records}
    assert hits["w0", "a"] in (0, None)
    assert all((hits[f"w{i}", "a"] or 0) >= 128 for i in range(1, 12))
    assert totals.merged_events == 0 and totals.valid


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", ["completions", "chat", "responses", "messages"])
def test_every_dialect(api: str, stream: bool) -> None:
    records, totals = played(
        work(3, stream=stream),
        lambda port: Target("127.0.0.1", port, MODEL, api=api, prompts="words"),  # type: ignore[arg-type]
    )
    assert totals.outcomes == {"ok": 6}
    for record in records:
        assert record.api == api and record.prompt_tokens is not None and record.completion_tokens is not None
        assert 0 < record.completion_tokens <= (record.planned_output_tokens or 0)
        assert (record.t_first_token_ns is not None) == stream
        if stream:
            assert sum(record.read_tokens) == record.completion_tokens


@pytest.mark.parametrize("api", ["completions", "chat", "responses", "messages"])
def test_calibration_makes_word_prompts_exact(api: str) -> None:
    def target(port: int) -> Target:
        return Target("127.0.0.1", port, MODEL, api=api, prompts="words")  # type: ignore[arg-type]

    async def ask(loop: VirtualLoop, port: int) -> Calibration:
        return await calibrate(target(port), api, now_ns=loop.now_ns, connect=loop.create_connection)

    found = with_engine(ask)
    assert found.exact and "exact" in found.sentence, found
    assert found.how == ("tokenize" if api in ("completions", "chat") else "usage")
    records, _ = played(work(4), lambda port: found.applied(target(port)))
    assert [r.prompt_tokens for r in records] == [r.planned_input_tokens for r in records]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_a_conversation_that_goes_on_finds_question_and_answer_in_the_cache(api: str) -> None:
    """Four turns, each from the live answer before: lengths as planned, and all of the earlier turn is cached."""

    def target(port: int) -> Target:
        return Target("127.0.0.1", port, MODEL, api=api, prompts="words")  # type: ignore[arg-type]

    async def ask(loop: VirtualLoop, port: int) -> Calibration:
        return await calibrate(target(port), api, now_ns=loop.now_ns, connect=loop.create_connection)

    found = with_engine(ask)
    turns = [
        Node("w", f"t{k}", 0, 50 + 90 * k, 21, deps=(Dep(f"t{k - 1}", "conversation", extends="answer"),) if k else ())
        for k in range(4)
    ]
    records, _ = played([Workflow("w", tuple(turns))], lambda port: found.applied(target(port)))
    assert [r.prompt_tokens for r in records] == [50, 140, 230, 320]
    assert [r.cached_tokens or 0 for r in records] == [0, *((50 + 90 * k + 21) // 16 * 16 for k in range(3))]


def test_calibration_says_when_words_are_no_tokens() -> None:
    assert not fitted([70, 198, 340], "usage").exact
    assert not fitted([96, 288, 500], "usage").exact
    assert fitted([70, 198, 339], "usage") == Calibration(6, 1.0, True, "usage")
    with pytest.raises(UserError):
        fitted([70, 198], "usage")


def test_calibration_without_a_server() -> None:
    async def ask(loop: VirtualLoop) -> Calibration:
        return await calibrate(Target("127.0.0.1", 9), "chat", now_ns=loop.now_ns, connect=loop.create_connection)

    with pytest.raises(UserError, match="calibration"):
        run_virtual(ask)


def test_too_long_is_rejected_and_the_rest_goes_on() -> None:
    big = Workflow("big", (Node("big", "a", 0, 140_000, 5), Node("big", "b", 0, 10, 5, deps=(Dep("a"),))))
    records, totals = played([big, *work(2)], lambda port: Target("127.0.0.1", port, MODEL))
    got = {(r.workflow_id, r.request_id): r for r in records}
    assert got["big", "a"].outcome == "rejected" and got["big", "a"].status == 400
    assert got["big", "b"].outcome == "skipped"
    assert (totals.rejected, totals.errors, totals.workflows_done) == (1, 0, 2)


def test_two_virtual_runs_are_the_same_to_the_nanosecond() -> None:
    one, _ = played(work(8), lambda port: Target("127.0.0.1", port, MODEL))
    two, _ = played(work(8), lambda port: Target("127.0.0.1", port, MODEL))
    strip = [[(r.request_id, r.due_ns, r.t_sent_ns, r.t_end_ns, r.read_dt_ns) for r in x] for x in (one, two)]
    assert strip[0] == strip[1]


def test_live_chat_threads_real_answers() -> None:
    records, totals = played(work(3), lambda port: Target("127.0.0.1", port, MODEL, api="chat"), outputs="live")
    assert totals.outcomes == {"ok": 6}
    second = [r for r in records if r.request_id == "b"]
    assert all(abs((r.prompt_tokens or 0) - (r.planned_input_tokens or 0)) <= 24 for r in second)
