"""Rates that change with time: ramps, bursts, Markov-modulated states, a series from a file.

Why: every arrival process is unit-mean gaps (constant, exponential, gamma) stretched by a rate: the shape of the gaps
and the course of the rate are chosen independently. May not know: workflows, clocks. Rates are workflows per second.

A profile is written as one word: `ramp:FROM:TO:SECONDS` (then stays), `burst:LOW:HIGH:LOW_S:HIGH_S` (alternating),
`mmpp:RATExSECONDS,RATExSECONDS,...` (states left after an exponential time of that mean, for one of the others), or
`series:FILE` (lines `seconds,rate`; each rate holds until the next line, the last until the end of the file's last
step).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from pathlib import Path
from random import Random

from traces.errors import UserError

_S = 1_000_000_000
PROFILES = ("ramp", "burst", "mmpp", "series")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of time over which the rate goes linearly from start to end (per second)."""

    duration_s: float
    start: float
    end: float


def rescaled(unit_gaps: Iterable[float], pieces: Iterable[Piece]) -> Iterator[int]:
    """Arrival offsets in ns: unit-rate arrivals mapped through the inverse of the cumulative rate. Ends with
    the pieces. An endless profile that stops at rate 0 would never give another arrival, so it must not."""
    gaps = iter(unit_gaps)
    began, wanted = 0.0, next(gaps)
    for piece in pieces:
        area = _area(piece, piece.duration_s)
        while wanted <= area:
            yield round((began + _invert(piece, wanted)) * _S)
            wanted += next(gaps)
        wanted -= area
        began += piece.duration_s


def _area(piece: Piece, t: float) -> float:
    if t == inf:
        return inf if piece.start > 0 else 0.0
    return (piece.start + (piece.end - piece.start) * t / (2 * piece.duration_s)) * t


def _invert(piece: Piece, area: float) -> float:
    """t within the piece at which its cumulative rate reaches area."""
    slope = 0.0 if piece.duration_s == inf else (piece.end - piece.start) / piece.duration_s
    if slope == 0.0:
        return area / piece.start
    return 2 * area / (piece.start + sqrt(max(0.0, piece.start**2 + 2 * slope * area)))


def profile(text: str, seed: int) -> Iterator[Piece]:
    """The pieces of a written profile (see the module's docstring). UserError with the remedy."""
    kind, _, rest = text.partition(":")
    try:
        match kind:
            case "ramp":
                start, end, seconds = _numbers(rest.split(":"), 3)
                return iter([Piece(seconds, start, end), Piece(inf, end, end)])
            case "burst":
                return _alternating(*_numbers(rest.split(":"), 4))
            case "mmpp":
                states = [tuple(_numbers(s.split("x"), 2)) for s in rest.split(",")]
                return _markov([(s[0], s[1]) for s in states], Random(f"mmpp:{seed}"))
            case "series":
                return iter(series(Path(rest)))
    except ValueError as error:
        raise UserError(f"--arrivals PROCESS:{text}: {error}") from error
    raise UserError(
        f"--arrivals PROCESS:{text}: give a number, or ramp:, burst:, mmpp: or series: (joulegraph replay --help)"
    )


def _numbers(parts: list[str], count: int) -> list[float]:
    if len(parts) != count:
        raise ValueError(f"needs {count} numbers, has {len(parts)}")
    values = [float(p) for p in parts]
    if any(not 0 <= v < inf for v in values) or not any(values):
        raise ValueError("numbers must be finite and not negative, and one of them above 0")
    return values


def _alternating(low: float, high: float, low_s: float, high_s: float) -> Iterator[Piece]:
    if low * low_s + high * high_s <= 0:
        raise ValueError("nothing would ever arrive")
    return _repeat([Piece(low_s, low, low), Piece(high_s, high, high)])


def _repeat(pieces: list[Piece]) -> Iterator[Piece]:
    while True:
        yield from pieces


def _markov(states: list[tuple[float, float]], random: Random) -> Iterator[Piece]:
    if len(states) < 2 or any(mean <= 0 for _, mean in states) or not any(rate > 0 for rate, _ in states):
        raise ValueError("needs at least two states RATExSECONDS, seconds above 0 and one rate above 0")
    return _chain(states, random)


def _chain(states: list[tuple[float, float]], random: Random) -> Iterator[Piece]:
    at = 0
    while True:
        rate, mean_s = states[at]
        yield Piece(random.expovariate(1 / mean_s), rate, rate)
        at = (at + random.randrange(1, len(states))) % len(states)


def series(path: Path) -> list[Piece]:
    """A rate series `seconds,rate` per line (a header line is skipped); steps, the last as long as the one before."""
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--arrivals PROCESS:series:{path}: cannot be read ({error}); give a text file of `seconds,rate`"
        ) from error
    points: list[tuple[float, float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and not line.strip()[0].isdigit()):
            continue
        fields = line.split(",")
        try:
            at, rate = float(fields[0]), float(fields[1])
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}:{number}: {line!r} is not `seconds,rate`; mend or remove the line") from error
        if not 0 <= rate < inf or (points and at <= points[-1][0]):
            raise UserError(f"{path}:{number}: {line!r}: rates must be 0 or more and seconds must grow; mend the line")
        points.append((at, rate))
    if len(points) < 2:
        raise UserError(f"{path}: has {len(points)} points; a series needs at least two lines `seconds,rate`")
    steps = [b[0] - a[0] for a, b in pairwise(points)]
    return [Piece(step, rate, rate) for step, (_, rate) in zip([*steps, steps[-1]], points, strict=True)]
