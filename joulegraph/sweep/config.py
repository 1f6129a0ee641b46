"""The sweep file (TOML) as values: one Point per combination of factors, and how they are to be repeated.

Pure but for reading the file and the profiles it names. Every factor is a field of Point, so a misspelt one is an
error, not a constant.
May not know: how a point is run.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import orjson

from engines.embedded.profiles import load_profile
from traces.errors import UserError

MOST_POINTS = 10_000
BATCH = ("max_num_seqs", "max_num_active_seqs", "proxy_limit", "max_batch_size", "tasks_capacity")
"""the meanings of batch size: a factor each. The last two are Parrot's: of its engine, and of its scheduler"""
KINDS = ("embedded", "embedded-real", "parrot", "vllm", "xllamacpp", "attach")
EMBEDDED = ("embedded", "embedded-real", "parrot")
"""with a profile"""
VIRTUAL = ("embedded", "parrot")
"""run in virtual time, in this process or in workers"""
TRUTH = "truth"
"""policy of virtual points that takes the engine's true joules instead of attributing"""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of factors. None leaves a default alone."""

    engine: str = "embedded:h100-llama8b"
    """embedded:PROFILE and parrot:PROFILE (virtual time), embedded-real:PROFILE, vllm, xllamacpp, attach:URL"""
    model: str | None = None
    """vllm, xllamacpp: what to serve; attach: the name to ask for"""
    workload: str | None = None
    preset: str | None = None
    trace: str | None = None
    """a trace file in place of a workload"""
    params: tuple[tuple[str, str], ...] = ()
    """the workload's own parameters; in the file `param.NAME`"""
    count: int | None = None
    scale: float | None = None
    input_length: int | None = None
    output_length: int | None = None
    rate: float | None = None
    """open loop: workflows per second"""
    cv: float | None = None
    users: int | None = None
    """closed loop: each user takes the next workflow when the last one has ended"""
    max_num_seqs: int | None = None
    max_num_active_seqs: int | None = None
    proxy_limit: int | None = None
    max_batch_size: int | None = None
    """parrot: sequences per step of its engine"""
    tasks_capacity: int | None = None
    """parrot: calls its scheduler lets onto an engine; a latency call caps it at four whatever this says"""
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    prefix_caching: bool | None = None
    power_cap_w: int | None = None
    sm_clock_mhz: int | None = None

    @property
    def kind(self) -> str:
        """one of KINDS"""
        return self.engine.partition(":")[0]

    @property
    def engine_argument(self) -> str:
        """Profile or URL."""
        return self.engine.partition(":")[2]

    def factors(self) -> dict[str, Any]:
        """What is set, by name; workload parameters as `param.NAME`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "params"}
        return {k: v for k, v in own.items() if v is not None} | {f"param.{k}": v for k, v in self.params}

    def key(self) -> str:
        """Stable short name from the factors alone, so that finished points are found again after the file grew."""
        text = orjson.dumps(self.factors(), option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(text, digest_size=5).hexdigest()


@dataclass(frozen=True, slots=True)
class Vllm:
    """How to start vLLM: what is the same for all points."""

    python: str | None = None
    flags: tuple[str, ...] = ()
    gpu_memory_utilization: float | None = None
    start_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as asked for."""

    name: str
    points: tuple[Point, ...]
    repeats: int = 3
    seed: int = 0
    warmup: int = 2
    """workflows played and thrown away after each start of an engine (real time)"""
    cooldown_s: float = 5.0
    """between points (real time)"""
    idle_s: float = 3.0
    """measured before the load of each point (real time): the idle baseline"""
    timeout_s: float = 600.0
    sources: tuple[str, ...] = ("nvml", "rapl")
    policy: str = "fitted"
    prompts: str = "ids"
    turn_knobs: bool = True
    """False: a point with a power cap or a clock is recorded as not run"""
    vllm: Vllm = field(default_factory=Vllm)


_COMMON = ("repeats", "seed", "warmup", "cooldown_s", "idle_s", "timeout_s", "sources", "policy", "prompts",
           "turn_knobs")  # fmt: skip
_TABLES = ("name", "base", "grid", "point", "vllm")
_LEAST: dict[str, float] = {
    "repeats": 1, "warmup": 0, "cooldown_s": 0, "idle_s": 0, "timeout_s": 1, "count": 1, "input_length": 1,
    "output_length": 1, "rate": 0, "cv": 0, "users": 1, "max_num_seqs": 1, "max_num_active_seqs": 1, "proxy_limit": 1,
    "max_batch_size": 1, "tasks_capacity": 1, "max_num_batched_tokens": 1, "max_model_len": 1, "power_cap_w": 1,
    "sm_clock_mhz": 1, "start_s": 1, "gpu_memory_utilization": 0.01,
}  # fmt: skip


