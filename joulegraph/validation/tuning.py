"""Runs that the widths of intervals are learned from: the tuning seeds of both truths and of the worlds of every card.

No evaluation seed is among them; what is learned without a mix or a card is judged on that mix or card. May not know:
how widths are made of terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from energy.uncertainty import Scale
from joulegraph.validation.intervals import learn
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.roofline.boards import CARDS
from joulegraph.validation.runs import Synthetic
from joulegraph.validation.score import Score, score
from joulegraph.validation.truths import TRUTHS
from joulegraph.validation.worlds import world, world_seed

TUNING = (1, 2)
LEVELS = ("L1", "L2", "L3")
TRUTH_CARDS = {"linear": None, "independent": "h100"}
"""what a truth is left out with"""


@dataclass(frozen=True, slots=True)
class Source:
    """How a run comes about: its mix, its card (None: of no card), what it is called, and the run itself."""

    mix: str
    card: str | None
    name: str
    made: Callable[[], Synthetic]


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored run and what it can be left out with."""

    mix: str
    card: str | None
    level: str
    score: Score


def sources() -> Iterator[Source]:
    """Every tuning run, in an order that never changes."""
    for seed in TUNING:
        for mix in MIXES:
            for truth, card in TRUTH_CARDS.items():
                yield Source(mix, card, f"{truth} {mix} seed {seed}", _truth(truth, mix, seed))
            for card in CARDS:
                yield Source(mix, card, f"{card} {mix} seed {seed}", _world(card, mix, seed))


def _truth(truth: str, mix: str, seed: int) -> Callable[[], Synthetic]:
    return lambda: TRUTHS[truth](MIXES[mix](seed), seed)


def _world(card: str, mix: str, seed: int) -> Callable[[], Synthetic]:
    one = world_seed(card, mix, seed)
    return lambda: world(MIXES[mix](one), card, one)


def judged(say: Callable[[str], None]) -> list[Judged]:
    """Every tuning run at every level."""
    out = []
    for source in sources():
        say(source.name)
        run = source.made()
        out += [Judged(source.mix, source.card, level, score(run, level)) for level in LEVELS]
    return out


def scales(runs: list[Judged]) -> dict[str | None, Scale]:
    """Learned from all (None), and without each mix and each card."""
    out: dict[str | None, Scale] = {None: learn([r.score for r in runs])}
    for name in (*MIXES, *CARDS):
        out[name] = learn([r.score for r in runs if name not in (r.mix, r.card)])
    return out
