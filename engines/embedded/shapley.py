"""Shapley values of games whose worth depends on the number of tokens in a coalition, in closed form where one
exists.

Players are sequences; player i brings n_i tokens. The step's shared parts (matrix products under the weight-streaming
roof, padding up to a graph size) are worth f(N(S)) with f(x) = x + h(x) and h(x) = 0 beyond a cap, so
phi_i = n_i + (Shapley value of h). h is given as a table, h[0] = 0 (the empty coalition is worth nothing).

Order the players by independent uniform arrival times; player i, arriving at u, meets every other player with
probability u. So phi_i = integral over u of E[h(X_u + n_i) - h(X_u)], X_u the tokens met. A player with n >= cap
("large") makes h vanish for all who come after. With unit players and large ones alone the integral is a Beta
function; small players (1 < n < cap) take Gauss-Legendre nodes in u, exact for the polynomial at hand, and a dynamic
programme over X.
May not know: what h stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import lgamma

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
EXACT_SMALL = 24
"""more small players than this in one step are sampled (efficient by construction, symmetric by averaging)"""
_SAMPLES = 256


class TokenGame:
    """h: shape (rows, cap + 1): several tables at once; the last column and all beyond count as 0."""

    def __init__(self, h: F64) -> None:
        self.h = np.asarray(h, dtype=np.float64).copy()
        self.h[:, -1] = 0.0
        self.cap = self.h.shape[1] - 1
        self._pairs: list[tuple[float, ...]] = [tuple(column) for column in self.h.T.tolist()]
        self._units = lru_cache(maxsize=65_536)(self._units_uncached)

    def at(self, tokens: int) -> F64:
        """h(tokens), shape (rows,)."""
        out: F64 = self.h[:, tokens] if tokens < self.cap else np.zeros(len(self.h))
        return out

    def pair(self, tokens: int) -> tuple[float, ...]:
        """h(tokens) as plain floats, one per row."""
        pair: tuple[float, ...] = self._pairs[min(tokens, self.cap)]
        return pair

    def shapley(self, units: int, chunks: Sequence[int], size: int = 1) -> tuple[F64, list[F64]]:
        """Shapley value of h: of each of `units` players with `size` tokens, shape (rows,), and of each further one."""
        cap = self.cap
        if units and size >= cap:  # they are large players themselves
            _, each_one = self.shapley(0, [size] * units + list(chunks))
            return each_one[0], each_one[units:]
        small = [n for n in chunks if n < cap]
        large = len(chunks) - len(small)
        if not small:
            unit = self._units(units, large, size)
            if not large:
                return unit, []
            # By symmetry the large players share what remains: h of all players together is 0.
            rest = -units * unit / large
            return unit, [rest] * large
        unit, each = self._with_small(units, tuple(sorted(small)), large, size)
        total = self.at(units * size + sum(chunks))
        given = units * unit + sum(each[n] for n in small)
        rest = (total - given) / large if large else np.zeros(len(self.h))
        return unit, [each[n] if n < cap else rest for n in chunks]

    def _units_uncached(self, units: int, large: int, size: int) -> F64:
        """Closed form for unit players among `units` of their kind and `large` large ones."""
        if units == 0:
            return np.zeros(len(self.h))
        if large == 0:
            out: F64 = self.at(units * size) / units
            return out
        # P(x of the other units came before and no large one) = C(k-1, x) B(x+1, k-x+l), k = units, l = large;
        # ratio of neighbours: P(x+1) / P(x) = (k-1-x) / (k-x-1+l).
        k = units
        top = min(k, -(-self.cap // size))
        x = np.arange(top - 1)
        ratios = (k - 1 - x) / (k - 1 - x + large)
        p = np.concatenate(([1.0], np.cumprod(ratios))) / (k + large)
        steps = self.h[:, np.minimum(np.arange(top + 1) * size, self.cap)]
        shared: F64 = np.diff(steps, axis=1) @ p
        return shared

    def _with_small(self, units: int, small: tuple[int, ...], large: int, size: int) -> tuple[F64, dict[int, F64]]:
        if len(small) > EXACT_SMALL:
            return self._sampled(units, small, large, size)
        players = units + len(small) + large
        u, w = _nodes(min((players + 1) // 2, 96))
        w = w * (1 - u) ** large
        base = _binomial(units, u, self.cap, size)
        each: dict[int, F64] = {}
        for n, rest in _leave_one_out(base, small, u):
            each[n] = self._expected_gain(rest, w, n)
        if not units:
            return np.zeros(len(self.h)), each
        others = _add_all(_binomial(units - 1, u, self.cap, size), small, u)
        unit = self._expected_gain(others, w, size)
        if not large:  # efficiency holds up to quadrature error: put the remainder where it came from, evenly
            gap = self.at(units * size + sum(small)) - units * unit - sum(each[n] for n in small)
            share = gap / (units + len(small))
            return unit + share, {n: value + share for n, value in each.items()}
        return unit, each

    def _expected_gain(self, others: F64, w: F64, n: int) -> F64:
        shifted = np.zeros_like(self.h)
        shifted[:, : self.cap + 1 - n] = self.h[:, n:]
        return (shifted - self.h) @ (w @ others)

    def _sampled(self, units: int, small: tuple[int, ...], large: int, size: int) -> tuple[F64, dict[int, F64]]:
        """Permutation sampling; each permutation's gains telescope to h(all), equal players get their mean."""
        sizes = np.concatenate((np.full(units, size), np.array(small), np.full(large, self.cap)))
        rng = np.random.default_rng(len(sizes) * 7919 + int(sizes.sum()))
        orders = np.argsort(rng.random((_SAMPLES, len(sizes))), axis=1)
        sums = np.minimum(np.cumsum(sizes[orders], axis=1), self.cap)
        worth = self.h[:, sums]
        gains = np.diff(worth, axis=2, prepend=0.0)
        mean = np.zeros((len(self.h), len(sizes)))
        for row in range(len(self.h)):
            mean[row] = np.bincount(orders.ravel(), weights=gains[row].ravel(), minlength=len(sizes)) / _SAMPLES
        unit = mean[:, :units].mean(axis=1) if units else np.zeros(len(self.h))
        kinds = sizes[units : units + len(small)]
        each = {int(n): mean[:, units : units + len(small)][:, kinds == n].mean(axis=1) for n in np.unique(kinds)}
        return unit, each