def read(path: Path) -> Sweep:
    """A sweep file. UserError names the key that is wrong."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a sweep file (docs/sweep.md)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error}); see docs/sweep.md for an example") from error
    try:
        sweep = parse(data, default_name=path.stem, folder=path.parent)
        for profile in dict.fromkeys(p.engine_argument for p in sweep.points if p.kind in EMBEDDED):
            load_profile(profile)
        return sweep
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse(data: Mapping[str, Any], *, default_name: str = "sweep", folder: Path = Path()) -> Sweep:
    """A sweep from the file's tables. Paths of traces and models are relative to `folder`."""
    for key in data:
        if key not in (*_TABLES, *_COMMON):
            raise UserError(f"{key} is unknown; known are {', '.join((*_TABLES, *_COMMON))}")
    common = {key: _checked(Sweep, key, data[key]) for key in _COMMON if key in data}
    vllm = Vllm(**{k: _checked(Vllm, k, v) for k, v in _table(data, "vllm").items()})
    points = tuple(dict.fromkeys(_located(p, folder) for p in _points(data)))
    for point in points:
        _check(point)
        _check_flags(point, vllm.flags)
        if common.get("policy") == TRUTH and point.kind not in VIRTUAL:
            raise UserError(f"policy = 'truth': only embedded and parrot points know it, not {point.engine!r}")
    return Sweep(str(data.get("name", default_name)), points, vllm=vllm, **common)


def _points(data: Mapping[str, Any]) -> Iterator[Point]:
    base = _flat(_table(data, "base"))
    grid = {k: v if isinstance(v, list) else [v] for k, v in _flat(_table(data, "grid")).items()}
    listed = data.get("point", [])
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise UserError("point must be tables of their own: [[point]]")
    for key, values in grid.items():
        if not values:
            raise UserError(f"grid.{key} is empty; give at least one value")
    size = 1
    for values in grid.values():
        size *= len(values)
    if size + len(listed) > MOST_POINTS:
        raise UserError(f"{size + len(listed)} points are more than {MOST_POINTS}; take values out of the grid")
    if grid or not listed:
        for combination in product(*grid.values()):
            yield _point({**base, **dict(zip(grid, combination, strict=True))})
    for row in listed:
        yield _point({**base, **_flat(row)})


def _table(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a table: [{name}]")
    return value


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """[grid.param] rounds = [...] -> {"param.rounds": [...]}"""
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _point(values: Mapping[str, Any]) -> Point:
    own = {k: _checked(Point, k, v) for k, v in values.items() if not k.startswith("param.")}
    params = {k.removeprefix("param."): str(v) for k, v in values.items() if k.startswith("param.")}
    return Point(params=tuple(sorted(params.items())), **own)


def _checked(cls: type, key: str, value: Any) -> Any:
    """A value in the type of its field. UserError when it cannot be meant."""
    types = {f.name: str(f.type) for f in fields(cls)}
    if key not in types or key == "params":
        known = ", ".join(n for n in types if n not in ("params", "points", "vllm"))
        raise UserError(f"{key} is unknown; known are {known}" + (", param.NAME" if cls is Point else ""))
    wanted = types[key].removesuffix(" | None")
    if wanted.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{key} = {value!r}: must be a list of words")
        return tuple(value)
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[wanted]
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted != "bool"):
        raise UserError(f"{key} = {value!r}: must be {_WORDS[wanted]}")
    if key in _LEAST and not float(value) >= _LEAST[key]:
        raise UserError(f"{key} = {value!r}: must be at least {_LEAST[key]:g}")
    return value


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}


def _located(point: Point, folder: Path) -> Point:
    changes: dict[str, Any] = {}
    if point.trace is not None and not Path(point.trace).is_absolute():
        changes["trace"] = str(folder / point.trace)
    return replace(point, **changes)


def _check_flags(point: Point, flags: tuple[str, ...]) -> None:
    """vLLM takes the last of two equal flags, so a flag for all points would undo a point's own factor unseen."""
    if point.kind != "vllm":
        return
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--no-").removeprefix("--").removeprefix("enable-").replace("-", "_")
        if getattr(point, name, None) is not None and name in _OF_VLLM:
            raise UserError(f"vllm.flags has {flag.partition('=')[0]}, and a point sets {name}; take one of them out")


_OF_VLLM = ("model", "max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_model_len", "prefix_caching")


def _check(point: Point) -> None:
    if point.kind not in KINDS:
        raise UserError(f"engine = {point.engine!r}: must be one of {', '.join(KINDS)}, like embedded:h100-llama8b")
    if point.kind in (*EMBEDDED, "attach") and not point.engine_argument:
        what = "a URL" if point.kind == "attach" else "a profile"
        raise UserError(f"engine = {point.engine!r}: needs {what} after a colon")
    if point.kind == "vllm" and not point.model:
        raise UserError("engine = 'vllm': needs model = a path or name")
    if (point.workload is None) == (point.trace is None):
        raise UserError("a point needs exactly one of workload and trace")
    if point.users is not None and point.rate is not None:
        raise UserError("users (closed loop) and rate (open loop) exclude one another")
    if point.trace is not None:
        for name in ("preset", "input_length", "output_length", "scale", "cv"):
            if getattr(point, name) is not None:
                raise UserError(f"{name} belongs to a workload; a recorded trace has its own")
        if point.params:
            raise UserError("param belongs to a workload; a recorded trace has its own")
