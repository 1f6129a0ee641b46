"""All runs of a sweep, one after another: engines kept while they fit, finished runs skipped, failures recorded.

A sweep directory holds sweep.json (what was asked), outcomes.jsonl (one line per run that ended, however), traces/,
runs/<point>-r<repeat>/, and what tables and plots write. Killed at any instant it goes on where it was.
May not know: how figures are derived.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from joulegraph.interrupts import told_to
from joulegraph.sweep.config import VIRTUAL, Point, Sweep
from joulegraph.sweep.launch import Keeper
from joulegraph.sweep.plan import Slot, clock, eta_s, order
from joulegraph.sweep.play import Task, finish, play
from joulegraph.sweep.setup import trace_of, unable
from joulegraph.sweep.workers import Workers
from traces.errors import UserError
from traces.rundir import RunDir


@dataclass
class Stop:
    """Ctrl-C: the first ends the sweep after the present point, the second reaches the point itself."""

    count: int = 0
    leaves_at: int = 2
    """a point in a process of its own drains at the second and leaves at the third"""

    def __call__(self, number: int, frame: object) -> None:
        self.count += 1
        sys.stderr.write(
            "\njoulegraph: this point is finished first; Ctrl-C again leaves it\n" if self.count == 1 else "\n"
        )
        if self.count >= self.leaves_at:
            raise KeyboardInterrupt


@dataclass
class Driver:
    """The state of one invocation. jobs: virtual points played side by side, each in a worker process."""

    sweep: Sweep
    out: Path
    retry: bool = False
    quiet: bool = False
    jobs: int = 1
    stop: Stop = field(default_factory=Stop)

    def run(self) -> dict[str, int]:
        """Play what is left; how many runs are done, failed and left."""
        slots = order(self.sweep.points, self.sweep.repeats, self.sweep.seed)
        self._prepare(slots)
        todo = [slot for slot in slots if self._over(slot) not in (("done",) if self.retry else ("done", "failed"))]
        self.keeper = Keeper(self.sweep, self.out, self._warm_up)
        self.workers = Workers(min(self.jobs, sum(slot.point.kind in VIRTUAL for slot in todo)))
        with told_to(Stop()) as self.stop:
            try:
                self._all(todo, len(slots))
            except KeyboardInterrupt:
                why = f"left by a further Ctrl-C; whole runs are kept, the same command goes on in {self.out}"
                raise KeyboardInterrupt(why) from None
            finally:
                self.workers.close()
                self.keeper.stop()
        states = [self._over(slot) for slot in slots]
        return {name: sum(s == name for s in states) for name in ("done", "failed")} | {"left": states.count(None)}

    def _all(self, todo: list[Slot], of: int) -> None:
        began = time.monotonic()
        tried = [self._unable(slot) is None for slot in todo]
        for index, slot in enumerate(todo):
            if self.stop.count:
                break
            beside = slot.point.kind in VIRTUAL and self.jobs > 1
            # What runs in real time is measured: nothing may run beside it.
            self._collect(self.jobs - 1 if beside else 0)
            if index:
                self._cool(slot)
            ended = tried[:index].count(True) - len(self.workers.busy)
            left_s = eta_s(time.monotonic() - began, ended, tried.count(True) - ended)
            self._say(f"{of - len(todo) + index + 1}/{of}", slot, left_s)
            self.stop.leaves_at = 2 if slot.point.kind in VIRTUAL else 3
            self._play(slot, beside)
        self._collect(0)

    def _collect(self, most: int) -> None:
        """Take results until at most `most` points are under way beside this process."""
        while len(self.workers.busy) > most:
            for slot, why in self.workers.ended():
                self._note(slot, why)

    def _prepare(self, slots: list[Slot]) -> None:
        (self.out / "runs").mkdir(parents=True, exist_ok=True)
        plan = {
            "version": 1,
            "sweep": {**asdict(self.sweep), "points": None},
            "points": {p.key(): p.factors() for p in self.sweep.points},
            "order": [slot.name for slot in slots],
        }
        part = self.out / "sweep.json.part"
        part.write_bytes(orjson.dumps(plan, option=orjson.OPT_INDENT_2))
        os.replace(part, self.out / "sweep.json")

    def _over(self, slot: Slot) -> str | None:
        """ "done" or "failed"; None: still to run."""
        if self._failed(slot):
            return "failed"
        return "done" if (self.out / "runs" / slot.name / "summary.json").is_file() else None

    def _failed(self, slot: Slot) -> bool:
        return outcomes(self.out).get(slot.name, {}).get("outcome") == "failed"

    def _cool(self, slot: Slot) -> None:
        if slot.point.kind not in VIRTUAL and self._unable(slot) is None:
            end = time.monotonic() + self.sweep.cooldown_s
            while not self.stop.count and time.monotonic() < end:
                time.sleep(0.1)

    def _play(self, slot: Slot, beside: bool) -> None:
        try:
            task = self._prepared(slot)
            if task is None:
                return self._note(slot, None)
            if beside:
                return self.workers.give(slot, task)
            play(task, lambda: self.stop.count)
            why = self._judged(task.run)
        except UserError as error:
            why = self.keeper.died() or str(error)
        return self._note(slot, why)

    def _unable(self, slot: Slot) -> str | None:
        return unable(slot.point, self.sweep.turn_knobs)

    def _prepared(self, slot: Slot) -> Task | None:
        """What is to be played, with its engine running; None: it was played before. UserError: it cannot be."""
        why = self._unable(slot)
        if why is not None:
            raise UserError(why)
        trace = trace_of(slot.point, self.sweep, slot.repeat, self.out / "traces")
        url = self.keeper.url_for(slot.point)
        path = self.out / "runs" / slot.name
        if self._failed(slot):
            _aside(path)
        elif _salvaged(path, self.sweep.policy):
            return None
        return self._task(slot, path, trace, url)

    def _judged(self, path: Path) -> str | None:
        """Why a run that was played counts for nothing; None: it counts."""
        run = RunDir.open(path)
        if run.info["state"] == "interrupted":
            return "interrupted"
        why = self.keeper.died()
        if why is not None:
            run.update_info(state="invalid", why=why)
        return why

    def _note(self, slot: Slot, why: str | None) -> None:
        """One line of outcomes.jsonl. What was left on purpose has none: it is run again."""
        row: dict[str, Any] = {"run": slot.name, "outcome": "done", "why": None, "wall_ns": time.time_ns()}
        if why is not None:
            if self.stop.count > 1:
                return
            row |= {"outcome": "failed", "why": why}
            sys.stderr.write(f"joulegraph: {slot.name} did not run: {why}\n")
        with (self.out / "outcomes.jsonl").open("ab") as file:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def _task(self, slot: Slot, path: Path, trace: Path, url: str | None) -> Task:
        sweep = self.sweep
        return Task(
            slot.point,
            slot.repeat,
            path,
            trace,
            salt=f"{sweep.seed}/{slot.name}",
            seed=sweep.seed + slot.repeat,
            url=url,
            engine=self.keeper.described,
            steps=self.keeper.steps,
            sources=() if slot.point.kind == "embedded-real" else sweep.sources,
            idle_s=sweep.idle_s,
            timeout_s=sweep.timeout_s,
            policy=sweep.policy,
            prompts=sweep.prompts,
            quiet=self.quiet,
        )

    def _warm_up(self, point: Point, url: str) -> None:
        if not self.sweep.warmup:
            return
        path = _aside(self.out / "warmup" / point.key())
        task = self._task(Slot(point, 0), path, trace_of(point, self.sweep, 0, self.out / "traces"), url)
        values = {name: getattr(task, name) for name in Task.__slots__}
        values |= {"limit": self.sweep.warmup, "salt": f"warm-up {time.monotonic_ns()}", "idle_s": 0.0, "sources": ()}
        play(Task(**values), lambda: self.stop.count)

    def _say(self, place: str, slot: Slot, left_s: float | None) -> None:
        if self.quiet:
            return
        factors = ", ".join(f"{k}={v}" for k, v in slot.point.factors().items())
        eta = f", {clock(left_s)} to go" if left_s is not None else ""
        sys.stderr.write(f"{place}{eta}: repeat {slot.repeat}, {factors}\n")
        sys.stderr.flush()


def outcomes(out: Path) -> dict[str, dict[str, Any]]:
    """The last outcome of each run; a torn last line (a kill while writing) is passed over."""
    found: dict[str, dict[str, Any]] = {}
    with suppress(FileNotFoundError):
        for line in (out / "outcomes.jsonl").read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError, KeyError, TypeError):
                row = orjson.loads(line)
                found[row["run"]] = row
    return found


def _salvaged(path: Path, policy: str) -> bool:
    """A run that ended whole but was killed before its figures were derived gets them; anything less moves aside."""
    if not (path / "run.json").is_file():
        return False
    run = RunDir.open(path)
    if run.info.get("state") in ("complete", "invalid") and run.info.get("load", {}).get("requests"):
        finish(run, policy)
        return True
    _aside(path)
    return False


def _aside(path: Path) -> Path:
    """Move what stands at a path out of the way; the free path."""
    if path.exists():
        number = 1
        while (other := path.with_name(f"{path.name}.unfinished-{number}")).exists():
            number += 1
        path.rename(other)
    return path
