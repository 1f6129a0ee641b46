"""The books of one device: every block's counter delta split into integers that add up to it exactly.

attributed + tail + idle + foreign + unmeasured = counter delta per block, in uJ, for every policy; the ratio
measured/modelled before scaling is kept. May not know: how the weights came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from energy.model import Blocks, Shares
from energy.policies import Split
from energy.tables import Floats, Ints, Mask


@dataclass(frozen=True, slots=True)
class Ledger:
    """Integers uJ: per row (active, own), per block (delta, attributed, idle, tail, foreign, unmeasured); ratio =
    measured/modelled per block (nan where nothing was modelled)."""

    active: Ints
    own: Ints
    delta: Ints
    attributed: Ints
    idle: Ints
    tail: Ints
    foreign: Ints
    unmeasured: Ints
    ratio: Floats

    def closure_uj(self) -> int:
        """What the books are off by: always 0."""
        parts = self.attributed + self.idle + self.tail + self.foreign + self.unmeasured
        return int(np.sum(np.abs(self.delta - parts)))


def settle(
    rows: Shares,
    blocks: Blocks,
    split: Split,
    unmeasured: Mask | None = None,
    outside: Floats | None = None,
    theirs: Ints | None = None,
) -> Ledger:
    """Scale the split to each block's counter delta and round by largest remainder. A block in `unmeasured` goes there
    whole; `outside` is the share of each block's energy above idle that others drew (foreign); a block in which nothing
    is modelled goes to idle. theirs: uJ of each block beyond blocks.uj, on slices that are not ours: unmeasured."""
    n = len(blocks)
    hidden = np.zeros(n, bool) if unmeasured is None else unmeasured
    others = np.zeros(n) if outside is None else outside
    above = np.bincount(rows.block, split.active, n)
    modelled = above + split.idle + split.tail
    ratio = np.divide(blocks.uj, modelled, out=np.full(n, np.nan), where=modelled > 0)
    keep = np.where(hidden | (modelled <= 0), 0.0, 1.0)
    # idle, tail and foreign of a block are entries like any row: the last 3 n of the flat arrays
    every = np.arange(n)
    block = np.concatenate([rows.block, every, every, every])
    mine = split.active * (1 - others)[rows.block]
    weight = np.concatenate([mine, split.idle, split.tail, above * others]) * keep[block]
    weight[len(rows) : len(rows) + n] += (1 - keep) * ~hidden
    target = np.where(hidden, 0, blocks.uj).astype(np.int64)
    parts = largest_remainder(weight, block, target)
    active, (idle, tail, foreign) = parts[: len(rows)], parts[len(rows) :].reshape(3, n)
    own_share = np.divide(split.own, split.active, out=np.zeros(len(rows)), where=split.active > 0)
    own = np.floor(active * np.clip(own_share, 0, 1)).astype(np.int64)
    attributed = np.zeros(n, np.int64)
    np.add.at(attributed, rows.block, active)
    apart = np.zeros(n, np.int64) if theirs is None else theirs
    unknown = np.where(hidden, blocks.uj, 0) + apart
    return Ledger(active, own, blocks.uj + apart, attributed, idle, tail, foreign, unknown, ratio)


BOOK = ("measured_uj", "attributed_uj", "idle_uj", "tail_uj", "foreign_uj", "unmeasured_uj")


def book(ledgers: list[Ledger]) -> dict[str, Any] | None:
    """Sums over ledgers, the closure (0) and percentiles of measured/modelled; None without ledgers."""
    if not ledgers:
        return None
    out: dict[str, Any] = {
        "measured_uj": sum(int(x.delta.sum()) for x in ledgers),
        **{
            f"{k}_uj": sum(int(getattr(x, k).sum()) for x in ledgers)
            for k in ("attributed", "idle", "tail", "foreign", "unmeasured")
        },
    }
    out["closure_uj"] = out["measured_uj"] - sum(out[k] for k in BOOK[1:]) + sum(x.closure_uj() for x in ledgers)
    ratio = np.concatenate([x.ratio for x in ledgers])
    ratio = ratio[~np.isnan(ratio)]
    out["scale"] = {f"p{q}": float(np.quantile(ratio, q / 100)) for q in (5, 50, 95)} if len(ratio) else None
    return out


def largest_remainder(weight: Floats, group: npt.NDArray[np.integer], target: Ints) -> Ints:
    """Non-negative integers in proportion to weight whose sum per group is exactly target (>= 0). A group with a target
    and no positive weight is a bug of the caller."""
    n = len(target)
    total = np.bincount(group, weight, n)
    if np.any((total <= 0) & (target > 0)):
        raise ValueError("a block with energy has nothing to put it on")
    share: Floats = weight / np.where(total > 0, total, 1.0)[group]
    exact: Floats = share * target[group]
    whole: Ints = np.floor(exact).astype(np.int64)
    left: Ints = target.copy()
    np.subtract.at(left, group, whole)
    order = np.lexsort((whole - exact, group))
    begin = np.searchsorted(group[order], np.arange(n))
    size = np.bincount(group, minlength=n)
    rank = np.arange(len(order)) - np.repeat(begin, size)
    g = group[order]
    # left is 0..size but for float error at very large targets: whole rounds plus one more for the first few
    rounds, extra = np.divmod(left, np.maximum(size, 1))
    give = np.where(size[g] > 0, rounds[g] + (rank < extra[g]), 0)
    whole[order] += give
    if np.any(whole < 0):  # float error took more than was there: move the debt to the largest entries
        _mend(whole, group, n)
    return whole


def _mend(whole: Ints, group: npt.NDArray[np.integer], n: int) -> None:
    for g in np.unique(group[whole < 0]):
        at = np.flatnonzero(group == g)
        debt = int(-whole[at][whole[at] < 0].sum())
        whole[at] = np.maximum(whole[at], 0)
        for k in at[np.argsort(-whole[at])]:
            take = min(debt, int(whole[k]))
            whole[k] -= take
            debt -= take
