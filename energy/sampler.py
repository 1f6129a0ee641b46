"""The sampler's decisions: which source is due, what was missed, what a counter that goes backwards means.

`tick(now_ns)` reads what is due and returns the next deadline; deadlines are absolute, equal samples are never dropped,
and whatever the sampler could not see it says in the journal (gap, reset, lost, heartbeat, anchor).
May not know: threads, processes, files; clocks come in as arguments, so it runs in virtual time as it does in real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from energy.source import Missing, Reading, Source
from traces.records import PowerEvent, PowerSample, SensorInfo
from traces.seams import NowNs
from traces.status import HISTOGRAM_BUCKETS, StatusPage, bucket, percentile_ns

HEARTBEAT_NS = 1_000_000_000
ANCHOR_NS = 10_000_000_000
SHOW_NS = 100_000_000
GAP_PERIODS = 3
LOST_AFTER = 3
RETRY_NS = 1_000_000_000
MAX_WATTS = {"cpu": 1_000, "core": 1_000, "uncore": 1_000, "dram": 1_000, "gpu": 3_000, "hbm": 3_000}
MAX_WATTS_OTHER = 20_000
"""No single device draws more: a counter step beyond it is a reset, a gap that could hide a whole wrap is a break."""
Write = Callable[[Any], None]


class Superseded(Exception):
    """A read returned after the watchdog gave it up; its thread may from now on tick this plan alone, nothing else."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.source.name)
        self.plan = plan


@dataclass
class _Sensor:
    """What the sampler remembers of one sensor."""

    info: SensorInfo
    counter: bool
    last: PowerSample | None = None
    """last good sample"""
    failures: int = 0
    lost: bool = False
    slots: tuple[str, str] = ("", "")
    """its names on the status page"""


@dataclass
class Plan:
    """One source and its absolute deadline."""

    source: Source
    poll_ns: int
    due_ns: int
    sensors: dict[str, _Sensor]
    read_ns: int | None = None
    """end of the last read"""
    spent_ns: int = 0
    """time inside all calls so far"""
    cost_ns: int = 0
    """slowest call of late: what is due together is read cheap first, so that a slow call delays no other"""
    since_ns: int | None = None
    """start of the call under way"""
    stuck: bool = False
    """the call under way has been given up"""
    alone: bool = False
    """hung once: has a thread of its own now, so that it never holds up the others again"""


@dataclass
class Totals:
    """What the sampler did so far."""

    ticks: int = 0
    missed: int = 0
    gaps: int = 0
    resets: int = 0
    lost: int = 0
    lateness: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)

    def late_ns(self, q: float) -> int | None:
        """Quantile of the lateness of reads, from the histogram (upper edge of its bucket)."""
        return percentile_ns(self.lateness, q)


def unjoinable(before: PowerSample, after: PowerSample, info: SensorInfo) -> str | None:
    """Why the energy between two readings of a counter cannot be known (reset, or a gap beyond one wrap), or None.

    None means the step is `after - before`, plus wraps_at where that is negative.
    """
    if info.reading != "counter" or before.value is None or after.value is None:
        return None
    step_uj, most_uj = after.value - before.value, _most_uj(before, after, info)
    if info.wraps_at is None:
        return (
            f"the counter went back from {before.value} to {after.value} uJ (driver reload?)" if step_uj < 0 else None
        )
    if most_uj >= info.wraps_at:
        return f"{(after.t0_ns - before.t1_ns) / 1e9:.0f} s without a reading could hide a wrap of {info.wraps_at} uJ"
    if step_uj < 0 and step_uj + info.wraps_at > most_uj:
        return f"the counter went back from {before.value} to {after.value} uJ, too far for a wrap"
    return None


def _most_uj(before: PowerSample, after: PowerSample, info: SensorInfo) -> int:
    """The most energy the device can have drawn between two readings (one update period of slack)."""
    span_ns = after.t1_ns - before.t0_ns + (info.period_ns or 0)
    return MAX_WATTS.get(info.domain, MAX_WATTS_OTHER) * span_ns // 1000


