"""Worlds of other make: as many cards as said, each one's constants on its data sheet, and every recording readable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from energy.attribute import attribute
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.roofline.boards import CARDS, MODELS, board, kv_tokens
from joulegraph.validation.roofline.chip import coalitions, joules, seconds
from joulegraph.validation.roofline.serving import Asked, Serving, serve
from joulegraph.validation.runs import at_level
from joulegraph.validation.truths import recorded
from joulegraph.validation.worlds import world


@pytest.mark.parametrize("card", sorted(CARDS))
def test_boards_stay_on_their_data_sheet(card: str) -> None:
    sheet = CARDS[card]
    for seed in range(30):
        made = board(card, seed)
        assert made.gemm_flops < made.peak_flops == made.gpus * sheet.flops
        assert made.bytes_per_s < made.gpus * sheet.bytes_per_s
        assert sheet.idle[0] <= made.idle_w / (made.gpus * sheet.limit_w) <= sheet.idle[1]
        assert made.static_w < made.limit_w
        assert kv_tokens(card, made) > 0


def test_experts_are_streamed_as_tokens_hit_them() -> None:
    shape = next(m for m in MODELS if m.experts == 128)
    few, many = shape.streamed(np.array([1.0, 256.0]))
    assert few == pytest.approx(shape.computed)
    assert 0.99 * shape.dense < many < shape.dense


def test_two_boards_talk_to_each_other() -> None:
    pair = replace(next(b for b in (board("h100", k) for k in range(50)) if b.gpus == 2), overlapped=False)
    alone = replace(pair, link_s=0.0, link_token_s=0.0)
    step = coalitions(pair, np.array([[64.0, 0.0, 1e9, 64.0, 0.0]]), np.array([64.0]))
    talk = seconds(pair, step, 1.0)[0] - seconds(alone, step, 1.0)[0]
    assert talk == pytest.approx(pair.link_s + 64 * pair.link_token_s)
    assert talk > 16e-6 * pair.shape.layers


def test_power_is_concave_in_load() -> None:
    made = replace(board("l40s", 3), bow=0.3)
    step = coalitions(made, np.array([[64.0, 0.0, 1e9, 64.0, 0.0]]), np.array([64.0]))
    took = seconds(made, step, 1.0)
    bent, straight = (joules(replace(made, bow=b), step, took, 1.0, 0.0)[0] for b in (0.3, 0.0))
    assert straight < bent < 1.3 * straight


def test_whole_prompts_are_never_cut() -> None:
    asked = [Asked(f"r{i}", 0.05 * i, (), 700 + 300 * (i % 5), 20) for i in range(40)]
    log = serve(board("a100", 1), Serving("whole", budget=2048, sequences=16), asked, 1).steps
    assert all(s.generation_requests == 0 for s in log if s.ctx_requests)
    assert sum(s.ctx_requests for s in log) == len(asked)


@pytest.mark.parametrize("kind", ["counter", "duty-cycled", "instant", "average"])
def test_every_kind_of_sensor_is_read_and_closes(kind: str) -> None:
    mix = MIXES["low-load"](5)
    two = next(b for b in (board("h200", k) for k in range(50)) if b.gpus == 2)
    run = recorded(replace(mix, plan=mix.plan[:20]), Serving(), 5, two, kind)
    result = attribute(run.data, level="L3")
    assert {d.curve.device for d in result.devices} == {"gpu0", "gpu1"}
    assert result.totals["closure_uj"] == 0
    total = result.figures[0].active.sum()
    assert total == pytest.approx(run.truth.sum(), rel=0.1 if kind in ("counter", "average") else 0.3)


def test_the_same_seed_gives_the_same_world() -> None:
    once, again = (world(MIXES["low-load"](8), "a10g", 8) for _ in range(2))
    assert np.array_equal(once.truth, again.truth)
    assert at_level(once.data, "L1").steps is None
