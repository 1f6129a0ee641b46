"""Foreign clocks: an injected offset of 250 ms and a drift of 50 ppm are found, and stamps come home."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clocks import Mapping, Reading, mapped, measure

MS = 1_000_000
S = 1_000_000_000


class SimulatedPair:
    """Our clock and another, with a network between that takes uneven time each way."""

    def __init__(self, offset_ns: int, drift_ppm: float, delays: list[int]) -> None:
        self.now = 7 * S
        self.offset_ns, self.drift_ppm, self.delays = offset_ns, drift_ppm, delays
        self.used = 0

    def ours(self) -> int:
        return self.now

    def theirs_at(self, at: int) -> int:
        return at + self.offset_ns + round((at - 7 * S) * self.drift_ppm / 1e6)

    def ask(self) -> int:
        for _ in range(2):
            self.now += self.delays[self.used % len(self.delays)]
            self.used += 1
            if self.used % 2 == 1:
                shown = self.theirs_at(self.now)
        return shown


delays = st.lists(st.integers(1_000, 3 * MS), min_size=2, max_size=64)


@given(st.integers(-(10**12), 10**12), delays)
def test_the_offset_lies_within_the_stated_error(offset: int, chosen: list[int]) -> None:
    pair = SimulatedPair(offset, 0.0, chosen)
    got = measure(pair.ask, pair.ours)
    assert abs(got.offset_ns - offset) <= got.error_ns + 1


@given(delays)
def test_250_ms_and_50_ppm_are_found_and_undone(chosen: list[int]) -> None:
    pair = SimulatedPair(250 * MS, 50.0, chosen)
    first = measure(pair.ask, pair.ours)
    pair.now += 600 * S
    last = measure(pair.ask, pair.ours)
    mapping = Mapping(first, last)
    bound = mapping.error_ns + 1_000
    assert abs(mapping.first.offset_ns - 250 * MS) <= bound + 10 * S // 20_000
    assert mapping.drift_ppm == pytest.approx(50, abs=2 * bound / 600e9 * 1e6 + 0.01)
    for at in range(8 * S, 600 * S, 37 * S):
        assert abs(mapping.ours(pair.theirs_at(at)) - at) <= bound


@given(st.integers(0, 10**14), st.integers(-(10**9), 10**9), st.integers(-(10**5), 10**5))
def test_there_and_back(at: int, offset: int, change: int) -> None:
    mapping = Mapping(Reading(S, offset, 10), Reading(100 * S, offset + change, 20))
    assert abs(mapping.ours(mapping.theirs(at)) - at) <= 2
    assert mapping.error_ns == 20


def test_one_reading_knows_no_drift() -> None:
    reading = Reading(5, 250, 3)
    mapping = Mapping(reading, reading)
    assert mapping.drift_ppm is None and mapping.ours(mapping.theirs(77)) == 77
    assert mapping.as_json() == {"offset_ns": 250, "error_ns": 3, "drift_ppm": None, "span_ns": 0}
    row = {"request_id": "a", "due_ns": 1250, "t_end_ns": 1260, "t_sent_ns": None, "read_dt_ns": [3]}
    assert mapped(row, mapping) == row | {"due_ns": 1000, "t_end_ns": 1010}
