"""Which point runs when: repeats in mirrored pairs (ABBA), shuffled by seed, engines restarted as seldom as can be.

Pure. In repeats 2k and 2k+1 every point has the same mean position, so a linear drift (a warming room) cancels in the
mean of a pair. Points that need the same engine start stand together. May not know: how long anything takes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random

from joulegraph.sweep.config import Point

_LAUNCH = ("engine", "model", "max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_model_len",
           "prefix_caching")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slot:
    """One run of the sweep."""

    point: Point
    repeat: int

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"{self.point.key()}-r{self.repeat}"


def launch_key(point: Point) -> tuple[Hashable, ...]:
    """Points with the same key can share a started engine. The embedded engine starts anew with every run anyway."""
    if point.kind in ("vllm", "xllamacpp"):
        return tuple(getattr(point, name) for name in _LAUNCH)
    return (point.engine if point.kind == "attach" else "embedded",)


def order(
    points: Sequence[Point], repeats: int, seed: int, key: Callable[[Point], Hashable] = launch_key
) -> list[Slot]:
    """Every point `repeats` times: repeats 2k in a random order by group, 2k+1 the same backwards."""
    random = Random(f"sweep:{seed}")
    out: list[Slot] = []
    forward: list[Point] = []
    for repeat in range(repeats):
        if repeat % 2 == 0:
            forward = _shuffled(points, random, key)
        turn = forward if repeat % 2 == 0 else forward[::-1]
        out += [Slot(point, repeat) for point in turn]
    return out


def _shuffled(points: Sequence[Point], random: Random, key: Callable[[Point], Hashable]) -> list[Point]:
    groups: dict[Hashable, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    members = list(groups.values())
    random.shuffle(members)
    for group in members:
        random.shuffle(group)
    return [point for group in members for point in group]


def starts(slots: Sequence[Slot], key: Callable[[Point], Hashable] = launch_key) -> int:
    """How often an engine is started in this order."""
    keys = [key(slot.point) for slot in slots]
    return sum(i == 0 or keys[i - 1] != k for i, k in enumerate(keys))


def eta_s(elapsed_s: float, ended: int, left: int) -> float | None:
    """Seconds still to go at the pace so far (several points may be under way at once); None before the first end."""
    return elapsed_s / ended * left if ended else None


def clock(seconds: float) -> str:
    """3725 -> 1:02:05"""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
