"""Negative controls: damage that must show. A validation that survives them proves nothing.

Each must at least double the median error. Lag wrong by a second
at low load; token times shuffled across requests; ids swapped between requests that differ twofold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from energy.tables import NONE, Ints, RequestTable, RunData
from joulegraph.validation.runs import Synthetic

LAG_ERROR_S = 1.0


def shuffled_times(run: Synthetic, seed: int) -> RunData:
    """Every request keeps its usage and takes the stamps of another."""
    table = run.data.requests
    order = np.random.default_rng([seed, 31]).permutation(len(table))
    return replace(run.data, requests=_with_times_of(table, order), steps=None)


def swapped_ids(run: Synthetic, seed: int) -> RunData:
    """Requests change identity with one that drew at least twice as much: stamps and usage change places."""
    truth = run.truth.sum(1)
    rank = np.argsort(truth)
    n = len(rank)
    order = np.arange(n)
    low, high = rank[: n // 2], rank[n - n // 2 :]
    pairs = truth[high] >= 2 * truth[low]
    order[low[pairs]], order[high[pairs]] = high[pairs], low[pairs]
    table = _with_times_of(run.data.requests, order)
    old = run.data.requests
    return replace(
        run.data,
        requests=replace(table, prompt=old.prompt[order], cached=old.cached[order], completion=old.completion[order]),
    )


def _with_times_of(table: RequestTable, order: Ints) -> RequestTable:
    counts = np.diff(table.read_start)[order]
    begin = table.read_start[:-1][order]
    flat = np.repeat(begin - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
    names = ("sent_ns", "first_ns", "last_ns", "end_ns", "queue_ns", "prefill_ns", "decode_ns")
    times = {n: getattr(table, n)[order] for n in names}
    return replace(
        table,
        sent_ns=times["sent_ns"],
        first_ns=times["first_ns"],
        last_ns=times["last_ns"],
        end_ns=times["end_ns"],
        queue_ns=np.full(len(table), NONE),
        prefill_ns=np.full(len(table), NONE),
        decode_ns=np.full(len(table), NONE),
        read_start=np.concatenate([[0], np.cumsum(counts)]),
        read_ns=table.read_ns[flat],
        read_tokens=table.read_tokens[flat],
    )


CONTROLS: dict[str, tuple[str, Callable[[Synthetic, int], RunData] | None]] = {
    "lag_wrong_by_1s": ("low-load", None),
    "token_times_shuffled": ("chat", shuffled_times),
    "ids_swapped": ("chat", swapped_ids),
}
"""name -> (mix, damage to the tables; None: the lag found is moved by LAG_ERROR_S)"""
