"""Runs that the widths of intervals are learned from: the tuning seeds of both truths and of the worlds of every card.

No evaluation seed is among them; what is learned without a mix or a card is judged on that mix or card. May not know:
how widths are made of terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from energy.uncertainty import Scale
from joulegraph.validation.cores import cores, results
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
    """How a run comes about: a truth on a seed's board, or a world of a card."""

    mix: str
    seed: int
    truth: str | None
    card: str | None
    """what it is left out with (None: of no card)"""

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.truth or self.card} {self.mix} seed {self.seed}"

    def made(self) -> Synthetic:
        """The run itself."""
        if self.truth is not None:
            return TRUTHS[self.truth](MIXES[self.mix](self.seed), self.seed)
        assert self.card is not None
        one = world_seed(self.card, self.mix, self.seed)
        return world(MIXES[self.mix](one), self.card, one)


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
                yield Source(mix, seed, truth, card)
            for card in CARDS:
                yield Source(mix, seed, None, card)


def judged(say: Callable[[str], None]) -> list[Judged]:
    """Every tuning run at every level."""
    with cores() as pool:
        found = results({source: pool.submit(judge, source) for source in sources()}, say)
    return [one for many in found.values() for one in many]


def judge(source: Source) -> tuple[list[Judged], str]:
    """One run at every level."""
    run = source.made()
    return [Judged(source.mix, source.card, level, score(run, level)) for level in LEVELS], source.name


def scales(runs: list[Judged]) -> dict[str | None, Scale]:
    """Learned from all (None), and without each mix and each card."""
    out: dict[str | None, Scale] = {None: learn([r.score for r in runs])}
    for name in (*MIXES, *CARDS):
        out[name] = learn([r.score for r in runs if name not in (r.mix, r.card)])
    return out
