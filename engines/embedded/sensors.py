"""Simulated sensors: what a meter with a period, a lag, a window, a resolution and noise shows of the true energy.

Each sensor has update instants (period and phase of its own); at update u it takes the truth as it was at u - lag -
jitter, rounds it, and shows that until the next update. Updates that no read could see are skipped. Noise comes from
a generator seeded once, so the same run, read at the same instants, shows the same values. Modes of the GPU energy
counter:
    counter      integrates continuously (an H100's does)
    duty-cycled  sees the last 25 ms of each period and takes them for the whole
    average-1s   integrates a one-second moving average
May not know: requests, steps, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.embedded.profiles import COMPONENTS, Profile

Mode = Literal["counter", "duty-cycled", "average-1s"]
MODES: tuple[Mode, ...] = ("counter", "duty-cycled", "average-1s")
_WINDOW_NS = 25_000_000
_SECOND_NS = 1_000_000_000
_REMEMBERED = 30
_RAPL_WRAP_UJ = 262_143_328_850


class TrueEnergy(Protocol):
    """What the sensors look at: cumulative joules by component."""

    def energy_j(self, t_ns: int) -> NDArray[np.float64]:
        """At t_ns, which may lie up to 5 s back."""
        ...


class Metered(Protocol):
    """An engine replica: its energy and how many GPUs share it."""

    @property
    def energy(self) -> TrueEnergy: ...
    @property
    def gpus(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SensorSpec:
    """One simulated sensor."""

    name: str
    domain: str
    device: str
    reading: Literal["counter", "gauge"]
    period_ns: int
    lag_ns: int
    resolution: int
    wraps_at: int
    """0 = never"""
    jitter_ns: int
    noise: float
    replica: int | None
    """None: all replicas together (host sensors)"""
    mode: Mode = "counter"


class _State:
    """A sensor's running values."""

    __slots__ = ("counted", "offset", "shown", "t_next_ns", "t_seen_ns", "t_shown_ns")

    def __init__(self, offset: int, t_next_ns: int) -> None:
        self.offset = offset
        self.counted = 0.0
        self.shown = 0
        self.t_next_ns = t_next_ns
        self.t_seen_ns: int | None = None
        self.t_shown_ns = 0


