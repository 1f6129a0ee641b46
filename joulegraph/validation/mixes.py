"""Request mixes of the truth loop: what arrives when, with which prompt, as one function per mix.

Each gives requests in order of time from a seed alone. Prompts are token ids: shared prefixes are shared
blocks.
May not know: engines' constants, energy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engines.embedded.types import EngineRequest, Limits

SECONDS = 120
_VOCABULARY = 100_000


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a mix: when (ns from the start), what, and which workflow and class it belongs to."""

    t_ns: int
    request: EngineRequest
    workflow: str
    class_name: str


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix and the engine limits it runs under. policy: of the independent truth's engine (None: drawn by seed)."""

    name: str
    plan: list[Planned]
    limits: Limits
    policy: str | None = None


class _Builder:
    """Collects requests; draws from one generator."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.plan: list[Planned] = []
        self.workflows = 0

    def tokens(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self.rng.integers(10, _VOCABULARY, n)

    def size(self, median: float, sigma: float, low: int, high: int) -> int:
        return int(np.clip(self.rng.lognormal(np.log(median), sigma), low, high))

    def arrivals(self, rate: float) -> list[float]:
        count = self.rng.poisson(rate * SECONDS)
        return sorted(float(x) for x in self.rng.uniform(0, SECONDS, count))

    def workflow(self) -> str:
        self.workflows += 1
        return f"w{self.workflows}"

    def add(
        self, t_s: float, prompt: np.ndarray[tuple[int], np.dtype[np.int64]], out: int, workflow: str, name: str
    ) -> None:
        request = EngineRequest(f"r{len(self.plan)}", prompt, out, min_tokens=out, ignore_eos=True)
        self.plan.append(Planned(round(t_s * 1e9), request, workflow, name))

    def done(self, name: str, limits: Limits, policy: str | None = None) -> Mix:
        return Mix(name, sorted(self.plan, key=lambda p: p.t_ns), limits, policy)


_LIMITS = Limits(max_num_seqs=256, max_num_batched_tokens=2048)


def chat(seed: int, rate: float = 4.0, name: str = "chat", limits: Limits = _LIMITS) -> Mix:
    """Conversations of one to four turns over a shared system prompt; mixed lengths."""
    b = _Builder(seed)
    system = b.tokens(256)
    for start in b.arrivals(rate / 2.2):
        workflow, t = b.workflow(), start
        text = np.concatenate((system, b.tokens(b.size(500, 1.0, 16, 6000))))
        for _ in range(int(b.rng.integers(1, 5))):
            out = b.size(180, 0.8, 8, 900)
            b.add(t, text, out, workflow, name)
            text = np.concatenate((text, b.tokens(out + b.size(80, 0.8, 8, 600))))
            t += 0.02 * out + float(b.rng.exponential(4.0))
    return b.done(name, limits)


def agent(seed: int) -> Mix:
    """Agents that call again and again over a long, mostly cached prompt."""
    b = _Builder(seed)
    tools = [b.tokens(int(n)) for n in b.rng.integers(3000, 9000, 4)]
    for start in b.arrivals(0.5):
        workflow, t = b.workflow(), start
        text = np.concatenate((tools[int(b.rng.integers(0, 4))], b.tokens(b.size(400, 0.6, 32, 3000))))
        for _ in range(int(b.rng.integers(3, 10))):
            out = b.size(90, 0.9, 8, 600)
            b.add(t, text, out, workflow, "agent")
            text = np.concatenate((text, b.tokens(out + b.size(250, 0.9, 16, 3000))))
            t += 0.02 * out + float(b.rng.exponential(1.5))
    return b.done("agent", _LIMITS)


def decode(seed: int) -> Mix:
    """Short prompts, long answers."""
    b = _Builder(seed)
    for t in b.arrivals(2.0):
        b.add(t, b.tokens(b.size(80, 0.5, 16, 400)), b.size(500, 0.6, 50, 2000), b.workflow(), "decode")
    return b.done("decode", _LIMITS)


def low_load(seed: int) -> Mix:
    """Chat at a rate that leaves the engine idle most of the time."""
    return chat(seed, rate=0.5, name="low-load")


def overload(seed: int) -> Mix:
    """More than the engine can take: queues, a full batch, preemption."""
    limits = Limits(max_num_seqs=96, max_num_batched_tokens=2048, kv_blocks=5000)
    return chat(seed, rate=20.0, name="overload", limits=limits)


def tenants(seed: int) -> Mix:
    """Two tenants on one engine: long prompts with short answers, short prompts with long answers."""
    b = _Builder(seed)
    for t in b.arrivals(1.0):
        b.add(t, b.tokens(b.size(5000, 0.5, 500, 14000)), b.size(25, 0.6, 4, 120), b.workflow(), "reader")
    for t in b.arrivals(2.0):
        b.add(t, b.tokens(b.size(120, 0.6, 16, 800)), b.size(350, 0.6, 40, 1200), b.workflow(), "writer")
    return b.done("tenants", _LIMITS)


def saturated(seed: int) -> Mix:
    """Long prompts in a queue that hardly empties: steps of a tenth of a second and more; the KV cache may fill."""
    b = _Builder(seed)
    for t in b.arrivals(2.6):
        text = b.tokens(b.size(6000, 0.7, 500, 24000))
        b.add(t, text, b.size(160, 0.7, 8, 600), b.workflow(), "saturated")
    return b.done("saturated", Limits(max_num_seqs=128, max_num_batched_tokens=8192))


def capped(seed: int) -> Mix:
    """A limit on sequences, always reached: prompts wait, then share the engine; where the engine knows it, piece by
    piece side by side."""
    b = _Builder(seed)
    for t in b.arrivals(3.0):
        text = b.tokens(b.size(2500, 0.9, 200, 16000))
        b.add(t, text, b.size(200, 0.7, 8, 800), b.workflow(), "capped")
    return b.done("capped", Limits(max_num_seqs=24, max_num_batched_tokens=4096), "capped")


MIXES: dict[str, Callable[[int], Mix]] = {
    "chat": chat,
    "agent": agent,
    "decode": decode,
    "low-load": low_load,
    "overload": overload,
    "tenants": tenants,
    "saturated": saturated,
    "capped": capped,
}
