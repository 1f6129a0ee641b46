"""The sampler in virtual time: deadlines, gaps, resets, losses, hangs; energy exact under any wrap and jitter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.judging import unjoinable
from energy.sampler import HEARTBEAT_NS, Sampler, Superseded
from energy.source import Missing, Reading
from energy.summary import summarise
from traces.records import PowerEvent, PowerSample, SensorInfo
from traces.seams import NowNs
from traces.status import StatusPage, StatusReader

MS = 1_000_000
S = 1_000_000_000


def info(
    name: str = "x.energy", *, wraps_at: int | None = None, domain: str = "cpu", period_ns: int | None = MS
) -> SensorInfo:
    return SensorInfo(name, domain, "x0", "counter", "uJ", period_ns, 1, wraps_at)


class FunctionSource:
    """A counter whose value is a function of the time of the read (None: the read fails)."""

    def __init__(
        self, value: Callable[[int], int | None], about: SensorInfo | None = None, poll_ns: int = 20 * MS
    ) -> None:
        about = about or info()
        self.name = about.source
        self.infos: tuple[SensorInfo, ...] = (about,)
        self.poll_ns = poll_ns
        self.reads: list[int] = []
        self._value = value

    def read(self, now_ns: NowNs) -> list[Reading]:
        t = now_ns()
        self.reads.append(t)
        value = self._value(t)
        return [PowerSample(self.name, t, t, value, None if value is not None else "scripted failure")]

    def close(self) -> None:
        pass


def run(source: FunctionSource, instants: list[int]) -> tuple[list[Any], Sampler]:
    records: list[Any] = []
    sampler = Sampler([source], records.append)
    for t in instants:
        sampler.tick(t)
    return records, sampler


def events(records: list[Any], kind: str) -> list[PowerEvent]:
    return [r for r in records if isinstance(r, PowerEvent) and r.kind == kind]


def test_deadlines_are_absolute_and_equal_samples_are_kept() -> None:
    source = FunctionSource(lambda t: 5)
    records: list[Any] = []
    sampler = Sampler([source], records.append)
    now = 7
    for _ in range(1000):
        now = sampler.tick(now) + 3 * MS  # every wake 3 ms late: no drift may build up
    reads = [t for t in source.reads[1:] if (t - 7 - 3 * MS) % (20 * MS) == 0]
    assert len(reads) == len(source.reads) - 1
    assert sampler.totals.missed == 0
    assert sum(isinstance(r, PowerSample) for r in records) == len(source.reads)


def test_missed_deadlines_are_counted_and_a_long_pause_is_a_gap() -> None:
    records, sampler = run(FunctionSource(lambda t: t // 1000), [0, 20 * MS, 40 * MS, 205 * MS, 220 * MS])
    assert sampler.totals.missed == 7
    [gap] = events(records, "gap")
    assert (gap.t_ns, gap.until_ns, gap.source) == (40 * MS, 205 * MS, "x.energy")


def test_fast_and_slow_sources_keep_their_own_periods() -> None:
    fast, slow = FunctionSource(lambda t: 1), FunctionSource(lambda t: 2, info("y.energy"), poll_ns=100 * MS)
    sampler = Sampler([slow, fast], lambda record: None)
    now = 0
    while now < S:
        now = sampler.tick(now)
    assert (len(fast.reads), len(slow.reads)) == (50, 10)


def test_heartbeats_and_anchors_carry_the_samplers_own_figures() -> None:
    records: list[Any] = []
    now = [0]
    sampler = Sampler(
        [FunctionSource(lambda t: 1)],
        records.append,
        clock=lambda: now[0],
        cpu_clock=lambda: now[0] // 100,
        wall_clock=lambda: now[0] + 10**18,
    )
    while now[0] <= 12 * S:
        now[0] = sampler.tick(now[0])
    sampler.stop(now[0])
    beats = events(records, "heartbeat")
    assert [b.t_ns for b in beats[:4]] == [0, HEARTBEAT_NS, 2 * HEARTBEAT_NS, 3 * HEARTBEAT_NS]
    assert beats[3].ticks == 151
    assert beats[3].late_p99_ns == 0
    assert [a.t_ns for a in events(records, "anchor")] == [0, 10 * S, now[0]]
    assert all(a.wall_ns == a.t_ns + 10**18 for a in events(records, "anchor"))
    assert summarise(asdict(r) for r in records).cpu_share == pytest.approx(0.01)


def test_a_failing_sensor_is_lost_retried_slowly_and_its_return_is_a_gap() -> None:
    source = FunctionSource(lambda t: None if S <= t < 5 * S else t)
    records: list[Any] = []
    sampler = Sampler([source], records.append)
    now = 0
    while now < 7 * S:
        now = sampler.tick(now)
    [lost] = events(records, "lost")
    assert lost.why == "scripted failure"
    [gap] = events(records, "gap")
    assert gap.t_ns < S < 5 * S <= (gap.until_ns or 0) <= 6 * S + 20 * MS
    assert sum(S <= t < 5 * S for t in source.reads) < 12
    failed = [r for r in records if isinstance(r, PowerSample) and r.value is None]
    assert failed
    assert all(r.why for r in failed)


def test_missing_sensors_stand_in_the_journal_with_their_remedy() -> None:
    records: list[Any] = []
    Sampler([], records.append, missing=[Missing("rapl", "closed", "open it")]).tick(5)
    [lost] = events(records, "lost")
    assert (lost.source, lost.why) == ("rapl", "closed; open it")


def test_a_hanging_call_is_left_behind_and_never_holds_up_the_others_again() -> None:
    records: list[Any] = []
    now = [0]
    hanging = FunctionSource(lambda t: t)
    steady = FunctionSource(lambda t: t, info("steady.energy"))
    sampler = Sampler([hanging, steady], records.append, clock=lambda: now[0])
    now[0] = sampler.tick(0)

    def hang(t: int) -> int:
        """While this call hangs, the watchdog gives it up and another thread ticks on."""
        hanging._value = lambda t: t
        now[0] += S
        assert sampler.give_up(now[0], S // 2)
        assert not sampler.give_up(now[0], S // 2)
        for _ in range(10):
            now[0] = sampler.tick(now[0])
        return t

    hanging._value = hang
    with pytest.raises(Superseded) as caught:
        sampler.tick(now[0])
    assert len(steady.reads) > 10
    reads = len(hanging.reads)
    for _ in range(5):
        now[0] = sampler.tick(now[0])
    assert len(hanging.reads) == reads, "the others' thread never calls it again"
    plan = caught.value.plan
    for _ in range(5):
        now[0] = sampler.tick_alone(plan, now[0])
    assert len(hanging.reads) > reads, "its own thread does"
    [lost] = [e for e in events(records, "lost") if e.source == "x.energy"]
    assert "not returned" in (lost.why or "")
    gap = [e for e in events(records, "gap") if e.source == "x.energy"][-1]
    assert gap.until_ns is not None
    assert gap.until_ns - gap.t_ns > S


def test_the_status_page_shows_the_last_value() -> None:
    source = FunctionSource(lambda t: t + 1)
    page = StatusPage(Sampler([source], lambda r: None).status_names())
    sampler = Sampler([source], lambda r: None, status=page)
    sampler.tick(0)
    sampler.tick(HEARTBEAT_NS)
    shown = StatusReader(page).all()
    assert shown["x.energy.value"] == HEARTBEAT_NS + 1
    assert shown["x.energy.t_ns"] == HEARTBEAT_NS
    assert shown["ticks"] == 2


RANGE = 65_532_610_987


@given(
    start=st.integers(0, RANGE - 1),
    steps=st.lists(
        st.tuples(st.integers(MS, 3 * S), st.integers(0, 900)),  # poll jitter and gaps (ns), watts
        min_size=1,
        max_size=60,
    ),
    wraps=st.booleans(),
)
def test_energy_is_exact_for_any_wrap_gap_and_jitter(start: int, steps: list[tuple[int, int]], wraps: bool) -> None:
    """Whatever the polling, the unwrapped energy equals the drawn energy to the microjoule."""
    instants, drawn = [0], [0]
    for span_ns, watts in steps:
        instants.append(instants[-1] + span_ns)
        drawn.append(drawn[-1] + watts * span_ns // 1000)
    table = dict(zip(instants, drawn, strict=True))
    source = FunctionSource(
        lambda t: (start + table[t]) % RANGE if wraps else start + table[t],
        info(wraps_at=RANGE if wraps else None),
        poll_ns=1,
    )
    records, sampler = run(source, instants)
    summary = summarise(asdict(r) for r in records)
    assert summary.sensors["x.energy"].energy_uj == drawn[-1]
    assert sampler.totals.resets == 0


@given(
    before=st.integers(1, RANGE - 1),
    keep=st.floats(0, 0.9),
    after_step=st.integers(0, 10_000_000),
    wraps_at=st.sampled_from([None, 262_143_328_850]),
    span_ns=st.integers(MS, 10 * S),
)
def test_a_reset_is_never_taken_for_energy(
    before: int, keep: float, after_step: int, wraps_at: int | None, span_ns: int
) -> None:
    """A counter set back (driver reload) is marked, and no energy is invented for the step."""
    after = int(before * keep)
    source = FunctionSource(lambda t: before if t == 0 else after, info(wraps_at=wraps_at), poll_ns=1)
    records, _ = run(source, [0, span_ns])
    assert summarise(asdict(r) for r in records).sensors["x.energy"].energy_uj in (None, 0) if after < before else True
    assert len(events(records, "reset")) == (1 if after < before else 0)


@pytest.mark.parametrize(
    ("watts", "gap_s", "known"),
    [(300, 30, True), (300, 60, True), (300, 70, False), (0, 600, False), (0, 60, True)],
)
def test_a_gap_beyond_one_wrap_is_unmeasured_even_if_the_counter_rose(watts: int, gap_s: int, known: bool) -> None:
    about = info(wraps_at=RANGE)
    end = (watts * gap_s * 1_000_000) % RANGE
    first, second = PowerSample("x", 0, 0, 0), PowerSample("x", gap_s * S, gap_s * S, end)
    assert (unjoinable(first, second, about) is None) == known