class SimulatedSensors:
    """All sensors of one engine (every replica and GPU). advance() with the cores in order of replica."""

    def __init__(
        self,
        profile: Profile,
        seed: int = 0,
        *,
        mode: Mode = "counter",
        replicas: int = 1,
        tensor_parallel: int = 1,
        lag_ns: int | None = None,
    ) -> None:
        self.specs = _specs(profile, mode, replicas, tensor_parallel)
        if lag_ns is not None:
            self.specs = [replace(s, lag_ns=lag_ns) for s in self.specs]
        self.names = [s.name for s in self.specs]
        self._rng = np.random.default_rng([seed, 0x5E45])
        self._tensor_parallel = tensor_parallel
        self._states: list[_State] = []
        for spec in self.specs:
            # A counter runs since the driver was loaded or the host booted, so it never starts at 0.
            offset = int(self._rng.integers(10**9, 10**11)) if spec.reading == "counter" else 0
            self._states.append(_State(offset, int(self._rng.integers(0, spec.period_ns))))
        self._started = False
        self._moving = [(f"{name}.value", f"{name}.t_ns") for name in self.names]

    def slot_names(self) -> list[str]:
        """Slots of the status page, five for each sensor."""
        return [f"{name}.{slot}" for name in self.names for slot in _SLOTS]

    def slots(self) -> dict[str, int]:
        """Every slot's value now."""
        out: dict[str, int] = {}
        for spec, state in zip(self.specs, self._states):
            row = (state.shown, state.t_shown_ns, spec.period_ns, spec.resolution, spec.wraps_at)
            out.update(zip((f"{spec.name}.{slot}" for slot in _SLOTS), row))
        return out

    def values(self) -> list[int]:
        """What each sensor shows now, in the order of names (uJ or mW)."""
        return [state.shown for state in self._states]

    def advance(self, t_ns: int, *cores: Metered) -> dict[str, int]:
        """Let every update up to t_ns happen; returns slots() when anything changed, else an empty dict."""
        return self.slots() if self.update(t_ns, *cores) else {}

    def readings(self) -> dict[str, int]:
        """What moves: value and instant of every sensor, by slot name."""
        out: dict[str, int] = {}
        for (value, t_ns), state in zip(self._moving, self._states):
            out[value] = state.shown
            out[t_ns] = state.t_shown_ns
        return out

    def update(self, t_ns: int, *cores: Metered) -> bool:
        """Let every update up to t_ns happen; whether anything changed."""
        if not self._started:
            self._start(t_ns, cores)
        changed = False
        for spec, state in zip(self.specs, self._states):
            while state.t_next_ns <= t_ns:
                self._update(spec, state, cores, t_ns)
                changed = True
        return changed

    def _start(self, t_ns: int, cores: Sequence[Metered]) -> None:
        self._started = True
        for spec, state in zip(self.specs, self._states):
            state.t_next_ns += t_ns
            state.t_shown_ns = t_ns
            state.t_seen_ns = t_ns - spec.lag_ns
            if spec.reading == "counter":
                state.counted = self._true_uj(spec, cores, t_ns)
                state.shown = self._round(spec, state)
            else:
                state.shown = 0

    def _update(self, spec: SensorSpec, state: _State, cores: Sequence[Metered], t_ns: int) -> None:
        now = state.t_next_ns
        # Only what integrates over its own updates needs each of them, as far back as the truth remembers.
        keep = 0 if spec.mode == "counter" else _REMEMBERED
        now += max(0, (t_ns - now) // spec.period_ns - keep) * spec.period_ns
        jitter = int(self._rng.normal(0.0, spec.jitter_ns)) if spec.jitter_ns else 0
        noise = 1.0 + (self._rng.normal(0.0, spec.noise) if spec.noise else 0.0)
        seen = now - spec.lag_ns + jitter
        if spec.reading == "gauge":
            watts = self._mean_w(spec, cores, seen, _WINDOW_NS)
            state.shown = max(0, round(watts * noise * 1000 / spec.resolution) * spec.resolution)
        else:
            state.counted = max(state.counted, self._count(spec, state, cores, seen))
            state.shown = self._round(spec, state)
        state.t_shown_ns = now
        state.t_seen_ns = seen
        state.t_next_ns = now + spec.period_ns

    def _count(self, spec: SensorSpec, state: _State, cores: Sequence[Metered], seen_ns: int) -> float:
        if spec.mode == "counter":
            return self._true_uj(spec, cores, seen_ns)
        window = _WINDOW_NS if spec.mode == "duty-cycled" else _SECOND_NS
        before = state.t_seen_ns if state.t_seen_ns is not None else seen_ns
        return state.counted + self._mean_w(spec, cores, seen_ns, window) * (seen_ns - before) / 1000

    def _true_uj(self, spec: SensorSpec, cores: Sequence[Metered], t_ns: int) -> float:
        index = COMPONENTS.index(spec.domain)
        if spec.replica is None:
            return 1e6 * sum(float(core.energy.energy_j(t_ns)[index]) for core in cores)
        return 1e6 * float(cores[spec.replica].energy.energy_j(t_ns)[index]) / self._tensor_parallel

    def _mean_w(self, spec: SensorSpec, cores: Sequence[Metered], t_ns: int, window_ns: int) -> float:
        drawn = self._true_uj(spec, cores, t_ns) - self._true_uj(spec, cores, t_ns - window_ns)
        return drawn * 1000 / window_ns

    @staticmethod
    def _round(spec: SensorSpec, state: _State) -> int:
        value = (state.offset + int(state.counted)) // spec.resolution * spec.resolution
        return value % spec.wraps_at if spec.wraps_at else value


_SLOTS = ("value", "t_ns", "period_ns", "resolution", "wraps_at")


def _specs(profile: Profile, mode: Mode, replicas: int, tensor_parallel: int) -> list[SensorSpec]:
    s = profile.sensing
    out: list[SensorSpec] = []
    for g in range(replicas * tensor_parallel):
        gpu, r = f"gpu{g}", g // tensor_parallel
        common = (s.period_ns, s.lag_ns)
        out.append(
            SensorSpec(
                f"sim.{gpu}.energy", "gpu", gpu, "counter", *common, s.resolution_uj, 0, s.jitter_ns, 0.0, r, mode
            )
        )
        out.append(SensorSpec(f"sim.{gpu}.power", "gpu", gpu, "gauge", *common, 1, 0, s.jitter_ns, s.power_noise, r))
        out.append(
            SensorSpec(
                f"sim.hbm{g}.energy", "hbm", gpu, "counter", *common, s.resolution_uj, 0, s.jitter_ns, 0.0, r, "counter"
            )
        )
    for domain in ("cpu", "dram"):
        out.append(
            SensorSpec(
                f"sim.{domain}0.energy", domain, "package-0", "counter", 1_000_000, 0, 61, _RAPL_WRAP_UJ, 0, 0.0, None
            )
        )
    return out
