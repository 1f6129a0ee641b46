"""Spreads: how a length, a count or a duration varies, as short text that fits on a command line.

    50                                   always 50
    183-800                              whole numbers 183..800, equally likely
    25|50|75|100                         one of these, equally likely
    q(0:5224,0.5:6146,1:7492)            straight lines through these quantiles (for published percentiles)
    lognormal(343,0.8)                   mean and coefficient of variation
    exp(2000)                            exponential with this mean

Pure: a seeded random.Random in, a number out. May not know: what the number means.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from math import log, sqrt
from random import Random
from typing import Literal

from traces.errors import UserError

Form = Literal["fixed", "uniform", "choice", "quantiles", "lognormal", "exp"]
Amount = int | float | str
"""A number, or a spread as text."""

_NUMBER = r"(\d+(?:\.\d+)?)"
_ONE = re.compile(rf"{_NUMBER}$")
_RANGE = re.compile(rf"{_NUMBER}-{_NUMBER}$")
_CALL = re.compile(r"(q|lognormal|exp)\(([^()]*)\)$")


@dataclass(frozen=True, slots=True)
class Spread:
    """One distribution. numbers: fixed [v], uniform [low, high], choice values, quantiles [p0, v0, p1, v1 ...],
    lognormal [mean, cv], exp [mean]."""

    form: Form
    numbers: tuple[float, ...]

    def draw(self, rng: Random) -> float:
        """One value; never negative."""
        n = self.numbers
        match self.form:
            case "fixed":
                return n[0]
            case "uniform":
                return float(rng.randint(round(n[0]), round(n[1])))
            case "choice":
                return rng.choice(n)
            case "quantiles":
                return _between(n[0::2], n[1::2], rng.random())
            case "lognormal":
                variance = log(1 + n[1] ** 2)
                return rng.lognormvariate(log(n[0]) - variance / 2, sqrt(variance)) if n[0] > 0 else 0.0
            case "exp":
                return rng.expovariate(1 / n[0]) if n[0] > 0 else 0.0

    @property
    def mean(self) -> float:
        """Expected value."""
        n = self.numbers
        match self.form:
            case "uniform":
                return (n[0] + n[1]) / 2
            case "choice":
                return sum(n) / len(n)
            case "quantiles":
                p, v = n[0::2], n[1::2]
                return sum((p[i + 1] - p[i]) * (v[i] + v[i + 1]) / 2 for i in range(len(p) - 1))
            case _:
                return n[0]


def _between(probabilities: tuple[float, ...], values: tuple[float, ...], at: float) -> float:
    """Quantile function: linear between the given points."""
    i = min(max(bisect_right(probabilities, at) - 1, 0), len(values) - 2)
    width = probabilities[i + 1] - probabilities[i]
    return values[i] + (values[i + 1] - values[i]) * min(1.0, max(0.0, (at - probabilities[i]) / width))


def _refuse(text: str, why: str) -> UserError:
    return UserError(
        f"{text!r} is not an amount ({why}); "
        "write 50, 183-800, 25|50|75, q(0:10,0.5:20,1:90), lognormal(343,0.8) or exp(2000)"
    )


def _numbers(text: str, inner: str) -> tuple[float, ...]:
    parts = [p.strip() for p in re.split(r"[,:|]", inner)]
    if not all(_ONE.match(p) for p in parts):
        raise _refuse(text, "numbers are plain and not negative")
    return tuple(float(p) for p in parts)


def _quantiles(text: str, inner: str) -> Spread:
    numbers = _numbers(text, inner)
    p, v = numbers[0::2], numbers[1::2]
    if len(numbers) % 2 or len(p) < 2 or p[0] != 0 or p[-1] != 1 or list(p) != sorted(set(p)) or list(v) != sorted(v):
        raise _refuse(text, "quantiles rise from 0 to 1 and so do their values")
    return Spread("quantiles", numbers)


@lru_cache(maxsize=4096)
def parse(amount: Amount) -> Spread:
    """An Amount as a Spread. UserError names the text and the forms."""
    if isinstance(amount, int | float):
        if not 0 <= amount < float("inf"):
            raise _refuse(str(amount), "amounts are finite and not negative")
        return Spread("fixed", (float(amount),))
    text = amount.strip()
    if _ONE.match(text):
        return Spread("fixed", (float(text),))
    if found := _RANGE.match(text):
        low, high = float(found[1]), float(found[2])
        if low > high:
            raise _refuse(text, "the lower end comes first")
        return Spread("uniform", (low, high))
    if "|" in text and "(" not in text:
        return Spread("choice", _numbers(text, text))
    if found := _CALL.match(text):
        kind, inner = found[1], found[2]
        if kind == "q":
            return _quantiles(text, inner)
        numbers = _numbers(text, inner)
        if len(numbers) != (2 if kind == "lognormal" else 1):
            raise _refuse(text, "lognormal takes mean and CV, exp takes a mean")
        return Spread("lognormal" if kind == "lognormal" else "exp", numbers)
    raise _refuse(text, "no known form")