@lru_cache(maxsize=256)
def _nodes(n: int) -> tuple[F64, F64]:
    """Gauss-Legendre on [0, 1], exact for polynomials of degree 2n - 1."""
    x, w = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, w / 2


def _binomial(k: int, u: F64, cap: int, size: int) -> F64:
    """P(x tokens of k players of `size` met), shape (nodes, cap + 1); mass beyond the cap is dropped (h is 0 there)."""
    x = np.arange(min(k, cap // size) + 1)
    choose = lgamma(k + 1) - np.array([lgamma(i + 1) + lgamma(k - i + 1) for i in x.tolist()])
    out = np.zeros((len(u), cap + 1))
    out[:, x * size] = np.exp(choose + x * np.log(u)[:, None] + (k - x) * np.log1p(-u)[:, None])
    return out


def _add(dist: F64, n: int, u: F64) -> F64:
    out = dist * (1 - u)[:, None]
    out[:, n:] += dist[:, :-n] * u[:, None]
    return out


def _add_all(dist: F64, players: Sequence[int], u: F64) -> F64:
    for n in players:
        dist = _add(dist, n, u)
    return dist


def _leave_one_out(dist: F64, players: tuple[int, ...], u: F64) -> list[tuple[int, F64]]:
    """(n, distribution of all others) for each different size among players, by halving."""
    if len(set(players)) == 1:
        return [(players[0], _add_all(dist, players[1:], u))]
    middle = len(players) // 2
    while players[middle] == players[middle - 1] and middle > 1:
        middle -= 1  # keep equal sizes on one side, so that each size is answered once
    while players[middle] == players[middle - 1]:
        middle += 1
    left, right = players[:middle], players[middle:]
    return _leave_one_out(_add_all(dist, right, u), left, u) + _leave_one_out(_add_all(dist, left, u), right, u)
