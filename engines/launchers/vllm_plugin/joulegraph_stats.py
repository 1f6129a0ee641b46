"""Runs inside vLLM (group vllm.stat_logger_plugins): one JSON line per engine iteration, the level L3 stream.

The launcher copies this file with a dist-info of its own to a folder on PYTHONPATH: nothing else of joulegraph enters
vLLM's environment. Only the standard library and vLLM may be imported here. Where vLLM's interface has moved, one line
of kind "log" says what is missing, and nothing more is written; serving goes on.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from typing import Any

StatLoggerBase: Any = importlib.import_module("vllm.v1.metrics.loggers").StatLoggerBase
PATH = "JOULEGRAPH_STEPS"
"""environment variable with the journal's path"""


class JoulegraphStats(StatLoggerBase):  # type: ignore[misc]
    """One per engine replica."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._engine = engine_index
        self._running = self._waiting = 0
        self._usage = 0.0
        self._file: int | None = None
        path = os.environ.get(PATH)
        if path:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if os.fstat(self._file).st_size == 0:
                stamps = {"mono_ns": time.monotonic_ns(), "wall_ns": time.time_ns()}
                self._write({"journal": "engine", "version": 1, **stamps})
            self._say(f"plugin joined vLLM {self._version()}, engine {engine_index}")

    @staticmethod
    def _version() -> str:
        return str(getattr(importlib.import_module("vllm"), "__version__", "of unknown version"))

    def _write(self, row: dict[str, Any]) -> None:
        """A full disk ends the stream, never a request: what `record` raises would end vLLM's output handler."""
        if self._file is None:
            return
        try:
            os.write(self._file, json.dumps(row, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            logging.getLogger("vllm.joulegraph").warning("the iteration stream cannot be written: %s", error)
            os.close(self._file)
            self._file = None

    def _say(self, text: str) -> None:
        self._write({"kind": "log", "t_ns": time.monotonic_ns(), "values": {}, "text": text})

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        **later: Any,
    ) -> None:
        """Called by vLLM's frontend for every batch of outputs."""
        if self._file is None or (scheduler_stats is None and iteration_stats is None):
            return
        now = time.monotonic_ns()
        try:
            row = self._row(now, scheduler_stats, iteration_stats, engine_idx)
        except AttributeError as error:
            self._say(
                f"the stats interface of vLLM {self._version()} has moved ({error}); no iteration stream from here on"
            )
            if self._file is not None:
                os.close(self._file)
            self._file = None
            return
        if row is not None:
            self._write(row)

    def _row(self, now: int, scheduler: Any, iteration: Any, engine: int) -> dict[str, Any] | None:
        details = None
        if scheduler is not None:
            self._running, self._waiting = scheduler.num_running_reqs, scheduler.num_waiting_reqs
            self._waiting += getattr(scheduler, "num_skipped_waiting_reqs", 0)
            self._usage = scheduler.kv_cache_usage
            details = getattr(scheduler, "iteration_details", None)
        generated = cached = prompt = computed = preempted = 0
        if iteration is not None:
            generated, preempted = iteration.num_generation_tokens, iteration.num_preempted_reqs
            parts = getattr(iteration, "prompt_token_stats", None)
            prompt = iteration.num_prompt_tokens
            cached = parts.cached_tokens if parts is not None else 0
            computed = parts.computed if parts is not None else prompt
        first = len(iteration.time_to_first_tokens_iter) if iteration is not None else 0
        if details is not None:
            if getattr(details, "is_dummy", False):
                return None
            context = (details.num_ctx_requests, details.num_ctx_tokens)
            decode = (details.num_generation_requests, details.num_generation_tokens)
        elif not (generated or prompt or preempted):
            return None
        else:  # without --enable-logging-iteration-details prefill counts when it ends
            context = (first, computed)
            decode = (generated - first, generated - first)
        return {
            "t_ns": now,
            "running": self._running,
            "waiting": self._waiting,
            "kv_usage": self._usage,
            "num_ctx_requests": context[0],
            "num_ctx_tokens": context[1],
            "num_generation_requests": decode[0],
            "num_generation_tokens": decode[1],
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "preempted": preempted,
            "engine": engine or self._engine,
            "kind": "step",
        }

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
