"""Starts of prompts computed side by side: found where later ones overtake, left alone where nobody does."""

from __future__ import annotations

from typing import Any

import numpy as np

from energy.overtaken import begun, overtaken
from energy.tables import request_table
from energy.windows import Windows, windows
from energy.work import WorkCurve, work_curve

S = 1_000_000_000
STEP = 0.02
CHUNK = 500


def seen(beside: bool) -> tuple[Windows, WorkCurve, np.ndarray[Any, Any]]:
    """A decode of 400 tokens, one a step; a prompt of 10,000 tokens every 40 steps and a short one, 5 steps later,
    that overtakes it (beside) or waits for it. Also the true starts of the long ones."""
    rows = [_row("d", 0.0, STEP, 400, 100)]
    starts = []
    for k in range(8):
        sent = 0.5 + 0.8 * k
        took = 10_000 / CHUNK * STEP
        rows.append(_row(f"long{k}", sent, sent + took, 1, 10_000))
        short = sent + 5 * STEP
        rows.append(_row(f"short{k}", short, short + STEP if beside else sent + took + STEP, 1, 100))
        starts.append(sent)
    requests = request_table(rows)
    work = windows(requests, "L1")
    return work, work_curve(requests, work, None, -1.0, 10.0), np.array(starts)


def _row(name: str, sent: float, first: float, tokens: int, prompt: int) -> dict[str, Any]:
    times = [round((first + k * STEP) * S) for k in range(tokens)]
    return {
        "id": name, "sent_ns": round(sent * S), "first_ns": times[0], "last_ns": times[-1], "end_ns": times[-1],
        "prompt": prompt, "cached": 0, "completion": tokens, "reads": [(t, 1) for t in times],
    }  # fmt: skip


def test_who_is_overtaken_began_when_its_chunks_say() -> None:
    work, curve, starts = seen(beside=True)
    assert overtaken(work)[1].sum() == 8
    found = begun(work, curve)
    long = work.prefill > 1000
    assert np.abs(found.start[long] - starts).max() < 4 * STEP
    assert np.all(found.start >= work.sent) and np.all(found.start < work.first)


def test_nothing_moves_where_nobody_is_overtaken() -> None:
    work, curve, _ = seen(beside=False)
    assert not overtaken(work)[1].any()
    assert begun(work, curve) is work
