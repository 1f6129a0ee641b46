"""The engine that points share: started when a launch setting changes, kept while it fits, stopped in the end.

An engine that did not start is not tried again for every repeat. May not know: order, repeats, figures.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.launchers.common import Launched, decisive_line, healthy
from joulegraph.join.engine import described
from joulegraph.sweep.config import VIRTUAL, Point, Sweep
from joulegraph.sweep.plan import launch_key
from traces.errors import UserError


@dataclass
class Keeper:
    """At most one launched or attached engine at a time."""

    sweep: Sweep
    out: Path
    warm_up: Callable[[Point, str], None]
    """called with a point and the URL after each start"""
    engine: Launched | None = None
    key: Any = None
    unstartable: dict[Any, str] = field(default_factory=dict)
    """launch key -> why"""

    def url_for(self, point: Point) -> str | None:
        """URL of the engine that this point needs, started or kept; None: it brings its own. UserError: no start."""
        if point.kind in (*VIRTUAL, "embedded-real"):
            return None
        key = launch_key(point)
        if key != self.key:
            self.stop()
            if key in self.unstartable:
                raise UserError(self.unstartable[key])
            try:
                self.engine = self._launch(point)
            except UserError as error:
                self.unstartable[key] = str(error)
                raise
            self.key = key
            self.warm_up(point, self.engine.url)
        assert self.engine is not None
        return self.engine.url

    @property
    def steps(self) -> Path | None:
        """Journal of its iteration stream."""
        path = self.engine.facts.get("steps") if self.engine is not None else None
        return Path(str(path)) if path else None

    @property
    def described(self) -> dict[str, Any] | None:
        """What a run directory says of it."""
        return None if self.engine is None else described(self.engine.facts)

    def died(self) -> str | None:
        """Why, when it no longer answers; it is stopped then. None: it is well, or not ours to judge."""
        engine = self.engine
        if engine is None or healthy(engine.host, engine.port) or engine.facts.get("attached"):
            return None
        log = engine.facts.get("log")
        self.stop()
        return "the engine died" + (f": {decisive_line(Path(str(log)))} (log: {log})" if log else "")

    def stop(self) -> None:
        """Stop what was started."""
        engine, self.engine, self.key = self.engine, None, None
        if engine is not None:
            engine.stop()

    def _launch(self, point: Point) -> Launched:
        # A started engine must not see the terminal's Ctrl-C: it inherits the blocked signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return launched(point, self.sweep, self.out)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def launched(point: Point, sweep: Sweep, out: Path) -> Launched:
    """The engine of a point, started (vllm, xllamacpp) or found (attach)."""
    if point.kind == "attach":
        from engines.launchers import attach
        from joulegraph.targets import ask
        from loadgen.target import split_url

        server = ask(point.engine_argument)
        host, port, _, secure = split_url(point.engine_argument)
        said = {} if secure else attach.launch(point.engine_argument).facts
        return Launched(host, port, server.models[0], {**said, "attached": True})
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
