"""The roofline engine of truth: every joule is somebody's, nothing is lost, and what it records can be attributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from energy.attribute import attribute
from energy.foreign import import_run
from energy.load import load_run
from joulegraph.validation.roofline.boards import chip
from joulegraph.validation.roofline.chip import Step, coalitions, drawn, joules, seconds
from joulegraph.validation.roofline.recording import record
from joulegraph.validation.roofline.serving import Asked, Serving, serve
from traces.rundir import RunDir


def _asked(n: int, seed: int, most: int = 80) -> list[Asked]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        prompt, output = int(rng.integers(20, 3000)), int(rng.integers(1, most))
        blocks = tuple(range(10)) if i % 2 else (1000 + i,)
        leaves = 2.0 + i * 0.2 if i % 7 == 0 else None
        out.append(Asked(f"r{i}", i * 0.1, blocks, max(prompt, 170), output, f"w{i % 5}", "a", leaves))
    return out


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shares_of_a_step_add_up_and_equals_pay_alike(seed: int) -> None:
    board, rng = chip(seed), np.random.default_rng(seed)
    tokens = np.array([1.0, 1, 1, 700, 40])
    prefills = (tokens > 1).astype(float)
    step = Step(tokens, tokens * prefills * 1e9, np.array([1e8, 1e8, 5e8, 0, 0]), np.ones(5), prefills)
    one = coalitions(board, step.columns.sum(0)[None], np.array([5.0]))
    whole = float(joules(board, one, seconds(board, one, 0.9), 0.9, 10.0)[0])
    shares = np.mean([drawn(board, step, 10.0, rng, clock=0.9).shares for _ in range(40)], axis=0)
    assert shares.sum() == pytest.approx(whole)
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    assert shares[3] > shares[4] > shares[0]


@pytest.mark.parametrize("policy", ["mixed", "capped", "alternate"])
@pytest.mark.parametrize("kv_tokens", [6_000, 400_000])
def test_every_request_ends_and_every_joule_is_somebodys(policy: str, kv_tokens: int) -> None:
    asked = _asked(60, 4, most=900 if kv_tokens < 10_000 else 80)
    served = serve(chip(4), Serving(policy, budget=1024, sequences=16, kv_tokens=kv_tokens), asked, 4)
    drawn = sum(s.joules for s in served.steps)
    given = sum(r.prefill_j + r.decode_j for r in served.runs)
    assert given == pytest.approx(drawn)
    for run in served.runs:
        assert run.ended_s is not None
        assert run.made == run.asked.output or run.asked.leaves_s is not None
    assert any(r.preempted for r in served.runs) == (kv_tokens < 10_000)


def test_a_recording_of_it_is_attributed(tmp_path: Path) -> None:
    truth = record(tmp_path / "recording", _asked(150, 5), Serving(), 5)
    import_run(tmp_path / "recording", tmp_path / "run")
    result = attribute(load_run(RunDir.open(tmp_path / "run")))
    assert result.level == "L3"
    assert result.totals["closure_uj"] == 0
    uj = dict(zip(truth.ids, 1e6 * truth.joules.sum(1), strict=True))
    known = np.array([uj[i] for i in result.requests.ids])
    error = np.abs(result.figures[0].active.sum(1) - known)[known > 0] / known[known > 0]
    assert np.median(error) < 0.03
