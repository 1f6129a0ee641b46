"""Worlds unlike the two truths: other cards, models, engines, sensors, to learn intervals from and to judge them.

Per card and seed: board and model (roofline.boards), batching policy, budget, kind of sensor, length of the recording
and how much of a mix reaches it, so that it is as busy as the mix means it. Ranges were fixed before any width was
learned from them. May not know: the estimator.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from joulegraph.validation.mixes import MIXES, Mix, Planned
from joulegraph.validation.roofline.boards import CARDS, Chip, board, chip, kv_tokens
from joulegraph.validation.roofline.chip import coalitions, seconds
from joulegraph.validation.roofline.serving import BLOCK, Serving
from joulegraph.validation.runs import Synthetic
from joulegraph.validation.truths import recorded

POLICIES = ("mixed", "mixed", "capped", "alternate", "whole")
BUDGETS = (512, 1024, 2048, 4096, 8192)
SENSORS = ("counter", "counter", "counter", "duty-cycled", "instant", "average")
SPAN_S, LEAST_S, STEPS = (50.0, 110.0), 30.0, 6000
"""of a recording; shorter, to the least, where it would have more steps"""
FEWEST, MOST = 8, 600
"""workflows and requests of a recording"""
TYPICAL = np.array([280.0, 2e10, 32 * 1000 * 131_072.0, 32.0, 1.0])
"""columns of a typical step of an 8B model: 32 decodes at 1,000 tokens of context beside a piece of prompt"""


def world(mix: Mix, card: str, seed: int) -> Synthetic:
    """The mix on the seed's board of a card."""
    rng = np.random.default_rng([seed, 78, sorted(CARDS).index(card)])
    made = board(card, seed)
    kv = mix.limits.kv_blocks * BLOCK if mix.limits.kv_blocks else 400_000
    serving = Serving(
        policy=mix.policy or str(rng.choice(POLICIES)), budget=int(rng.choice(BUDGETS)),
        sequences=mix.limits.max_num_seqs, kv_tokens=min(kv, max(kv_tokens(card, made), 20_000)),
    )  # fmt: skip
    kind, span = str(rng.choice(SENSORS)), float(rng.uniform(*SPAN_S))
    step_s, usual_s = _step_s(made), _step_s(chip(1))
    share = min(usual_s / step_s * float(rng.uniform(0.6, 1.3)), 1.0)
    plan = _thinned(mix.plan, share, min(span, max(STEPS * step_s, LEAST_S)), rng)
    return recorded(replace(mix, plan=plan), serving, seed, made, kind)


def _step_s(made: Chip) -> float:
    """Seconds of a typical step, which tell how fast a board is."""
    shape = made.shape
    mine = TYPICAL * (1.0, shape.layers * shape.width / (32 * 4096), shape.kv_bytes / 131_072, 1.0, 1.0)
    return float(seconds(made, coalitions(made, mine[None], np.array([33.0])), 1.0)[0])


def _thinned(plan: list[Planned], share: float, span_s: float, rng: np.random.Generator) -> list[Planned]:
    """A share of the workflows, and of those what begins within the span."""
    some = [p for p in plan if p.t_ns < span_s * 1e9]
    share = min(share, MOST / max(len(some), 1))
    names = sorted({p.workflow for p in some})
    kept = set(rng.permutation(names)[: max(round(share * len(names)), FEWEST)].tolist())
    return [p for p in some if p.workflow in kept]


def world_seed(card: str, mix: str, seed: int) -> int:
    """A seed of its own for every card and mix, so that no two runs share a board's or a client's luck."""
    return 1000 * seed + 97 * list(CARDS).index(card) + list(MIXES).index(mix)
