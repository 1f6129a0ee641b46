"""What rows give away that their file leaves unsaid: a coarse clock behind the stamps, the size of a block. Pure.

Mooncake's stamps are 3,000 +- 1 ms apart: replayed as they are, ten requests arrive at once every three seconds, and
the CV of the gaps measures the recorder's clock, not the users. Whoever replays must know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from statistics import median

LEAST_MS = 10.0
"""Finer steps than this are a clock's resolution, not a quantisation worth dithering."""
_LEAST_GAPS = 20
_OFF = 0.01
"""A gap may be off a multiple by this share of the quantum (Mooncake's jitter is a thousandth)."""
_FIT = 0.99
_SIZES = (512, 16, 32, 64, 128, 256, 1024)


def time_quantum_ms(stamps_ns: Sequence[int]) -> float | None:
    """The quantum (ms) that the distinct stamps (ns) are multiples of, or None.

    None also for evenly spaced arrivals (every gap the same, no ties): those are constant, not quantised.
    """
    distinct = sorted(set(stamps_ns))
    gaps = [b - a for a, b in pairwise(distinct)]
    if len(gaps) < _LEAST_GAPS:
        return None
    least = min(gaps)
    low = median(g for g in gaps if g <= least * (1 + 2 * _OFF))
    common = Counter(gaps).most_common(1)[0][0]
    for guess in sorted({low, float(common)}, reverse=True):
        steps = sum(round(g / guess) for g in gaps)
        quantum = sum(gaps) / steps if steps else 0.0  # the jitter of single stamps averages out
        if quantum < LEAST_MS * 1e6 * (1 - _OFF) or not _fits(gaps, quantum):
            continue
        ties = len(stamps_ns) > len(distinct)
        if ties or any(round(g / quantum) > 1 for g in gaps):
            return float(f"{quantum / 1e6:.4g}")  # the jitter lets no more digits be known
    return None


def _fits(gaps: Sequence[int], quantum: float) -> bool:
    """Whether nearly all gaps are multiples of the quantum, the jitter of each border allowed for."""
    good = sum(1 for g in gaps if g > quantum / 2 and abs(g - round(g / quantum) * quantum) <= _OFF * quantum)
    return good >= _FIT * len(gaps)


def block_rule(pairs: Collection[tuple[int, int]]) -> tuple[int, str] | None:
    """(block size, ceil|floor) that explains every (tokens, number of ids), or None."""
    for size in _SIZES:
        if pairs and all(blocks == -(-tokens // size) for tokens, blocks in pairs):
            return size, "ceil"
        if pairs and all(blocks == tokens // size for tokens, blocks in pairs):
            return size, "floor"
    return None
