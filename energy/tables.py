"""What attribution works on, as columns: requests, engine steps, sensor series of one run. Values only.

Times are int64 ns on the monotonic axis; NONE (the smallest int64) stands for "not known" in integer columns, never 0.
Lives here: the table types and their masks. May not know: files, JSON, how energy is split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.records import PowerEvent, SensorInfo

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
NONE = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of few distinct strings: names[codes[i]], code -1 where there is none."""

    codes: npt.NDArray[np.int32]
    names: list[str]

    def at(self, i: int) -> str | None:
        """The string of row i."""
        code = int(self.codes[i])
        return self.names[code] if code >= 0 else None


@dataclass(frozen=True, slots=True)
class RequestTable:
    """One row per request, in file order. read_ns[read_start[i]:read_start[i + 1]] are the reads of row i."""

    ids: list[str]
    """what joins with the engine's truth: X-Request-Id on the wire"""
    nodes: list[str | None]
    workflow: Labels
    classes: Labels
    agent: Labels
    outcome: Labels
    upstream: Labels
    due_ns: Ints
    sent_ns: Ints
    """handed to the engine"""
    first_ns: Ints
    last_ns: Ints
    end_ns: Ints
    prompt: Ints
    cached: Ints
    completion: Ints
    queue_ns: Ints
    prefill_ns: Ints
    decode_ns: Ints
    drafted: Ints
    """draft tokens verified for it (speculative decoding), and those of them accepted"""
    accepted: Ints
    read_start: Ints
    read_ns: Ints
    read_tokens: npt.NDArray[np.integer[Any]]
    deps: Any = None
    """list of [{on, blocking, anchor, kind}] per row"""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class StepTable:
    """One row per engine iteration in order of time (level L3)."""

    t_ns: Ints
    ctx_requests: Ints
    ctx_tokens: Ints
    generation_requests: Ints
    generation_tokens: Ints
    running: Ints
    preempted: Ints
    """NONE where the engine does not say"""
    engine: Ints

    def __len__(self) -> int:
        return len(self.t_ns)


@dataclass(frozen=True, slots=True)
class Series:
    """Every read of one sensor in order of time; failed reads are left out and counted."""

    info: SensorInfo
    t0_ns: Ints
    t1_ns: Ints
    value: Ints
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """One engine: the address that its requests were sent to, its devices, its index in the iteration stream (None: not
    said), and the share of its devices that is its own (MIG slices; None: all of them)."""

    upstream: str
    devices: tuple[str, ...]
    engine: int | None = None
    mig_share: float | None = None


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as loaded. notes: what was missing or damaged, one sentence each."""

    requests: RequestTable
    steps: StepTable | None
    series: dict[str, Series]
    events: list[PowerEvent]
    processes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    roles: dict[int, str] = field(default_factory=dict)
    """pid -> engine | proxy | client | ..., from run.json"""
    preempted: int | None = None
    """times the engine took a running sequence's blocks away, None where it does not say"""
    groups: list[Group] = field(default_factory=list)
    """the engines that run.json names with their devices"""


def known(column: Ints) -> Mask:
    """Where an integer column holds a value."""
    out: Mask = column != NONE
    return out


def labels(values: list[str | None]) -> Labels:
    """Encode a list of strings."""
    index: dict[str, int] = {}
    codes = np.fromiter((-1 if v is None else index.setdefault(v, len(index)) for v in values), np.int32, len(values))
    return Labels(codes, list(index))


def request_table(rows: list[dict[str, Any]]) -> RequestTable:
    """A table from plain dicts (tests, simulators): keys as the columns, `reads` = [(t_ns, tokens), ...]."""

    def ints(name: str) -> Ints:
        return np.array([NONE if r.get(name) is None else int(r[name]) for r in rows], np.int64)

    reads = [r.get("reads") or [] for r in rows]
    counts = np.array([len(r) for r in reads], np.int64)
    flat = [x for r in reads for x in r]
    return RequestTable(
        ids=[str(r["id"]) for r in rows],
        nodes=[r.get("node") for r in rows],
        workflow=labels([r.get("workflow") for r in rows]),
        classes=labels([r.get("class") for r in rows]),
        agent=labels([r.get("agent") for r in rows]),
        outcome=labels([r.get("outcome", "ok") for r in rows]),
        upstream=labels([r.get("upstream") for r in rows]),
        **{f"{n}_ns": ints(f"{n}_ns") for n in ("due", "sent", "first", "last", "end", "queue", "prefill", "decode")},
        prompt=ints("prompt"),
        cached=ints("cached"),
        completion=ints("completion"),
        drafted=ints("drafted"),
        accepted=ints("accepted"),
        read_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        read_ns=np.array([t for t, _ in flat], np.int64),
        read_tokens=np.array([k for _, k in flat], np.int32),
        deps=[list(r.get("deps") or ()) for r in rows],
    )
