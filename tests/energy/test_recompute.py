"""Victims of preemption: found by the steps that they miss, charged for what is computed again, not for waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy.attribute import attribute
from energy.model import DECODE, PREFILL, shares
from energy.policies import POLICIES
from energy.recompute import restated, victims, width_of, with_recompute
from energy.tables import RequestTable, RunData, Series, StepTable, request_table
from energy.windows import Again, Windows, windows
from energy.work import work_curve
from traces.records import SensorInfo

S = 1_000_000_000
MS = 1_000_000
STEP = 20 * MS


def stream(lost: dict[int, tuple[int, int]], n: int = 6, steps: int = 200) -> tuple[RequestTable, StepTable]:
    """n requests that decode side by side, a token a step; lost[i] = (step in which i is thrown out, step that
    computes it again)."""
    rows: list[dict[str, Any]] = []
    log = np.zeros((steps, 4), np.int64)
    preempted = np.zeros(steps, np.int64)
    for i in range(n):
        begin = i + 1
        reads = []
        for k in range(begin, steps - 5):
            if i in lost and lost[i][0] <= k < lost[i][1]:
                continue
            reads.append(((k + 1) * STEP, 1))
            again = k == begin or (i in lost and k == lost[i][1])
            log[k] += (1, 500, 0, 0) if again else (0, 0, 1, 1)
        if i in lost:
            preempted[lost[i][0]] += 1
        rows.append(
            {
                "id": f"r{i}", "sent_ns": begin * STEP - 1, "first_ns": reads[0][0], "last_ns": reads[-1][0],
                "end_ns": reads[-1][0], "prompt": 500, "cached": 0, "completion": len(reads), "reads": reads,
                "prefill_ns": STEP,
            }
        )  # fmt: skip
    t = (np.arange(steps, dtype=np.int64) + 1) * STEP
    running = log[:, 0] + log[:, 2]
    return request_table(rows), StepTable(t, *log.T.copy(), running, preempted, np.zeros(steps, np.int64))


def found(
    requests: RequestTable, steps: StepTable | None, preempted: int | None, level: str = "L3"
) -> tuple[Windows, RequestTable]:
    work = windows(requests, level)
    curve = work_curve(requests, work, steps, -1.0, 6.0)
    return with_recompute(requests, work, curve, steps, preempted), requests


@given(st.dictionaries(st.integers(1, 5), st.tuples(st.integers(12, 120), st.integers(1, 60)), max_size=3))
@settings(deadline=None, max_examples=40)
def test_victims_are_those_that_missed_the_step_that_preempted(lost: dict[int, tuple[int, int]]) -> None:
    lost = {i: (a, a + wait) for i, (a, wait) in lost.items()}
    requests, steps = stream(lost)
    work, _ = found(requests, steps, sum(1 for _ in lost))
    assert sorted({int(w) for w in work.again.window}) == sorted(lost)
    said = victims(requests, [work])
    assert said["requests"] == len(lost)
    for row in said["listed"]:
        i = int(row["request_id"][1:])
        assert row["t_ns"] == pytest.approx(lost[i][0] * STEP, abs=MS)
        assert row["recomputed_tokens"] == pytest.approx(500, rel=0.05)


def test_an_engine_that_tells_with_the_next_token_is_understood_too() -> None:
    """As vLLM does: the event travels with the victim's next output."""
    requests, steps = stream({2: (40, 80), 4: (60, 62)})
    late = np.zeros(len(steps), np.int64)
    late[[80, 62]] = 1
    work, _ = found(requests, replace(steps, preempted=late), 2)
    assert sorted(work.again.window.tolist()) == [2, 4]
    assert work.again.tokens.sum() == pytest.approx(1000, rel=0.05)


