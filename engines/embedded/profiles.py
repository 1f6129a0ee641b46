"""Profiles: what one GPU with one model takes in time and energy, as data files that say where each constant is from.

A profile is a JSON file in profile_data/ (or anywhere: give its path). Times are seconds at the full clock on one GPU,
energies joules, powers watts. Simulator profiles are never priors of the estimator.
May not know: the scheduler, requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from traces.errors import UserError

COMPONENTS = ("gpu", "hbm", "cpu", "dram")
"""order of every per-component array; hbm lies inside gpu and is never added to it"""
DATA = Path(__file__).parent / "profile_data"


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Time of a step: overhead + max(weights, token x N) + own terms; N = tokens in the batch (padded by graphs).

    Compute terms (token, attention) grow as 1/clock; the others follow the memory clock, which stays."""

    overhead_s: float
    weights_s: float
    """streaming the weights once"""
    token_s: float
    """matrix products of one token when compute bound"""
    sequence_s: float
    """per scheduled sequence: sampling, logits, input preparation"""
    context_s: float
    """per token of context read"""
    attention_s: float
    """per (prefill token x context token) of prefill attention"""


@dataclass(frozen=True, slots=True)
class ComponentPower:
    """What one component draws."""

    idle_w: float
    """nothing scheduled, model loaded"""
    busy_w: float
    """more than idle while a step runs, whatever it does (scales with the clock like compute)"""
    weights_j: float = 0.0
    """streaming the weights once (per step)"""
    prefill_token_j: float = 0.0
    decode_token_j: float = 0.0
    context_j: float = 0.0
    """per token of context read"""
    attention_j: float = 0.0
    """per (prefill token x context token)"""
    padding_j: float = 0.0
    """per padded token (only where graph sizes pad)"""
    context2_j: float = 0.0
    """per (context read in the step) squared: memory power that grows faster than bandwidth"""


@dataclass(frozen=True, slots=True)
class Thermal:
    """tau dT/dt = ambient + c_per_w x P - T; the GPU's static power grows by leak_per_c x (T - ref_c)."""

    ambient_c: float = 30.0
    c_per_w: float = 0.05
    tau_s: float = 20.0
    ref_c: float = 35.0
    leak_per_c: float = 0.0


@dataclass(frozen=True, slots=True)
class Sensing:
    """How the simulated GPU counter shows the truth; see sensors.py."""

    period_ns: int = 100_000_000
    lag_ns: int = 60_000_000
    resolution_uj: int = 1_000
    jitter_ns: int = 1_000_000
    """standard deviation of the instant the counter stands for"""
    power_noise: float = 0.003
    """relative standard deviation of a power reading"""


@dataclass(frozen=True, slots=True)
class Profile:
    """One GPU + model."""

    name: str
    gpu: str
    model: str
    description: str
    gpu_memory_bytes: int
    gpu_memory_utilization: float
    reserved_bytes: int
    """activations, graphs, buffers: neither weights nor KV"""
    weights_bytes: int
    kv_bytes_per_token: int
    context_length: int
    vocab_size: int
    eos_token_id: int
    eos_mean_tokens: float
    max_power_w: float
    max_sm_mhz: int
    min_sm_mhz: int
    sm_step_mhz: int
    voltage_floor: float
    """voltage at clock 0 as a share of that at full clock (linear between); dynamic energy goes with its square"""
    tensor_parallel_s: float
    """all-reduce time per step and per token in it, as a share of the token time, when tensor parallel"""
    times: StepTimes
    power: dict[str, ComponentPower]
    """by component: gpu, hbm, cpu, dram; gpu and hbm per GPU, cpu and dram per host"""
    thermal: Thermal = field(default_factory=Thermal)
    sensing: Sensing = field(default_factory=Sensing)
    graph_sizes: tuple[int, ...] = ()
    """batch sizes that CUDA graphs were captured for: smaller batches are padded up; empty = no padding"""
    droop: float = 0.0
    """loss of clock at max_power_w, as a share, linear in power (before any cap)"""
    provenance: dict[str, str] = field(default_factory=dict)
    """constant -> where its value comes from"""

    def kv_blocks(self, block_size: int, tensor_parallel_size: int) -> int:
        """Blocks of KV cache that the memory of a tensor-parallel group leaves."""
        usable = self.gpu_memory_bytes * self.gpu_memory_utilization - self.reserved_bytes
        left = usable * tensor_parallel_size - self.weights_bytes
        blocks = int(left // (self.kv_bytes_per_token * block_size))
        if blocks < 1:
            raise UserError(
                f"profile {self.name}: no memory left for KV blocks of {block_size} tokens; "
                "raise tensor_parallel_size or lower block_size"
            )
        return blocks


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by name, or any profile file by path."""
    text = str(name_or_path)
    path = Path(text) if text.endswith(".json") or "/" in text else DATA / f"{text}.json"
    try:
        row = orjson.loads(path.read_bytes())
    except OSError:
        raise UserError(f"profile {text!r} not found; give a path or one of: {', '.join(profile_names())}") from None
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); give a profile file") from None
    return profile_from_row(row, str(path))


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(p.stem for p in DATA.glob("*.json"))


def profile_from_row(row: Any, where: str) -> Profile:
    """A profile from its JSON object; UserError names the field."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a profile is a JSON object; give a profile file")
    row = dict(row)
    try:
        row["times"] = _build(StepTimes, row["times"], f"{where}: times")
        row["power"] = {c: _build(ComponentPower, row["power"][c], f"{where}: power.{c}") for c in COMPONENTS}
        row["thermal"] = _build(Thermal, row.get("thermal", {}), f"{where}: thermal")
        row["sensing"] = _build(Sensing, row.get("sensing", {}), f"{where}: sensing")
        row["graph_sizes"] = tuple(row.get("graph_sizes", ()))
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing; see docs/embedded-engine.md") from None
    profile: Profile = _build(Profile, row, where)
    return profile


def _build(cls: Any, row: dict[str, Any], where: str) -> Any:
    names = {f.name for f in fields(cls)}
    unknown = sorted(set(row) - names)
    if unknown:
        raise UserError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(names))}")
    try:
        return cls(**row)
    except TypeError as error:
        raise UserError(f"{where}: {error}; see docs/embedded-engine.md") from None
