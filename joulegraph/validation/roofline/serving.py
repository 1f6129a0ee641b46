"""Who is in which step: continuous batching with chunked prefill under one of several policies, prefix cache, KV limit.

Policies (`Serving.policy`): `mixed`, running sequences first, then prompts first come, first served, up to the budget;
`capped`, the same with at most `chunk` tokens of one prompt per step; `alternate`, steps of prompts alone while any
waits, decodes stand still; `whole`, the same with prompts never cut. A full KV cache throws out the last one admitted,
whose tokens are computed again. Clients that leave are dropped at the next step. May not know: stamps, sensors.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np

from joulegraph.validation.roofline.boards import Chip
from joulegraph.validation.roofline.chip import Step, drawn, prefill_flops

BLOCK = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: sent (s), block hashes of its prompt (whole blocks), prompt and output tokens, and when its client
    leaves (s; None: never)."""

    name: str
    t_s: float
    blocks: tuple[int, ...]
    prompt: int
    output: int
    workflow: str | None = None
    kind: str | None = None
    leaves_s: float | None = None
    deps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Serving:
    """Engine options."""

    policy: str = "mixed"
    budget: int = 2048
    sequences: int = 256
    kv_tokens: int = 400_000
    chunk: int = 512


@dataclass(eq=False)
class Run:
    """A request inside the engine. computed: tokens whose KV is there; target: tokens to compute before it decodes."""

    asked: Asked
    index: int
    arrived_s: float
    computed: int = 0
    target: int = 0
    cached: int = 0
    made: int = 0
    scheduled_s: float | None = None
    ended_s: float | None = None
    preempted: int = 0
    token_s: list[float] = field(default_factory=list)
    prefill_j: float = 0.0
    decode_j: float = 0.0


@dataclass(frozen=True, slots=True)
class Logged:
    """One step as the engine's own log has it, and what it drew."""

    start_s: float
    end_s: float
    running: int
    waiting: int
    ctx_requests: int
    ctx_tokens: int
    generation_requests: int
    cached: int
    preempted: int
    joules: float


@dataclass(frozen=True, slots=True)
class Served:
    """Every request in order of sending, every step, and the temperature rise at each step's start."""

    runs: list[Run]
    steps: list[Logged]
    kelvin: list[float]


class _Cache:
    """Blocks of finished prompts, least recently used first out."""

    def __init__(self, blocks: int) -> None:
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.most = blocks

    def hit(self, blocks: Sequence[int]) -> int:
        """Leading blocks that are there."""
        n = 0
        for b in blocks:
            if b not in self.blocks:
                break
            self.blocks.move_to_end(b)
            n += 1
        return n

    def add(self, blocks: Sequence[int]) -> None:
        for b in blocks:
            self.blocks[b] = None
            self.blocks.move_to_end(b)
        while len(self.blocks) > self.most:
            self.blocks.popitem(last=False)


def serve(chip: Chip, serving: Serving, asked: Sequence[Asked], seed: int) -> Served:
    """Run every request to its end (or its client's leaving)."""
    engine = _Engine(chip, serving, asked, seed)
    while engine.step():
        pass
    return Served(engine.runs, engine.log, engine.kelvins)


