"""Tokens in each read of a recording that gives times alone: as many as the engine took steps meanwhile.

How many tokens came in all is known. A server sends each token, or every nth; a reader that was late finds two sends at
once; what is left over comes last. Every sequence that decodes gets a token in every step: so a wait held the steps
that the others' waits say, not those that its length says, which a prompt computed meanwhile makes longer for all.
May not know: files, energy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from energy.reads import of_ranges
from energy.tables import Floats, Ints, RequestTable, known

GUESSED = "guessed"
"""of run.json's read_tokens: the recording gives times of reads alone, attribution looks for the tokens in each"""
FEWEST_READS = 8
"""of a stream that says how many tokens a read holds"""
SHARE = 0.05
"""streams that may contradict a spacing of sends"""
MOST_JOINED = 0.5
"""of a stream's reads that may hold more than one send; of more nobody can say which: drafts were accepted, it seems"""
MOST_READS = 20_000_000
"""beyond these the sort would cost more time than it is worth"""
OWN = 0.15
"""what a stream's own usual pace says of a wait, as a share of what each other stream's says; all, where it is alone"""
ROUNDS, HALVINGS = 2, 24


@dataclass(frozen=True, slots=True)
class _Waits:
    """Waits of the streams that can be told: index of the read that ended it, its stream, begin and length (ns)."""

    read: Ints
    stream: Ints
    begin: Ints
    length: Floats


def with_read_tokens(requests: RequestTable) -> RequestTable:
    """The table with each read's tokens where steps can tell; as it is for streams of which nobody can say."""
    reads = np.diff(requests.read_start) - 1
    rest = np.where(known(requests.completion), requests.completion - 1, 0)
    some = (reads >= 1) & (rest >= reads)
    nth = every_nth(rest[some], reads[some])
    sends = -(-rest // nth)
    some &= (sends >= reads) & (sends - reads <= MOST_JOINED * reads)
    if not np.any(some):
        return requests
    waits = _waits(requests, np.flatnonzero(some))
    held = np.ones(len(waits.read))
    usual = (sends[some] / np.bincount(waits.stream, waits.length))[waits.stream]
    for _ in range(ROUNDS):
        held = _rounded(_passed(waits, held, usual), waits.stream, sends[some])
    tokens = np.array(requests.read_tokens)
    last = np.append(waits.stream[1:] != waits.stream[:-1], True)
    given = held * nth - np.where(last, (sends * nth - rest)[some][waits.stream], 0)
    tokens[requests.read_start[:-1][some]] = 1
    tokens[waits.read] = np.clip(given, 1, np.iinfo(tokens.dtype).max)
    return replace(requests, read_tokens=tokens)


def every_nth(tokens: Ints, reads: Ints) -> int:
    """The spacing of sends, from tokens and reads after the first: the longest that would have given streams as many
    reads as they had."""
    long = reads >= FEWEST_READS
    if not np.any(long):
        return 1
    return max(1, int(np.quantile((tokens[long] - 1) // (reads[long] - 1), SHARE, method="lower")))


def _waits(requests: RequestTable, row: Ints) -> _Waits:
    low, high = requests.read_start[row] + 1, requests.read_start[row + 1]
    stream, read = of_ranges(low, high)
    begin = requests.read_ns[read - 1]
    return _Waits(read, stream, begin, np.maximum(requests.read_ns[read] - begin, 1).astype(float))


def _passed(waits: _Waits, held: Floats, usual: Floats) -> Floats:
    """Sends that passed in each wait by the mean pace of the others who waited at the time, and, with the weight OWN,
    by the stream's own usual pace."""
    n = len(waits.begin)
    pace = held / waits.length
    at = np.concatenate([waits.begin, waits.begin + waits.length.astype(np.int64)])
    order = np.argsort(at, kind="stable")
    paces = np.cumsum(np.concatenate([pace, -pace])[order])
    there = np.maximum(np.cumsum(np.concatenate([np.ones(n), -np.ones(n)])[order]), 1.0)
    step = np.diff(at[order]) / (there[:-1] - 1 + OWN)
    theirs, each = np.empty(2 * n), np.empty(2 * n)
    theirs[order] = np.concatenate([[0.0], np.cumsum(np.maximum(step * paces[:-1], 0.0))])
    each[order] = np.concatenate([[0.0], np.cumsum(step)])
    return theirs[n:] - theirs[:n] + (OWN * usual - pace) * (each[n:] - each[:n])


def _rounded(passed: Floats, stream: Ints, sends: Ints) -> Floats:
    """Whole sends in each wait, at least one, in proportion to those that passed, so that each stream has its number
    or, where several waits are alike, a few less."""
    low, high = np.zeros(len(sends)), np.full(len(sends), 16.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        total = np.bincount(stream, _whole(passed, middle[stream]), len(sends))
        over = total > sends
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return _whole(passed, low[stream])


def _whole(passed: Floats, scale: Floats) -> Floats:
    return np.maximum(np.floor(passed * scale + 0.5), 1.0)
