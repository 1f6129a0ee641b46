"""Prompt tokens by step: recovered from what a first come, first served engine tells of its steps, margins kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy.schedule import Line, Pieces, pieces
from energy.tables import request_table
from energy.windows import windows

STEP = 0.1
S = 1_000_000_000


def served(prompts: list[int], arrivals: list[int], budget: int, chunk: int) -> tuple[np.ndarray[Any, Any], Pieces]:
    """(true tokens by request and step, pieces found) of an engine that gives each prompt up to `chunk` tokens a step,
    first come first served, up to `budget` for all; a request decodes nothing."""
    left, table, step = list(prompts), [], 0
    start, end = [-1] * len(prompts), [0] * len(prompts)
    while any(left):
        room, row = budget, [0] * len(prompts)
        for i in sorted(range(len(prompts)), key=lambda i: (arrivals[i], i)):
            if left[i] and arrivals[i] <= step and room:
                row[i] = min(left[i], chunk, room)
                room -= row[i]
                left[i] -= row[i]
                start[i] = step if start[i] < 0 else start[i]
                end[i] = step + 1
        table.append(row)
        step += 1
    rows = [
        {
            "id": f"r{i}", "sent_ns": round((arrivals[i] * STEP + 1e-6 * i) * S), "first_ns": round(end[i] * STEP * S),
            "last_ns": round(end[i] * STEP * S), "end_ns": round(end[i] * STEP * S), "prompt": prompts[i], "cached": 0,
            "completion": 1, "prefill_ns": round((end[i] - start[i]) * STEP * S),
            "reads": [(round(end[i] * STEP * S), 1)],
        }
        for i in range(len(prompts))
    ]  # fmt: skip
    truth = np.array(table, float)
    requests = request_table(rows)
    work = windows(requests, "L3")
    n = len(truth)
    none = np.zeros(n)
    end_s = np.arange(1, n + 1, dtype=np.float64) * STEP - work.origin_ns / S
    line = Line(end_s - STEP, end_s, (truth > 0).sum(1).astype(float), truth.sum(1), none, none, none)
    return truth, pieces(requests, work, line)


prompt = st.integers(1, 3000)


@given(
    st.lists(st.tuples(prompt, st.integers(0, 12)), min_size=1, max_size=12),
    st.sampled_from([(2048, 9999), (2048, 256)]),
)
@settings(deadline=None, max_examples=80)
def test_every_prompt_keeps_its_tokens_and_steps_get_theirs(asked: list[tuple[int, int]], how: tuple[int, int]) -> None:
    truth, found = served([p for p, _ in asked], [a for _, a in asked], *how)
    assert found.covered.all()
    rows = np.bincount(found.window, found.tokens, len(asked))
    assert rows == pytest.approx([p for p, _ in asked])
    wrong = np.abs(_table(found, truth) - truth).sum() / 2 / truth.sum()
    assert wrong < 0.25


def test_prompts_one_after_another_are_recovered_exactly() -> None:
    truth, found = served([5000, 300, 2500, 40, 4100], [0, 0, 1, 1, 2], 2048, 9999)
    assert _table(found, truth) == pytest.approx(truth, abs=2.0)


def test_prompts_side_by_side_are_recovered_nearly() -> None:
    truth, found = served([6000, 300, 2500, 40, 4100], [0, 0, 1, 3, 3], 2048, 256)
    assert np.abs(_table(found, truth) - truth).sum() / 2 / truth.sum() < 0.03


def _table(found: Pieces, truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = np.zeros_like(truth)
    np.add.at(out, (found.step, found.window), found.tokens)
    return out