class _Engine:
    def __init__(self, chip: Chip, serving: Serving, asked: Sequence[Asked], seed: int) -> None:
        self.chip, self.serving = chip, serving
        self.rng = np.random.default_rng([seed, 72])
        ordered = sorted(asked, key=lambda a: a.t_s)
        self.runs = [Run(a, i, a.t_s) for i, a in enumerate(ordered)]
        self.ahead = deque(self.runs)
        self.waiting: deque[Run] = deque()
        self.running: list[Run] = []
        self.cache = _Cache(serving.kv_tokens // BLOCK)
        self.now = 0.0
        self.kelvin = 0.0
        self.log: list[Logged] = []
        self.kelvins: list[float] = []
        self.preempted = 0
        self.used = 0

    def step(self) -> bool:
        """One step, or a jump to the next arrival; False when nothing is left."""
        if not self.running and not self.waiting:
            if not self.ahead:
                return False
            self._rest(max(self.ahead[0].arrived_s - self.now, 0.0), self.chip.idle_w)
        while self.ahead and self.ahead[0].arrived_s <= self.now:
            self.waiting.append(self.ahead.popleft())
        self._drop()
        self.preempted = 0
        batch = self._batch()
        if batch:
            self._compute(batch)
        elif self.running or self.waiting:
            self._rest(1e-3, self.chip.static_w)
        return True

    def _rest(self, duration: float, watts: float) -> None:
        self.kelvin += (watts * self.chip.kelvin_per_w - self.kelvin) * (1 - exp(-duration / self.chip.thermal_s))
        self.now += duration

    def _drop(self) -> None:
        gone = [
            r for r in (*self.running, *self.waiting) if r.asked.leaves_s is not None and r.asked.leaves_s <= self.now
        ]
        for r in gone:
            r.ended_s = r.asked.leaves_s
            (self.running if r in self.running else self.waiting).remove(r)

    def _batch(self) -> list[tuple[Run, int]]:
        """(sequence, tokens) of the next step."""
        self.used = sum(self._held(r) for r in self.running)
        left = self.serving.budget
        picked: list[tuple[Run, int]] = []
        prompts = [r for r in self.running if r.computed < r.target]
        alone = self.serving.policy in ("alternate", "whole") and (
            prompts or (self.waiting and self._fits(self.waiting[0]))
        )
        for r in list(self.running):
            if r not in self.running:
                continue
            n = r.target - r.computed if r.computed < r.target else 1
            if n == 1 and r.computed >= r.target and alone:
                continue
            n = min(n, left, self._most(r))
            if n <= 0 or not self._room(r, n, picked):
                continue
            picked.append((r, n))
            left -= n
        while self.waiting and left > 0 and not self.preempted and self._fits(self.waiting[0]):
            whole = self.serving.policy == "whole"
            if whole and picked and self.waiting[0].asked.prompt + self.waiting[0].made > left:
                break
            r = self.waiting.popleft()
            self._admit(r)
            self.running.append(r)
            n = r.target - r.computed if whole else min(r.target - r.computed, left, self._most(r))
            picked.append((r, n))
            self.used += r.computed + n
            left -= n
        return picked

    def _most(self, r: Run) -> int:
        return self.serving.chunk if self.serving.policy == "capped" and r.computed < r.target else 1 << 30

    @staticmethod
    def _held(r: Run) -> int:
        return -(-r.computed // BLOCK) * BLOCK

    def _fits(self, r: Run) -> bool:
        return len(self.running) < self.serving.sequences and (
            not self.running or self.used + r.asked.prompt + r.made + BLOCK <= self.serving.kv_tokens
        )

    def _room(self, r: Run, n: int, picked: list[tuple[Run, int]]) -> bool:
        """Make room by throwing out the last admitted; False when that was r itself."""
        while self.used + n > self.serving.kv_tokens and len(self.running) > 1:
            victim = self.running.pop()
            self.used -= self._held(victim)
            victim.computed, victim.preempted = 0, victim.preempted + 1
            self.waiting.appendleft(victim)
            self.preempted += 1
            picked[:] = [p for p in picked if p[0] is not victim]
            if victim is r:
                return False
        self.used += n
        return True

    def _admit(self, r: Run) -> None:
        hit = min(self.cache.hit(r.asked.blocks) * BLOCK, r.asked.prompt - 1)
        r.computed, r.target = hit, r.asked.prompt + r.made
        if r.scheduled_s is None:
            r.cached, r.scheduled_s = hit, self.now

    def _compute(self, batch: list[tuple[Run, int]]) -> None:
        chip, shape = self.chip, self.chip.shape
        prefills = np.array([float(r.computed < r.target) for r, _ in batch])
        ends = np.array([float(r.computed + n >= r.target) for r, n in batch])
        tokens = np.array([float(n) for _, n in batch])
        before = np.array([float(r.computed) for r, _ in batch])
        attention = np.array(
            [prefill_flops(shape, n, b) if p else 0.0 for n, b, p in zip(tokens, before, prefills, strict=True)]
        )
        step = Step(tokens, attention, before * shape.kv_bytes, ends, prefills)
        one = drawn(chip, step, self.kelvin, self.rng)
        start, cached = self.now, sum(r.cached for r, _ in batch if not r.token_s and r.computed == r.cached)
        self.kelvins.append(self.kelvin)
        self._rest(one.seconds, one.joules / one.seconds)
        for (r, n), share, prefilling, ended in zip(batch, one.shares, prefills, ends, strict=True):
            if prefilling:
                r.prefill_j += float(share)
            else:
                r.decode_j += float(share)
            r.computed += n
            if ended:
                self._token(r)
        ctx = [n for (_, n), p in zip(batch, prefills) if p]
        self.log.append(
            Logged(start, self.now, len(self.running), len(self.waiting), len(ctx), sum(ctx), len(batch) - len(ctx),
                   cached, self.preempted, one.joules)
        )  # fmt: skip
        self.running = [r for r in self.running if r.ended_s is None]

    def _token(self, r: Run) -> None:
        r.token_s.append(self.now)
        r.made += 1
        if r.made == 1:
            self.cache.add(r.asked.blocks)
        if r.made >= r.asked.output:
            r.ended_s = self.now
