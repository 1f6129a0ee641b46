"""All runs of a sweep, one after another: engines kept while they fit, finished runs skipped, failures recorded.

A sweep directory holds sweep.json (what was asked), outcomes.jsonl (one line per run that ended, however), traces/,
runs/<point>-r<repeat>/, and what tables and plots write. Killed at any instant it goes on where it was.
May not know: how figures are derived.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from engines.launchers.common import Launched, decisive_line, healthy
from joulegraph.sweep.config import Point, Sweep
from joulegraph.sweep.plan import Slot, clock, eta_s, launch_key, order
from joulegraph.sweep.play import Task, play
from joulegraph.sweep.setup import trace_of, unable
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


@contextmanager
def _stops() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclass
class Driver:
    """The state of one invocation."""

    sweep: Sweep
    out: Path
    retry: bool = False
    quiet: bool = False
    stop: Stop = field(default_factory=Stop)
    engine: Launched | None = None
    engine_key: Any = None
    unstartable: dict[Any, str] = field(default_factory=dict)
    """launch key -> why: an engine that did not start is not tried again for every repeat"""

    def run(self) -> dict[str, int]:
        """Play what is left; how many runs are done, failed and left."""
        slots = order(self.sweep.points, self.sweep.repeats, self.sweep.seed)
        self._prepare(slots)
        todo = [slot for slot in slots if self._over(slot) not in (("done",) if self.retry else ("done", "failed"))]
        took: list[float] = []
        with _stops() as self.stop:
            try:
                for index, slot in enumerate(todo):
                    if self.stop.count:
                        break
                    if index:
                        self._cool(slot)
                    self._say(
                        f"{len(slots) - len(todo) + index + 1}/{len(slots)}", slot, eta_s(took, len(todo) - index)
                    )
                    self.stop.leaves_at = 2 if slot.point.kind == "embedded" else 3
                    started = time.monotonic()
                    self._play(slot)
                    took.append(time.monotonic() - started)
            finally:
                self._stop_engine()
        states = [self._over(slot) for slot in slots]
        return {name: sum(s == name for s in states) for name in ("done", "failed")} | {"left": states.count(None)}

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
        if slot.point.kind != "embedded":
            end = time.monotonic() + self.sweep.cooldown_s
            while not self.stop.count and time.monotonic() < end:
                time.sleep(0.1)

    def _play(self, slot: Slot) -> None:
        why = self._tried(slot)
        row: dict[str, Any] = {"run": slot.name, "outcome": "done", "why": None, "wall_ns": time.time_ns()}
        if why is not None:
            if self.stop.count > 1:
                return  # left on purpose: it is run again
            row |= {"outcome": "failed", "why": why}
            sys.stderr.write(f"joulegraph: {slot.name} did not run: {why}\n")
        with (self.out / "outcomes.jsonl").open("ab") as file:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def _tried(self, slot: Slot) -> str | None:
        """Play one run; None, or why it could not."""
        why = unable(slot.point)
        if why is not None:
            return why
        try:
            trace = trace_of(slot.point, self.sweep, slot.repeat, self.out / "traces")
            url = self._engine_for(slot.point)
            path = self.out / "runs" / slot.name
            if self._failed(slot):
                _aside(path)
            elif _salvaged(path, self.sweep.policy):
                return None
            task = self._task(slot, path, trace, url)
            play(task, lambda: self.stop.count)
            run = RunDir.open(path)
        except UserError as error:
            return self._engine_died() or str(error)
        if run.info["state"] == "interrupted":
            return "interrupted"
        why = self._engine_died()
        if why is not None:
            run.update_info(state="invalid", why=why)
        return why

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
            steps=Path(steps) if (steps := self.engine and self.engine.facts.get("steps")) else None,
            sources=() if slot.point.kind == "embedded-real" else sweep.sources,
            idle_s=sweep.idle_s,
            timeout_s=sweep.timeout_s,
            policy=sweep.policy,
            prompts=sweep.prompts,
            quiet=self.quiet,
        )

    # ------------------------------------------------------------------ engines

    def _engine_for(self, point: Point) -> str | None:
        """URL of the engine that this point needs, started or kept. UserError when it does not start."""
        if point.kind in ("embedded", "embedded-real"):
            return None
        key = launch_key(point)
        if key != self.engine_key:
            self._stop_engine()
            if key in self.unstartable:
                raise UserError(self.unstartable[key])
            try:
                self.engine = self._launch(point)
            except UserError as error:
                self.unstartable[key] = str(error)
                raise
            self.engine_key = key
            self._warm_up(point, self.engine.url)
        assert self.engine is not None
        return self.engine.url

    def _launch(self, point: Point) -> Launched:
        # A started engine must not see the terminal's Ctrl-C: it inherits the blocked signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return launched(point, self.sweep, self.out)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _warm_up(self, point: Point, url: str) -> None:
        if not self.sweep.warmup:
            return
        path = _aside(self.out / "warmup" / point.key())
        task = self._task(Slot(point, 0), path, trace_of(point, self.sweep, 0, self.out / "traces"), url)
        values = {name: getattr(task, name) for name in Task.__slots__}
        values |= {"limit": self.sweep.warmup, "salt": f"warm-up {time.monotonic_ns()}", "idle_s": 0.0, "sources": ()}
        play(Task(**values), lambda: self.stop.count)

    def _engine_died(self) -> str | None:
        engine = self.engine
        if engine is None or healthy(engine.host, engine.port) or engine.facts.get("engine") == "attached":
            return None
        log = engine.facts.get("log")
        self._stop_engine()
        return "the engine died" + (f": {decisive_line(Path(log))} (log: {log})" if log else "")

    def _stop_engine(self) -> None:
        engine, self.engine, self.engine_key = self.engine, None, None
        if engine is not None:
            engine.stop()

    def _say(self, place: str, slot: Slot, left_s: float | None) -> None:
        if self.quiet:
            return
        factors = ", ".join(f"{k}={v}" for k, v in slot.point.factors().items())
        eta = f", {clock(left_s)} to go" if left_s is not None else ""
        sys.stderr.write(f"{place}{eta}: repeat {slot.repeat}, {factors}\n")
        sys.stderr.flush()


def launched(point: Point, sweep: Sweep, out: Path) -> Launched:
    """The engine of a point, started (vllm, xllamacpp) or found (attach)."""
    if point.kind == "attach":
        from joulegraph.targets import ask
        from loadgen.target import split_url

        server = ask(point.engine_argument)
        host, port, _, _ = split_url(point.engine_argument)
        return Launched(host, port, server.models[0], {"engine": "attached"})
    log = out / "engines" / f"{point.key()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if point.kind == "xllamacpp":
        from engines.launchers import xllamacpp

        return xllamacpp.launch(
            xllamacpp.XllamaOptions(
                model=Path(point.model) if point.model else None,
                max_num_seqs=point.max_num_seqs or 4,
                context=point.max_model_len or 4096,
                log=log,
            )
        )
    from engines.launchers import vllm

    active = point.max_num_active_seqs
    steps = log.with_suffix(f".{time.time_ns()}.steps.jsonl")
    engine = vllm.launch(
        vllm.VllmOptions(
            model=point.model or "",
            python=sweep.vllm.python,
            max_num_seqs=point.max_num_seqs,
            max_num_batched_tokens=point.max_num_batched_tokens,
            max_model_len=point.max_model_len,
            gpu_memory_utilization=sweep.vllm.gpu_memory_utilization,
            enable_prefix_caching=point.prefix_caching,
            extra=(*sweep.vllm.flags, *(("--max-num-active-seqs", str(active)) if active is not None else ())),
            log=log,
            steps=steps,
            start_s=sweep.vllm.start_s,
        ),
        _progress,
    )
    engine.facts["steps"] = str(steps)
    return engine


def _progress(text: str) -> None:
    sys.stderr.write(f"joulegraph: {text}\n")


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
        from joulegraph.finish import complete

        complete(run, policy=policy, report=False)
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
