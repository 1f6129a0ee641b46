"""Reading a counter once per update: few reads, each fresh, whatever the phase, the drift and the jitter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from energy.edges import EdgeLocked
from energy.source import Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

MS = 1_000_000
PERIOD, TICK = 100 * MS, 20 * MS


class Updating:
    """A counter with updates at given instants; remembers how old the value was at each read."""

    name = "c"
    infos = (SensorInfo("c", "gpu", "gpu0", "counter", "uJ", PERIOD, 1000),)
    poll_ns = PERIOD

    def __init__(self, updates: list[int]) -> None:
        self._updates = updates
        self.ages: list[int] = []

    def read(self, now_ns: NowNs) -> list[Reading]:
        t = now_ns()
        count = sum(u <= t for u in self._updates)
        self.ages.append(t - self._updates[count - 1] if count else 0)
        return [PowerSample("c", t, t, count * 1000)]

    def close(self) -> None:
        pass


@given(
    phase=st.integers(0, 99),
    drift_us=st.integers(-300, 300),
    jitter=st.lists(st.integers(-3, 3), min_size=20, max_size=20),
)
def test_reads_are_few_and_fresh(phase: int, drift_us: int, jitter: list[int]) -> None:
    """At most 1.5 reads per update, and after settling nearly every one within two ticks of the edge."""
    count = 200
    updates = [phase * MS + k * (PERIOD + drift_us * 1000) + jitter[k % 20] * MS for k in range(count + 2)]
    counter = Updating(updates)
    source = EdgeLocked(counter, PERIOD)
    assert source.poll_ns == TICK
    seen = 0
    for t in range(0, count * (PERIOD - 300_000), TICK):
        seen += len(source.read(lambda t=t: t))  # type: ignore[misc]
    assert seen == len(counter.ages)
    assert seen <= 1.5 * count
    settled = counter.ages[20:]
    fresh = sum(age <= 2 * TICK + 6 * MS or age >= PERIOD - 10 * MS for age in settled)
    assert fresh >= 0.9 * len(settled)


def test_no_update_is_missed() -> None:
    counter = Updating([k * PERIOD for k in range(1, 300)])
    source = EdgeLocked(counter, PERIOD)
    values = [r.value for t in range(0, 250 * PERIOD, TICK) for r in source.read(lambda t=t: t)]  # type: ignore[misc,union-attr]
    assert sorted({v for v in values if v is not None}) == [1000 * k for k in range(250)]


def test_a_counter_that_stands_still_is_not_hammered() -> None:
    counter = Updating([0])
    source = EdgeLocked(counter, PERIOD)
    for t in range(0, 100 * PERIOD, TICK):
        source.read(lambda t=t: t)  # type: ignore[misc]
    assert len(counter.ages) < 130


def test_a_failing_counter_is_asked_once_per_period() -> None:
    class Failing(Updating):
        def read(self, now_ns: NowNs) -> list[Reading]:
            self.ages.append(0)
            return [PowerSample("c", now_ns(), now_ns(), None, "lost")]

    counter = Failing([0])
    source = EdgeLocked(counter, PERIOD)
    for t in range(0, 100 * PERIOD, TICK):
        source.read(lambda t=t: t)  # type: ignore[misc]
    assert 90 <= len(counter.ages) <= 110