def test_without_the_stream_only_a_long_stall_is_one_and_a_burst_is_the_network() -> None:
    requests, _ = stream({2: (40, 80), 4: (60, 62)})
    work, _ = found(requests, None, None, "L1")
    assert list(work.again.window) == [2]
    late = requests.read_ns.copy()
    a, b = requests.read_start[3], requests.read_start[4]
    held = (late >= 50 * STEP) & (late < 90 * STEP)
    held[:a] = held[b:] = False
    late[held] = 90 * STEP
    work, _ = found(replace(requests, read_ns=late), None, None, "L1")
    assert list(work.again.window) == [2], "reads that come all at once were late, not computed again"


def test_decodes_that_all_stand_still_while_prompts_go_first_miss_nothing() -> None:
    """An engine that computes prompts before it decodes anything: all wait for seconds, and one of them, elsewhere, was
    really thrown out."""
    lost = dict.fromkeys(range(6), (100, 130))
    requests, _ = stream({**lost, 2: (40, 80)})
    prompts = [
        {
            "id": f"p{k}", "sent_ns": 98 * STEP, "first_ns": k * STEP + STEP, "last_ns": k * STEP + STEP,
            "end_ns": k * STEP + STEP, "prompt": 4000, "cached": 0, "completion": 1, "reads": [(k * STEP + STEP, 1)],
            "prefill_ns": STEP,
        }
        for k in range(101, 130)
    ]  # fmt: skip
    rows = []
    for i in range(len(requests)):
        reads = [(int(t), 1) for t in requests.read_ns[requests.read_start[i] : requests.read_start[i + 1]]]
        reads = [r for r in reads if r[0] <= 100 * STEP] if i == 2 else reads
        rows.append(
            {
                "id": requests.ids[i], "sent_ns": int(requests.sent_ns[i]), "first_ns": reads[0][0], "prompt": 500,
                "last_ns": reads[-1][0], "end_ns": reads[-1][0], "cached": 0, "completion": len(reads),
                "prefill_ns": STEP, "reads": reads,
            }
        )  # fmt: skip
    both = request_table(rows + prompts)
    for level in ("L1", "L2"):
        work = windows(both, level)
        curve = work_curve(both, work, None, -1.0, 6.0, alone=True)
        assert with_recompute(both, work, curve, None, None).again.window.tolist() == [2]


@given(st.integers(0, 4))
@settings(deadline=None, max_examples=5)
def test_no_more_victims_than_the_engine_counts_and_those_that_missed_most(counted: int) -> None:
    lost = {1: (30, 50), 2: (40, 80), 4: (60, 90)}
    requests, _ = stream(lost)
    work, _ = found(requests, None, counted, level="L2")
    longest = sorted(lost, key=lambda i: lost[i][0] - lost[i][1])
    assert sorted(work.again.window.tolist()) == sorted(longest[:counted])


def test_an_engine_that_preempted_nobody_has_no_victims() -> None:
    requests, steps = stream({2: (40, 80)})
    assert not len(found(requests, None, 0, "L1")[0].again)
    assert not len(found(requests, replace(steps, preempted=np.zeros(len(steps), np.int64)), 0)[0].again)


def test_vllms_generation_tokens_of_a_sequence_taken_back_are_prompt_tokens() -> None:
    _, steps = stream({2: (40, 80)})
    as_vllm = replace(
        steps,
        ctx_requests=np.where(np.arange(200) == 80, 0, steps.ctx_requests),
        ctx_tokens=np.where(np.arange(200) == 80, 0, steps.ctx_tokens),
        generation_requests=steps.generation_requests + (np.arange(200) == 80),
        generation_tokens=steps.generation_tokens + 500 * (np.arange(200) == 80),
    )
    back = restated(as_vllm, 1)
    for name in ("ctx_requests", "ctx_tokens", "generation_requests", "generation_tokens"):
        assert np.array_equal(getattr(back, name), getattr(steps, name)), name
    drafts = replace(steps, generation_tokens=steps.generation_requests * 5)
    assert restated(drafts, 1) is drafts, "drafts in every step: nobody said so"
    assert restated(drafts, 5) is drafts
    row = {"id": "a", "sent_ns": 0, "first_ns": S, "last_ns": 2 * S, "end_ns": 2 * S, "prompt": 9, "completion": 11}
    assert width_of(windows(request_table([row | {"drafted": 32, "accepted": 2}]), "L1")) == 5


