"""The engine core as a whole: exact counts, block accounting, fairness, closure of the truth, determinism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.embedded import drive
from engines.embedded.core import EngineCore
from engines.embedded.drive import DriveResult
from engines.embedded.profiles import load_profile
from engines.embedded.types import EngineRequest, Limits
from traces.errors import UserError

PROFILE = load_profile("h100-llama8b")
LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=256, kv_blocks=64, max_model_len=1000)
MS = 1_000_000


@st.composite
def loads(draw: st.DrawFn) -> list[tuple[int, EngineRequest]]:
    """Requests with shared prefixes, bursts and sizes that force chunking and preemption."""
    n = draw(st.integers(1, 14))
    t, out = 0, []
    for i in range(n):
        t += draw(st.sampled_from([0, 0, 3 * MS, 40 * MS, 2000 * MS]))
        shared = draw(st.integers(0, 20)) * 16
        own = draw(st.integers(1, 300))
        prompt = np.concatenate((np.full(shared, 7), np.arange(own) + 1000 * (i + 1)))
        out.append(
            (
                t,
                EngineRequest(
                    f"r{i}",
                    prompt,
                    max_tokens=draw(st.integers(1, 120)),
                    min_tokens=0,
                    ignore_eos=draw(st.booleans()),
                    cache_salt=draw(st.sampled_from([None, "a"])),
                ),
            )
        )
    return out


def all_free(core: EngineCore) -> None:
    core.kv.check()
    assert core.kv.free_blocks == core.kv.total
    assert core.running == core.waiting == 0


def closes(result: DriveResult) -> None:
    for total in result.totals:
        records = [r for s in result.served.values() for r in s.truth if r.component == total.component]
        assert sum(r.active_uj for r in records) == total.active_uj
        assert total.active_uj + total.idle_uj == total.total_uj
        assert total.idle_uj >= -1
        assert all(r.prefill_uj + r.decode_uj == r.active_uj for r in records)
        assert all(0 <= r.own_uj <= r.active_uj for r in records)


@settings(max_examples=80, deadline=None)
@given(loads(), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 13)), max_size=4), st.sampled_from([0, 0, 1, 4]))
def test_every_request_ends_and_everything_adds_up(
    load: list[tuple[int, EngineRequest]], leavers: list[tuple[int, int]], drafts: int
) -> None:
    core = EngineCore(PROFILE, replace(LIMITS, num_speculative_tokens=drafts, acceptance=0.7))
    arrival = {r.request_id: t for t, r in load}
    aborts = [(arrival[f"r{i}"] + dt * MS, f"r{i}") for dt, i in leavers if f"r{i}" in arrival]
    result = drive.run(core, load, aborts=aborts)
    all_free(core)
    closes(result)
    assert set(result.served) | set(result.refused) == set(arrival)
    for t, request in load:
        if request.request_id in result.refused:
            continue
        served = result.served[request.request_id]
        n = served.stats.output_tokens
        assert len(served.token_ns) == n
        assert list(served.token_ns) == sorted(served.token_ns)
        if served.finish_reason == "length":
            assert n == request.max_tokens
        elif served.finish_reason == "stop":
            assert 1 <= n <= request.max_tokens and not request.ignore_eos
        if n:
            stats = served.stats
            assert t == stats.t_arrival_ns
            assert stats.t_scheduled_ns is not None and stats.t_scheduled_ns >= t
            assert stats.t_first_token_ns == served.token_ns[0]
            assert stats.t_last_token_ns == served.token_ns[-1]
        if drafts:
            stats = served.stats
            assert stats.draft_tokens is not None and stats.accepted_tokens is not None and stats.spec_steps is not None
            assert stats.draft_tokens == drafts * stats.spec_steps
            assert 0 <= stats.accepted_tokens <= stats.draft_tokens
            if n:
                prefills = n - stats.spec_steps - stats.accepted_tokens
                assert 1 <= prefills <= 1 + stats.preemptions, "each prefill gives one token"


@settings(max_examples=25, deadline=None)
@given(loads())
def test_the_same_input_gives_the_same_run(load: list[tuple[int, EngineRequest]]) -> None:
    runs = [drive.run(EngineCore(PROFILE, LIMITS), load) for _ in range(2)]
    a, b = runs
    assert a.steps == b.steps
    assert a.totals == b.totals
    assert [s.truth for s in a.served.values()] == [s.truth for s in b.served.values()]
    assert all((x.token_ns == y.token_ns).all() for x, y in zip(a.served.values(), b.served.values()))


@settings(max_examples=25, deadline=None)
@given(loads(), st.sampled_from([0, 3]))
def test_token_events_agree_with_the_compact_form_and_steps_with_their_records(
    load: list[tuple[int, EngineRequest]], drafts: int
) -> None:
    """complete() (one object per token) gives what the driver derives from step indices."""
    limits = replace(LIMITS, num_speculative_tokens=drafts, acceptance=0.6)
    reference = drive.run(EngineCore(PROFILE, limits), load)
    core = EngineCore(PROFILE, limits)
    todo = list(reversed(load))
    now = load[0][0]
    got: dict[str, list[int]] = {}
    while True:
        while todo and todo[-1][0] <= now:
            t, request = todo.pop()
            if request.request_id not in reference.refused:
                core.add(request, t)
        step = core.schedule(now)
        if step is None:
            if not todo:
                break
            now = todo[-1][0]
            continue
        work = list(step.work)
        assert sum(w.prefill_tokens + w.decode_tokens for w in work) <= LIMITS.max_num_batched_tokens
        assert len(work) <= LIMITS.max_num_seqs
        assert len({w.request_id for w in work}) == len(work)
        assert all(w.context + w.prefill_tokens + w.decode_tokens <= LIMITS.max_model_len for w in work)
        now += step.duration_ns
        outputs = core.complete(step, now - step.duration_ns, now)
        record = core.step_record(now)
        assert record.num_generation_tokens == sum(w.decode_tokens for w in work)
        assert record.num_ctx_tokens == sum(w.prefill_tokens for w in work)
        for out in outputs:
            assert out.token is not None
            got.setdefault(out.request_id, []).append(now)
            if out.finish_reason == "stop":
                assert out.token == PROFILE.eos_token_id
    assert got == {k: list(s.token_ns) for k, s in reference.served.items()}


def burst(n: int, prompt: int, out: int, **kw: object) -> list[tuple[int, EngineRequest]]:
    return [
        (0, EngineRequest(f"r{i}", np.arange(prompt) + 10_000 * i, out, ignore_eos=True, **kw))  # type: ignore[arg-type]
        for i in range(n)
    ]


def test_admission_is_first_come_first_served() -> None:
    result = drive.run(EngineCore(PROFILE, LIMITS), burst(20, 100, 30))
    scheduled = [result.served[f"r{i}"].stats.t_scheduled_ns or 0 for i in range(20)]
    first = [result.served[f"r{i}"].stats.t_first_token_ns or 0 for i in range(20)]
    assert scheduled == sorted(scheduled)
    assert first == sorted(first)


def test_prefill_is_chunked_and_decodes_go_on_beside_it() -> None:
    core = EngineCore(PROFILE, replace(LIMITS, kv_blocks=None))
    load = [*burst(1, 16, 60), (100 * MS, EngineRequest("long", np.arange(900) + 5, 1, ignore_eos=True))]
    result = drive.run(core, load)
    chunked = [s for s in result.steps if s.num_ctx_tokens and s.num_generation_tokens]
    assert [s.num_ctx_tokens for s in chunked] == [255, 255, 255, 135]


def test_out_of_blocks_preempts_the_last_and_recomputes_it() -> None:
    core = EngineCore(PROFILE, replace(LIMITS, enable_prefix_caching=False))
    result = drive.run(core, burst(8, 100, 120))
    assert core.preemptions > 0
    assert result.served["r0"].stats.preemptions == 0
    victims = [i for i in range(8) if result.served[f"r{i}"].stats.preemptions]
    assert victims and min(victims) > 0
    assert all(len(result.served[f"r{i}"].token_ns) == 120 for i in range(8))
    assert sum(s.num_ctx_tokens for s in result.steps) > 8 * 100
    all_free(core)
    closes(result)


def test_prefix_reuse_computes_only_what_is_new_and_always_the_last_token() -> None:
    prompt = np.arange(320)
    load = [(i * 10**9, EngineRequest(f"r{i}", prompt, 4, ignore_eos=True)) for i in range(2)]
    load.append((2 * 10**9, EngineRequest("salted", prompt, 4, ignore_eos=True, cache_salt="x")))
    result = drive.run(EngineCore(PROFILE, LIMITS), load)
    assert [result.served[k].stats.cached_tokens for k in ("r0", "r1", "salted")] == [0, 304, 0]
    gpu = [result.served[k].truth[0].active_uj for k in ("r0", "r1", "salted")]
    assert gpu[1] < gpu[0]
    assert gpu[2] == pytest.approx(gpu[0], rel=0.01)


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    core = EngineCore(PROFILE, LIMITS)
    prompt = np.arange(64)
    core.add(EngineRequest("turn1", prompt, 64, ignore_eos=True), 0)
    now, answer = 0, []
    while (step := core.schedule(now)) is not None:
        now += step.duration_ns
        answer += [o.token for o in core.complete(step, now - step.duration_ns, now)]
    core.add(EngineRequest("turn2", np.concatenate((prompt, answer, np.arange(20))), 1, ignore_eos=True), now)
    step = core.schedule(now)
    assert step is not None
    # The last token of turn 1 was never computed: 127 tokens are cached, 7 full blocks.
    assert core.stats("turn2").cached_tokens == 112


def test_waiting_requests_that_leave_draw_nothing() -> None:
    """Dummy: a request that was never scheduled has zero truth and changes nobody's."""
    load = burst(8, 100, 100)
    alone = drive.run(EngineCore(PROFILE, LIMITS), load)
    core = EngineCore(PROFILE, LIMITS)
    extra = (1, EngineRequest("dummy", np.arange(100) + 999_999, 50, ignore_eos=True))
    result = drive.run(core, [*load, extra], aborts=[(20 * MS, "dummy")])
    dummy = result.served.pop("dummy")
    assert all(r.active_uj == r.own_uj == 0 for r in dummy.truth)
    assert {k: s.truth for k, s in result.served.items()} == {k: s.truth for k, s in alone.served.items()}


