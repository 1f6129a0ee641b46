"""Two engines of truth. linear: the estimator's family (no power limit, droop, padding, leakage or quadratic terms).
independent: a board's real mechanisms, drawn per seed from ranges that recordings and cited sources give.

The ranges, their sources and the making of both stand in engines.embedded.variants; they were fixed before any tuning.
May not know: the estimator.
"""

from __future__ import annotations

from engines.embedded import variants
from engines.embedded.profiles import Profile, load_profile

BASE = "h100-llama8b"


def linear(seed: int) -> Profile:
    """A GPU of the estimator's family; constants vary by seed within 20 %."""
    return variants.linear(load_profile(BASE), seed)


def independent(seed: int) -> Profile:
    """A GPU with the non-linearities of a real board."""
    return variants.independent(load_profile(BASE), seed)


TRUTHS = {"linear": linear, "independent": independent}
