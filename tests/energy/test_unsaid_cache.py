"""Cached tokens that no reply says: found from the engine's steps, or from how long turns took; never invented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from energy.schedule import Line
from energy.tables import Floats, RequestTable, request_table
from energy.unsaid_cache import with_cached
from energy.windows import Windows, windows

S = 1_000_000_000
FIXED_S, PACE_S = 0.01, 25e-6


def conversations(rng: np.random.Generator, cache: bool) -> tuple[list[dict[str, Any]], list[float]]:
    """Forty conversations of five turns, one prompt at a time, and what was computed of each prompt."""
    rows, computed, t = [], [], 1.0
    for turn in range(5):
        for flow in range(40):
            prompt = 2000 + 100 * flow + 400 * turn
            new = prompt if turn == 0 or not cache else prompt - (prompt - 400 + 50) // 16 * 16
            first = t + FIXED_S + PACE_S * new + rng.exponential(5e-4)
            rows.append({
                "id": f"{flow}.{turn}", "workflow": f"w{flow}", "sent_ns": round(t * S), "first_ns": round(first * S),
                "last_ns": round((first + 0.5) * S), "end_ns": round((first + 0.5) * S), "prompt": prompt,
                "completion": 51, "queue_ns": 0, "prefill_ns": round((first - t) * S),
            })  # fmt: skip
            computed.append(float(new))
            t += 1.0
    return rows, computed


def steps(table: RequestTable, computed: Floats) -> Line:
    """One step per prompt, as long as it took, and told exactly."""
    n = len(table)
    start, end = table.sent_ns / 1e9 - table.sent_ns.min() / 1e9, table.first_ns / 1e9 - table.sent_ns.min() / 1e9
    return Line(start, end, np.ones(n), computed, np.zeros(n), np.zeros(n), np.zeros(n))


def made(cache: bool, *, told: bool) -> tuple[Windows, list[str], Floats]:
    rows, computed = conversations(np.random.default_rng(3), cache)
    table = request_table(rows)
    line = steps(table, np.array(computed)) if told else None
    found, notes = with_cached(table, windows(table, "L2"), line)
    return found, notes, np.array(computed)


@pytest.mark.parametrize("told", [True, False])
def test_turns_that_hit_the_cache_are_charged_for_what_was_new(told: bool) -> None:
    found, notes, computed = made(True, told=told)
    assert len(notes) == 1
    assert "estimated" in notes[0]
    assert np.quantile(np.abs(found.prefill - computed) / computed, 0.95) < 0.05
    assert np.all(found.prefill + found.cached == found.prompt)


@pytest.mark.parametrize("told", [True, False])
def test_without_a_cache_nothing_is_invented(told: bool) -> None:
    found, notes, computed = made(False, told=told)
    assert notes == []
    assert np.array_equal(found.prefill, computed)


def test_what_replies_say_stays() -> None:
    rows, _ = conversations(np.random.default_rng(3), True)
    table = request_table([r | {"cached": 32} for r in rows])
    found, notes = with_cached(table, windows(table, "L2"), None)
    assert notes == []
    assert np.all(found.cached == 32)


def test_prompts_that_share_a_step_have_what_it_computed() -> None:
    """Two of each pair end in one step: a new conversation and a turn that hit the cache."""
    rows, computed = conversations(np.random.default_rng(5), True)
    table = request_table(rows)
    work = windows(table, "L2")
    first, second = np.arange(40), np.arange(160, 200)  # first turns, last turns
    pick = np.sort(np.concatenate([first, second]))
    table = request_table([
        rows[k] | {n: rows[k % 40][n] + (1000 if n == "sent_ns" and k >= 40 else 0) for n in ("sent_ns", "first_ns")}
        for k in pick.tolist()
    ])  # fmt: skip
    work = windows(table, "L2")
    end = work.first[:40]
    total = np.array(computed)[:40] + np.array(computed)[160:200]
    line = Line(end - 0.05, end, np.full(40, 2.0), total, np.zeros(40), np.zeros(40), np.zeros(40))
    found, notes = with_cached(table, work, line)
    assert len(notes) == 1
    assert np.allclose(found.prefill[:40] + found.prefill[40:], total, atol=2)
