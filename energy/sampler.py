"""The sampler's shell of decisions: which source is due, what was missed, when a call that hangs is given up.

`tick(now_ns)` reads what is due and returns the next deadline; deadlines are absolute, equal samples are never dropped,
and whatever the sampler could not see it says in the journal (gap, reset, lost, heartbeat, anchor).
A tick only takes: fifty times a second after a sleep, everything it touches is cold and costs several times its worth.
What was taken is told apart, judged and written in batches, every `settle_ns`.
May not know: threads, processes, files; clocks come in as arguments, so it runs in virtual time as it does in real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from energy.judging import RETRY_NS, Judge, Write
from energy.source import Grabs, Missing, Reading, Source, Waits
from traces.records import PowerEvent, PowerSample, SensorInfo
from traces.seams import NowNs
from traces.status import HISTOGRAM_BUCKETS, StatusPage, bucket, percentile_ns

HEARTBEAT_NS = 1_000_000_000
ANCHOR_NS = 10_000_000_000
GAP_PERIODS = 3


class Superseded(Exception):
    """A read returned after the watchdog gave it up; its thread may from now on tick this plan alone, nothing else."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.source.name)
        self.plan = plan


@dataclass(slots=True)
class Plan:
    """One source and its absolute deadline."""

    source: Source
    due_ns: int
    poll_ns: int
    grab: Callable[[NowNs], Any]
    readings: Callable[[Any], list[Reading]]
    due: Callable[[int], bool] | None = None
    """of a source that waits: whether it takes the read that it is offered"""
    gap_ns: int = 0
    """a pause between reads that is longer is a gap"""
    read_ns: int | None = None
    """end of the last read that was kept"""
    spent_ns: int = 0
    """time inside all calls so far"""
    cost_ns: float = 0.0
    """slowest call of late: what is due together is read cheap first, so that a slow call delays no other"""
    since_ns: int | None = None
    """start of the call under way"""
    stuck: bool = False
    """the call under way has been given up"""
    alone: bool = False
    """hung once: has a thread of its own now, so that it never holds up the others again"""

    @classmethod
    def of(cls, source: Source, due_ns: int) -> Plan:
        """A source that can grab is asked to; any other is read and its readings are taken as they are."""
        grab, readings = (source.grab, source.readings) if isinstance(source, Grabs) else (source.read, _as_read)
        due, every = (source.due, source.period_ns) if isinstance(source, Waits) else (None, source.poll_ns)
        return cls(source, due_ns, source.poll_ns, grab, readings, due, GAP_PERIODS * every)


def _as_read(readings: list[Reading]) -> list[Reading]:
    return readings


_Taken = tuple[Plan, int, int, int, Any]
"""One read: deadline, begin, end, what was grabbed (None when the watchdog gave it up)."""


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