class Sampler:
    """Reads sources at their own absolute deadlines and writes what they show.

    clock: stamps (None: the `now_ns` of tick, for virtual time); cpu_clock, wall_clock: for heartbeats and anchors.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        write: Write,
        *,
        clock: NowNs | None = None,
        cpu_clock: NowNs | None = None,
        wall_clock: NowNs | None = None,
        status: StatusPage | None = None,
        missing: Iterable[Missing] = (),
    ) -> None:
        self._sources = sorted(sources, key=lambda source: source.poll_ns)
        self._write = write
        self._cpu_clock = cpu_clock
        self._wall_clock = wall_clock
        self._status = status
        self._missing = list(missing)
        self._plans: list[Plan] = []
        self._lock = Lock()
        self._late: list[int] = []
        self._now_ns = 0
        self._stamp: NowNs = clock or (lambda: self._now_ns)
        self._show_ns = 0
        self._beat_ns = self._anchor_ns = 0
        self.totals = Totals()

    def status_names(self) -> list[str]:
        """Slots this sampler fills on a status page."""
        return status_names(info for source in self._sources for info in source.infos)

    def start(self, now_ns: int) -> None:
        """Describe every sensor in the journal and set the first deadlines; tick does it by itself when not called."""
        for source in self._sources:
            for info in source.infos:
                self._write(info)
            sensors = {
                i.source: _Sensor(i, i.reading == "counter", slots=(f"{i.source}.value", f"{i.source}.t_ns"))
                for i in source.infos
            }
            self._plans.append(Plan(source, source.poll_ns, now_ns, sensors))
        for missing in self._missing:
            self._write(PowerEvent("lost", now_ns, source=missing.sensor, why=missing.sentence()))
        self._missing = []
        self._beat_ns = now_ns
        self._heartbeat(now_ns)
        self._anchor(now_ns)

    def tick(self, now_ns: int) -> int:
        """Read everything due at now_ns; the next deadline. Raises Superseded in a thread that was given up."""
        if not self._anchor_ns:
            self.start(now_ns)
        for plan in self._plans:
            if plan.due_ns <= now_ns and not plan.alone:
                self._read(plan, now_ns)
        if now_ns >= self._show_ns or now_ns >= self._beat_ns:
            with self._lock:
                self._tell(now_ns)
        due_ns = self._beat_ns
        for plan in self._plans:
            if plan.due_ns < due_ns and not plan.alone:
                due_ns = plan.due_ns
        return due_ns

    def _tell(self, now_ns: int) -> None:
        """What is due beside reading; an anchor falls on a heartbeat."""
        if now_ns >= self._beat_ns:
            self._heartbeat(now_ns)
            if now_ns >= self._anchor_ns:
                self._anchor(now_ns)
        else:
            self._show(now_ns)

    def tick_alone(self, plan: Plan, now_ns: int) -> int:
        """The same for one plan that was superseded, from the thread that got Superseded."""
        if plan.due_ns <= now_ns:
            self._read(plan, now_ns)
        return plan.due_ns

    def stop(self, now_ns: int) -> None:
        """Last heartbeat and anchor."""
        with self._lock:
            if self._anchor_ns:
                self._heartbeat(now_ns)
                self._anchor(now_ns)

    def give_up(self, now_ns: int, limit_ns: int) -> bool:
        """Watchdog, from another thread: declare calls that have not returned for limit_ns lost.

        True when the ticking thread itself hangs: go on ticking in a new one.
        """
        replace = False
        with self._lock:
            for plan in self._plans:
                if plan.since_ns is None or plan.stuck or now_ns - plan.since_ns < limit_ns:
                    continue
                plan.stuck = True
                replace, plan.alone = replace or not plan.alone, True
                self._lose(plan, plan.since_ns, f"the call has not returned for {(now_ns - plan.since_ns) / 1e9:.1f} s")
        return replace

    def _lose(self, plan: Plan, since_ns: int, why: str) -> None:
        for sensor in plan.sensors.values():
            if not sensor.lost:
                sensor.lost = True
                self.totals.lost += 1
                self._write(PowerEvent("lost", since_ns, source=sensor.info.source, why=why))

    def _read(self, plan: Plan, now_ns: int) -> None:
        """One read. The hot path, fifty times a second on cold caches: nothing here that can wait for the heartbeat."""
        self._now_ns = now_ns
        stamp, poll_ns = self._stamp, plan.poll_ns
        began = stamp()
        late = began - plan.due_ns
        skipped = late // poll_ns if late >= poll_ns else 0
        plan.due_ns += (skipped + 1) * poll_ns
        was_alone = plan.alone
        plan.since_ns = began
        readings = plan.source.read(stamp)
        ended = stamp()
        plan.spent_ns += ended - began
        with self._lock:
            plan.since_ns = None
            plan.cost_ns = max(ended - began, plan.cost_ns - (plan.cost_ns >> 7))
            self.totals.ticks += 1
            self._late.append(late if late > 0 else 0)
            if skipped:
                self.totals.missed += skipped
            if plan.stuck:
                plan.stuck = False
            else:
                if plan.read_ns is not None and began - plan.read_ns > GAP_PERIODS * poll_ns:
                    self._gap(
                        plan, plan.read_ns, began, f"{skipped} deadlines missed" if skipped else "not read in time"
                    )
                self._take(plan, readings)
                plan.read_ns = ended
        if plan.alone and not was_alone:
            raise Superseded(plan)

    def _take(self, plan: Plan, readings: list[Reading]) -> None:
        """Write what was read; judge what is out of the ordinary: failed, back again, stepped back, after a pause."""
        write, sensors = self._write, plan.sensors
        for reading in readings:
            write(reading)
            if not isinstance(reading, PowerSample):
                continue
            sensor = sensors[reading.source]
            last, value = sensor.last, reading.value
            if (
                value is None
                or last is None
                or sensor.failures
                or sensor.lost
                or (value < (last.value or 0) and sensor.counter)
                or reading.t0_ns - last.t1_ns > RETRY_NS
            ):
                self._judge(plan, sensor, reading)
            else:
                sensor.last = reading

    def _judge(self, plan: Plan, sensor: _Sensor, sample: PowerSample) -> None:
        """Tell losses, returns and resets."""
        if sample.value is None:
            sensor.failures += 1
            if sensor.failures == LOST_AFTER and not sensor.lost:
                sensor.lost = True
                self.totals.lost += 1
                self._write(PowerEvent("lost", sample.t0_ns, source=sample.source, why=sample.why))
            if all(s.lost for s in plan.sensors.values()):
                plan.due_ns = max(plan.due_ns, sample.t1_ns + RETRY_NS)
            return
        last = sensor.last
        if last is not None:
            if sensor.lost:
                self._event("gap", sensor, last.t1_ns, sample.t0_ns, "the sensor was lost and came back")
            if sample.value < (last.value or 0) or sample.t0_ns - last.t1_ns > RETRY_NS:
                self._check_joint(sensor, last, sample)
        sensor.failures, sensor.lost, sensor.last = 0, False, sample

    def _check_joint(self, sensor: _Sensor, last: PowerSample, sample: PowerSample) -> None:
        """Only a step back or a long pause can break a counter; every other pair of readings joins."""
        if why := unjoinable(last, sample, sensor.info):
            self.totals.resets += 1
            self._write(PowerEvent("reset", last.t1_ns, sample.source, sample.t0_ns, why=why))

    def _gap(self, plan: Plan, since_ns: int, until_ns: int, why: str) -> None:
        for sensor in plan.sensors.values():
            if not sensor.lost:
                self._event("gap", sensor, since_ns, until_ns, why)

    def _event(self, kind: Any, sensor: _Sensor, since_ns: int, until_ns: int, why: str) -> None:
        self.totals.gaps += 1
        self._write(PowerEvent(kind, since_ns, sensor.info.source, until_ns, why=why))

    def _heartbeat(self, now_ns: int) -> None:
        late = sorted(self._late)
        for late_ns in late:
            self.totals.lateness[bucket(late_ns)] += 1
        p99 = late[min(len(late) - 1, int(len(late) * 0.99))] if late else None
        cpu_ns = self._cpu_clock() if self._cpu_clock else None
        totals = self.totals
        self._write(
            PowerEvent(
                "heartbeat",
                now_ns,
                ticks=totals.ticks,
                missed=totals.missed,
                late_p99_ns=p99,
                cpu_ns=cpu_ns,
                call_ns={plan.source.name: plan.spent_ns for plan in self._plans},
            )
        )
        self._late.clear()
        self._plans.sort(key=lambda plan: plan.cost_ns)
        self._beat_ns += HEARTBEAT_NS * (1 + max(0, now_ns - self._beat_ns) // HEARTBEAT_NS)
        self._show(now_ns, {"ticks": totals.ticks, "missed": totals.missed, "cpu_ns": cpu_ns or 0})

    def _show(self, now_ns: int, own: dict[str, int] | None = None) -> None:
        """The newest values on the status page, all at once and no more often than anyone looks."""
        self._show_ns = now_ns + SHOW_NS
        if self._status is None:
            return
        shown = own or {}
        for plan in self._plans:
            for sensor in plan.sensors.values():
                if sensor.last is not None:
                    value, t_ns = sensor.slots
                    shown[value], shown[t_ns] = sensor.last.value or 0, sensor.last.t1_ns
        self._status.set_group(shown)

    def _anchor(self, now_ns: int) -> None:
        """A (monotonic, wall) pair: the tightest of three brackets."""
        self._anchor_ns = now_ns + ANCHOR_NS
        if self._wall_clock is None:
            return
        clock = self._stamp
        pairs = []
        for _ in range(3):
            before, wall, after = clock(), self._wall_clock(), clock()
            pairs.append((after - before, (before + after) // 2, wall))
        _, mono, wall = min(pairs)
        self._write(PowerEvent("anchor", mono, wall_ns=wall))


def status_names(infos: Iterable[SensorInfo]) -> list[str]:
    """Slots of a sampler's status page: its own figures and each sensor's last value."""
    own = ["ticks", "missed", "cpu_ns"]
    return own + [f"{info.source}.{what}" for info in infos for what in ("value", "t_ns")]
