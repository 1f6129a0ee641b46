"""Prompts that have the engine to themselves: found by reads alone, and what follows for shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from energy.alone import CALLED, OPEN, after_reads, coincidence, laid_out, likelier_alone
from energy.model import DECODE, PREFILL, shares
from energy.tables import RequestTable, request_table
from energy.windows import pace_of, windows
from energy.work import work_curve

MS = 1_000_000


def _served(alone: bool, jitter_ms: float = 0.2, n: int = 60) -> RequestTable:
    """Requests one after another, each prompt 40 ms of work, a decode step 10 ms; up to six decode at a time. alone:
    a prompt is a step of its own, else it is computed in the step in which the others decode."""
    rng = np.random.default_rng(7)
    now, rows, running = 0.0, list[dict[str, Any]](), list[dict[str, Any]]()
    while len(rows) < n or running:
        new = len(rows) < n and len(running) < 6 and rng.random() < 0.1
        began = now
        now += 40 if new and alone else 50 if new else 10
        if not (new and alone):
            for r in running:
                r["tokens"].append(now)
        if new:
            rows.append({"sent": began, "tokens": [now], "want": int(rng.integers(20, 60))})
            running.append(rows[-1])
        running = [r for r in running if len(r["tokens"]) < r["want"]]
    out = list[dict[str, Any]]()
    for k, r in enumerate(rows):
        late = rng.exponential(jitter_ms, len(r["tokens"]))
        at = [round(x * MS) for x in np.maximum.accumulate(np.array(r["tokens"]) + late)]
        out.append(
            {
                "id": f"r{k}", "sent_ns": round((r["sent"] - 0.1) * MS), "first_ns": at[0], "last_ns": at[-1],
                "end_ns": at[-1] + 1, "prompt": 400, "cached": 0, "completion": len(at), "reads": [(x, 1) for x in at],
            }
        )  # fmt: skip
    return request_table(out)


def _called_alone(table: RequestTable, level: str) -> bool:
    work = windows(table, level)
    return laid_out(table, work, level, -1.0, float(work.last.max()) + 1.0)[2]


@pytest.mark.parametrize("jitter_ms", [0.2, 3.0])
@pytest.mark.parametrize("alone", [True, False])
def test_reads_say_whether_prompts_are_alone(alone: bool, jitter_ms: float) -> None:
    table = _served(alone, jitter_ms)
    assert _called_alone(table, "L1") is alone


@pytest.mark.parametrize("level", ["L1", "L2"])
@pytest.mark.parametrize("alone", [True, False])
def test_stamps_as_late_as_a_step_leave_it_to_reads_and_fit_together(alone: bool, level: str) -> None:
    table = _served(alone, jitter_ms=8.0, n=200)
    found = coincidence(table, windows(table, level))
    assert found is not None and found[0] > CALLED, "reads alone do not settle it"
    assert _called_alone(table, level) is alone


@pytest.mark.parametrize(
    ("share", "expected", "alone", "beside", "is_alone"),
    [
        (0.30, 60.0, (0.010, 50), (0.010, 50), True),  # fits equal: reads decide
        (0.48, 60.0, (0.010, 50), (0.010, 50), False),
        (0.30, 60.0, (0.012, 50), (0.010, 50), False),  # a fit that is clearly better outweighs them
        (0.48, 60.0, (0.010, 50), (0.012, 50), True),
        (0.30, 60.0, (0.0, 50), (0.0, 50), True),
    ],
)
def test_reads_and_fits_are_weighed(
    share: float, expected: float, alone: tuple[float, int], beside: tuple[float, int], is_alone: bool
) -> None:
    assert CALLED < share < OPEN
    assert likelier_alone(share, expected, alone, beside) is is_alone


def test_too_few_reads_say_nothing() -> None:
    table = _served(True, n=4)
    assert coincidence(table, windows(table, "L1")) is None
    assert _called_alone(table, "L1") is False


def test_a_decode_pays_one_step_per_token_and_a_prompt_its_own() -> None:
    table = _served(True)
    work = windows(table, "L1")
    work = after_reads(table, work, pace_of(table, work))
    assert np.median(work.first - work.start) == pytest.approx(0.040, abs=0.004)
    t = np.array([-1.0, float(work.last.max()) + 1.0])
    curve = work_curve(table, work, None, t[0], t[1], alone=True)
    rows = shares(table, work, curve, t)
    prompts = rows.work[rows.phase == PREFILL, 0]
    assert np.median(prompts) == pytest.approx(1.0, abs=0.05)
    beside = work_curve(table, work, None, t[0], t[1])
    assert np.median(shares(table, work, beside, t).work[rows.phase == PREFILL, 0]) < 0.9
    # every decode step once: as many steps as instants at which someone got a token after the first
    decodes = rows.work[rows.phase == DECODE, 0].sum()
    steps = len(np.unique(np.round((table.read_ns - table.read_ns.min()) / (10 * MS))))
    assert decodes == pytest.approx(steps, rel=0.1)


def test_decodes_stand_still_while_prompts_are_computed() -> None:
    table = _served(True)
    work = windows(table, "L1")
    work = after_reads(table, work, pace_of(table, work))
    curve = work_curve(table, work, None, -1.0, float(work.last.max()) + 1.0, alone=True)
    assert curve.clock is not None
    decode = np.diff(curve.features[:, 3])
    middle = (curve.t[1:] + curve.t[:-1]) / 2
    inside = np.zeros(len(middle), bool)
    for a, b in zip(work.start, work.first, strict=True):
        inside |= (middle > a + 0.005) & (middle < b - 0.005)
    assert decode[inside].sum() < 0.02 * decode.sum()


def test_a_request_that_was_never_read_begins_like_the_others() -> None:
    """It failed before its first token; its prompt may have been computed all the same."""
    table = _served(True)
    none = {"id": "none", "sent_ns": 5 * MS, "end_ns": 900 * MS, "prompt": 1000, "cached": 0, "reads": []}
    rows = [none, *_rows(table)]
    both = request_table(rows)
    work = windows(both, "L1")
    found = after_reads(both, work, pace_of(both, work))
    assert len(found) == len(table) + 1
    assert np.all(found.start < found.first) and np.all(found.start >= work.start)


def _rows(table: RequestTable) -> list[dict[str, Any]]:
    columns = {"sent_ns": table.sent_ns, "first_ns": table.first_ns, "last_ns": table.last_ns, "end_ns": table.end_ns}
    columns |= {"prompt": table.prompt, "cached": table.cached, "completion": table.completion}
    reads = [table.read_ns[a:b].tolist() for a, b in zip(table.read_start, table.read_start[1:], strict=False)]
    return [
        {"id": table.ids[k], **{name: int(c[k]) for name, c in columns.items()}, "reads": [(t, 1) for t in reads[k]]}
        for k in range(len(table))
    ]