class Sampler:
    """Reads sources at their own absolute deadlines and writes what they show.

    clock: stamps (None: the `now_ns` of tick, for virtual time); cpu_clock, wall_clock: for heartbeats and anchors;
    settle_ns: how long what was taken may wait before it is judged and written (0: not at all).
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
        settle_ns: int = 0,
    ) -> None:
        self._sources = sorted(sources, key=lambda source: source.poll_ns)
        self._write = write
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._wall_clock = wall_clock
        self._status = status
        self._missing = list(missing)
        self._settle_every_ns = settle_ns
        self._plans: list[Plan] = []
        self._judge = Judge((info for source in self._sources for info in source.infos), write)
        self._lock = Lock()
        self._taken: list[_Taken] = []
        self._late: list[int] = []
        self._settle_ns = self._beat_ns = self._anchor_ns = 0
        self.totals = Totals()

    def status_names(self) -> list[str]:
        """Slots this sampler fills on a status page."""
        return status_names(info for source in self._sources for info in source.infos)

    def start(self, now_ns: int) -> None:
        """Describe every sensor in the journal and set the first deadlines; tick does it by itself when not called."""
        for source in self._sources:
            for info in source.infos:
                self._write(info)
        self._plans = [Plan.of(source, now_ns) for source in self._sources]
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
        if now_ns >= self._settle_ns:
            self._settle_all(now_ns)
        next_ns = self._beat_ns
        for plan in self._plans:
            if plan.due_ns < next_ns and not plan.alone:
                next_ns = plan.due_ns
        return next_ns

    def tick_alone(self, plan: Plan, now_ns: int) -> int:
        """The same for one plan that was superseded, from the thread that got Superseded."""
        if plan.due_ns <= now_ns:
            self._read(plan, now_ns)
        if now_ns >= self._settle_ns:
            self._settle_all(now_ns)
        return plan.due_ns

    def stop(self, now_ns: int) -> None:
        """Write what was taken, the last heartbeat and anchor."""
        with self._lock:
            if self._anchor_ns:
                self._settle()
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
                self._settle()
                plan.stuck = True
                replace, plan.alone = replace or not plan.alone, True
                why = f"the call has not returned for {(now_ns - plan.since_ns) / 1e9:.1f} s"
                self._judge.lose(plan.source.infos, plan.since_ns, why)
        return replace

    def _read(self, plan: Plan, now_ns: int) -> None:
        """One call; nothing of what it gave is looked at yet."""
        clock = self._clock or (lambda: now_ns)
        due_ns, was_alone = plan.due_ns, plan.alone
        if plan.due is not None and not plan.due(now_ns):
            plan.due_ns = due_ns + plan.poll_ns
            return
        plan.since_ns = began = clock()
        plan.due_ns = next_ns = due_ns + plan.poll_ns
        if began >= next_ns:
            plan.due_ns += (began - due_ns) // plan.poll_ns * plan.poll_ns
        raw = plan.grab(clock)
        ended = clock()
        with self._lock:
            plan.since_ns = None
            if plan.stuck:
                plan.stuck, raw = False, None
            self._taken.append((plan, due_ns, began, ended, raw))
        if plan.alone and not was_alone:
            raise Superseded(plan)

    def _settle_all(self, now_ns: int) -> None:
        with self._lock:
            self._settle()
            if now_ns >= self._beat_ns:
                self._heartbeat(now_ns)
            if now_ns >= self._anchor_ns:
                self._anchor(now_ns)
            if self._status is not None:
                self._status.set_group(self._judge.newest())
            self._settle_ns = min(now_ns + self._settle_every_ns, self._beat_ns)

    def _settle(self) -> None:
        """Judge and write everything taken since the last time. Under the lock."""
        taken, self._taken = self._taken, []
        totals, judge = self.totals, self._judge
        for plan, due, began, ended, raw in taken:
            late = max(0, began - due)
            skipped = late // plan.poll_ns
            totals.ticks += 1
            totals.missed += skipped
            totals.lateness[bucket(late)] += 1
            self._late.append(late)
            plan.spent_ns += ended - began
            plan.cost_ns = max(0.99 * plan.cost_ns, ended - began)
            if raw is not None:
                why = f"{skipped} deadlines missed" if skipped else "not read in time"
                self._keep(plan, began, ended, why, plan.readings(raw))
        totals.gaps, totals.resets, totals.lost = judge.gaps, judge.resets, judge.lost

    def _keep(self, plan: Plan, began: int, ended: int, why: str, readings: list[Reading]) -> None:
        """The readings of one call into the journal, and what is to be said of them."""
        if plan.read_ns is not None and began - plan.read_ns > plan.gap_ns:
            self._judge.unread(plan.source.infos, plan.read_ns, began, why)
        plan.read_ns = ended
        failed = False
        for reading in readings:
            self._write(reading)
            if isinstance(reading, PowerSample):
                self._judge.take(reading)
                failed = failed or reading.value is None
        if failed and self._judge.all_lost(plan.source.infos):
            plan.due_ns = max(plan.due_ns, ended + RETRY_NS)

    def _heartbeat(self, now_ns: int) -> None:
        late = sorted(self._late)
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
        self._plans = sorted(self._plans, key=lambda plan: plan.cost_ns)
        self._beat_ns += HEARTBEAT_NS * (1 + max(0, now_ns - self._beat_ns) // HEARTBEAT_NS)
        if self._status is not None:
            self._status.set_group({"ticks": totals.ticks, "missed": totals.missed, "cpu_ns": cpu_ns or 0})

    def _anchor(self, now_ns: int) -> None:
        """A (monotonic, wall) pair: the tightest of three brackets."""
        self._anchor_ns = now_ns + ANCHOR_NS
        if self._wall_clock is None:
            return
        clock = self._clock or (lambda: now_ns)
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
