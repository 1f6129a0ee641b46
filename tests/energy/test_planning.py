"""Plans from a request list: the batch stepped by hand, what is carried over, what is cut at a phase's end."""

from __future__ import annotations

import numpy as np
import pytest

from energy.fit import Fit
from energy.planning import Asked, asked, planned_j, steps_of
from energy.windows import Windows

SECONDS = np.array([0.01, 1e-5, 0.0, 0.001, 1e-7])


def _windows(rows: list[tuple[float, float, float, float, float]]) -> Windows:
    """(sent, first, last, prompt tokens, tokens decoded)."""
    sent, first, last, prompt, decode = (np.array(c, float) for c in zip(*rows, strict=True))
    none = np.zeros(len(rows))
    return Windows(0, np.arange(len(rows)), sent, sent, first, last, prompt, none, prompt, decode, none, none, none > 0)


def _by_hand(coming: list[Asked]) -> tuple[float, float, float]:
    """(end, context read, tokens decoded) of one request after another in every step, written out."""
    now, read, made = 0.0, 0.0, 0
    left = [[a.prefill, a.cached, a.decode, a.sent] for a in coming]
    while any(r[0] > 0 or r[2] > 0 for r in left):
        live = [r for r in left if r[3] <= now]
        decoding = [r for r in live if r[0] <= 0 and r[2] > 0]
        step = 0.01 + 0.001 * len(decoding) + 1e-7 * sum(r[1] for r in decoding)
        read += sum(r[1] for r in decoding)
        made += len(decoding)
        for r in live:
            if r[0] > 0:
                step += 1e-5 * r[0]
                r[0], r[1] = 0.0, r[1] + r[0] + 1
        for r in decoding:
            r[1] += 1
            r[2] -= 1
        now += step
    return now, read, made


def test_a_batch_is_stepped_as_by_hand() -> None:
    coming = [Asked(0.0, 100, 0, 7), Asked(0.0, 50, 20, 3), Asked(0.03, 400, 0, 5)]
    work, took, gaps = steps_of(list(coming), SECONDS, 0.0, 0.0, cut=False)
    end, read, made = _by_hand(coming)
    assert took.sum() == pytest.approx(end)
    assert work[:, 4].sum() == pytest.approx(read)
    assert work[:, 3].sum() == made == 15
    assert work[:, 1].sum() == 550
    assert gaps == []


def test_what_runs_past_the_end_is_cut_only_where_the_next_phase_has_it() -> None:
    coming = [Asked(0.0, 100, 0, 1000)]
    whole = steps_of(list(coming), SECONDS, 0.0, 2.0, cut=False)[1].sum()
    assert whole > 10
    assert steps_of(list(coming), SECONDS, 0.0, 2.0, cut=True)[1].sum() == pytest.approx(2.0)


def test_what_is_still_served_is_carried_over() -> None:
    """Half decoded at the phase's begin: half is left, with the context so far."""
    (one,) = asked(_windows([(0.0, 1.0, 11.0, 100, 1000)]), 6.0, 20.0)
    assert one == Asked(6.0, 0.0, 600.0, 500.0)


def test_phases_back_to_back_add_up() -> None:
    """Two phases without a pause: what the plan cuts off the first is in the second."""
    rows = [(0.1 * k, 0.1 * k + 0.02, 0.1 * k + 0.02 + 100 * 0.014, 100.0, 100.0) for k in range(100)]
    joules = np.array([50.0, 50.0, 100.0, 0.5, 0.01, 0.0, 0.02, 0.0])
    fit = Fit(joules, 0 * joules, np.array([0.01, 1e-5, 0, 2.5e-4, 0]), 1.0, 0.0, 99, "", np.zeros((8, 8)))
    windows = _windows(rows)
    parts = [planned_j(windows, fit, a, b) for a, b in ((0.0, 5.0), (5.0, 14.0))]
    assert sum(parts) == pytest.approx(planned_j(windows, fit, 0.0, 14.0), rel=0.01)
    assert parts[0] > 0.3 * sum(parts)


def test_a_board_cools_before_it_idles() -> None:
    """Two short requests 10 s apart, the one before ended 1 s before the phase: what is left of a fading of 0.5 s."""
    joules = np.array([50.0, 80.0, 200.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    fit = Fit(joules, 0 * joules, np.array([0.1, 0, 0, 0, 0]), 1.0, 0.0, 99, "", np.zeros((8, 8)))
    windows = _windows([(0.0, 1.0, 1.0, 10.0, 0.0), (5.0, 5.1, 5.1, 10.0, 0.0), (15.0, 15.1, 15.1, 10.0, 0.0)])
    found = planned_j(windows, fit, 2.0, 20.0)
    tail_s = 0.5 * (np.exp(-2) - np.exp(-8) + 1 - np.exp(-19.8) + 1 - np.exp(-9.8))
    assert found == pytest.approx(0.2 * 200 + tail_s * 80 + (18 - 0.2 - tail_s) * 50)
