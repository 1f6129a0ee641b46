"""How an embedded engine is started, as a value, and what follows from it before anything runs.

May not know: servers, loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.embedded.profiles import Profile, load_profile
from engines.embedded.recorder import SLOTS
from engines.embedded.sensors import Mode, SimulatedSensors
from engines.embedded.types import Limits


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to start the embedded engine; the flags are vLLM's, here on by default."""

    profile: str = "h100-llama8b"
    limits: Limits = field(default_factory=Limits)
    sensor_mode: Mode = "counter"
    sensor_lag_ns: int | None = None
    tick_ns: int = 20_000_000
    """how often the simulated sensors are published"""
    request_id_headers: bool = True
    per_request_metrics: bool = True
    prompt_tokens_details: bool = True
    force_include_usage: bool = False
    api_key: str | None = None
    """asked for on /v1 routes, as vLLM's --api-key does"""


def sensors_of(options: EngineOptions, profile: Profile) -> SimulatedSensors:
    """The simulated sensors of an engine."""
    limits = options.limits
    return SimulatedSensors(
        profile,
        limits.seed,
        mode=options.sensor_mode,
        replicas=limits.replicas,
        tensor_parallel=limits.tensor_parallel_size,
        lag_ns=options.sensor_lag_ns,
    )


def status_names(options: EngineOptions) -> list[str]:
    """Slots that the engine's status page needs."""
    return [*SLOTS, *sensors_of(options, load_profile(options.profile)).slot_names()]
