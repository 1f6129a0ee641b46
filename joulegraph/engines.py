"""The embedded engine as a run wants it: options from flags, and the model name that the load must ask for.

May not know: time, sockets, what is replayed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.embedded.process import EngineConfig
from engines.embedded.profiles import load_profile
from engines.embedded.server import EngineOptions
from engines.embedded.types import Limits
from traces.rundir import RunDir

REAL_TICK_NS = 5_000_000
VIRTUAL_TICK_NS = 50_000_000


def embedded_options(
    profile: str,
    *,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_model_len: int | None = None,
    power_cap_w: int | None = None,
    prefix_caching: bool = True,
    seed: int = 0,
    replicas: int = 1,
    real_time: bool = True,
) -> EngineOptions:
    """Options of an embedded engine; None leaves its default. UserError for an unknown profile."""
    asked: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "power_cap_w": power_cap_w,
    }
    limits = replace(
        Limits(
            enable_prefix_caching=prefix_caching,
            seed=seed,
            served_model_name=load_profile(profile).name,
            replicas=replicas,
        ),
        **{name: value for name, value in asked.items() if value is not None},
    )
    return EngineOptions(profile=profile, limits=limits, tick_ns=REAL_TICK_NS if real_time else VIRTUAL_TICK_NS)


def model_of(options: EngineOptions) -> str:
    """The name clients ask for."""
    return options.limits.served_model_name or load_profile(options.profile).name


def config_in(run: RunDir, options: EngineOptions) -> EngineConfig:
    """The engine process of a run: journals and status page in the run directory."""
    return EngineConfig(
        options,
        truth=Path(run.journal("truth")),
        steps=Path(run.journal("engine")),
        status=run.file("status.engine"),
    )