def test_what_can_never_fit_is_refused_at_once() -> None:
    core = EngineCore(PROFILE, replace(LIMITS, kv_blocks=10))
    with pytest.raises(UserError, match=r"prompt \(150 tokens\) plus max_tokens \(20\)"):
        core.add(EngineRequest("big", np.arange(150), 20), 0)
    with pytest.raises(UserError, match="empty"):
        core.add(EngineRequest("empty", [], 20), 0)
    assert core.schedule(0) is None


def test_limits_that_starve_decodes_are_refused() -> None:
    with pytest.raises(UserError, match="max_num_batched_tokens"):
        EngineCore(PROFILE, replace(LIMITS, max_num_batched_tokens=4))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(1, 200), st.integers(0, 10**6))
def test_eos_honours_min_and_max_tokens(low: int, more: int, seed: int) -> None:
    core = EngineCore(PROFILE, replace(LIMITS, seed=seed))
    high = low + more
    result = drive.run(core, [(0, EngineRequest("a", [1, 2, 3], high, min_tokens=low))])
    served = result.served["a"]
    assert low < served.stats.output_tokens <= high or served.stats.output_tokens == high
    assert (served.finish_reason == "stop") or served.stats.output_tokens == high


def test_a_request_seed_fixes_its_tokens_across_engines() -> None:
    def tokens(engine_seed: int, request_id: str, seed: int | None) -> list[int | None]:
        core = EngineCore(PROFILE, replace(LIMITS, seed=engine_seed))
        core.add(EngineRequest(request_id, [1], 20, ignore_eos=True, seed=seed), 0)
        out: list[int | None] = []
        while (step := core.schedule(0)) is not None:
            out += [o.token for o in core.complete(step, 0, step.duration_ns)]
        return out

    assert tokens(0, "a", 5) == tokens(1, "b", 5)
    assert tokens(0, "a", None) != tokens(0, "b", None)
    assert tokens(0, "a", None) != tokens(1, "a", None)


def test_real_instants_settle_the_static_part() -> None:
    """A step that really took twice as long costs its static power twice, not its tokens."""

    def run(stretch: float) -> tuple[int, int]:
        core = EngineCore(PROFILE, LIMITS)
        core.add(EngineRequest("a", np.arange(200), 10, ignore_eos=True), 0)
        now = 0
        while (step := core.schedule(now)) is not None:
            end = now + round(step.duration_ns * stretch)
            core.complete(step, now, end)
            now = end
        gpu = core.truth("a")[0]
        return gpu.own_uj, gpu.active_uj

    (own, active), (own2, active2) = run(1.0), run(2.0)
    assert own == own2
    assert active < active2 < 2 * active


def test_tensor_parallel_is_faster_and_draws_more() -> None:
    one = drive.run(EngineCore(PROFILE, LIMITS), burst(4, 200, 50))
    two = drive.run(EngineCore(PROFILE, replace(LIMITS, tensor_parallel_size=2)), burst(4, 200, 50))
    assert two.t1_ns < one.t1_ns
    power = [r.totals[0].total_uj / (r.t1_ns - r.t0_ns) for r in (one, two)]
    assert power[1] > 1.5 * power[0]