@st.composite
def preempting(draw: Any) -> tuple[RequestTable, Windows, np.ndarray]:
    """Any windows, any work done again in them, any borders that cover them."""
    rows = []
    for i in range(draw(st.integers(1, 6))):
        sent = draw(st.integers(0, 5 * S))
        first = sent + draw(st.integers(1, S))
        last = first + draw(st.integers(1, 4 * S))
        rows.append(
            {"id": str(i), "sent_ns": sent, "first_ns": first, "last_ns": last, "end_ns": last, "prompt": 50,
             "completion": draw(st.integers(1, 30))}
        )  # fmt: skip
    requests = request_table(rows)
    work = windows(requests, "L1")
    cuts = [sorted(draw(st.floats(0, 1)) for _ in range(3)) for _ in range(draw(st.integers(0, 4)))]
    w = np.array([draw(st.integers(0, len(work) - 1)) for _ in cuts], np.int64)
    span = (work.last - work.first)[w]
    at = [work.first[w] + np.array([c[k] for c in cuts]) * span for k in range(3)]
    tokens = np.array([float(draw(st.integers(1, 900))) for _ in cuts])
    again = Again(w, at[0], at[1], np.maximum(at[2], at[1] + 1e-6), tokens, tokens / 2)
    return requests, replace(work, again=again), np.linspace(-1.0, 12.0, draw(st.integers(2, 40)))


@given(preempting())
@settings(deadline=None, max_examples=60)
def test_rows_hold_all_work_done_twice_and_no_wait(case: tuple[RequestTable, Windows, np.ndarray]) -> None:
    requests, work, t = case
    rows = shares(requests, work, work_curve(requests, work, None, -2.0, 13.0), t)
    assert rows.work[:, 1].sum() == pytest.approx(work.prefill.sum() + work.again.tokens.sum())
    assert rows.work[:, 3].sum() == pytest.approx(work.decode.sum())
    assert np.all(rows.work >= 0)
    assert np.all(rows.seconds >= 0)
    prefilled = rows.seconds[rows.phase == PREFILL].sum()
    assert prefilled == pytest.approx((work.first - work.start).sum() + (work.again.end - work.again.start).sum())
    whole = (work.last - work.first).sum()
    assert rows.seconds[rows.phase == DECODE].sum() <= whole + 1e-6
    if len(np.unique(work.again.window)) == len(work.again):
        away = (np.minimum(work.again.end, work.last[work.again.window]) - work.again.stall).sum()
        assert rows.seconds[rows.phase == DECODE].sum() == pytest.approx(whole - away, abs=1e-4)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_books_close_and_the_victim_pays_more_than_its_like(policy: str) -> None:
    requests, steps = stream({3: (40, 90)})
    t = np.arange(0, 8 * S, S // 10)
    busy = (t > STEP) & (t < 195 * STEP)
    uj = np.cumsum(np.where(busy, 40_000_000, 10_000_000))
    info = SensorInfo("g.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000)
    data = RunData(requests, steps, {"g": Series(info, t, t + 1000, uj)}, [], preempted=1)
    result = attribute(data, policy=policy)
    assert result.totals["closure_uj"] == 0
    assert result.totals["preempted"]["requests"] == 1
    assert len(result.devices[0].windows.again) == 1
    if policy in ("fitted", "shapley"):
        prefill = result.figures[0].active[:, PREFILL]
        assert prefill[3] > 1.4 * np.median(np.delete(prefill, 3)), "its prompt was computed twice"
