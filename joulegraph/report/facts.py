"""What a report is made of, as values: requests and workflows of one run with their times and joules.

Times are ns on the run's monotonic axis, energies uJ; what was not measured or not recorded is None, never 0.
May not know: files, plots, HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from traces.graph import PathStep, Span, critical_path
from traces.workflow import Dep, Node

ADDED = ("gpu", "cpu", "dram")
"""components that add up to a request's joules; HBM is inside the GPU's reading and only shown"""


@dataclass(frozen=True, slots=True)
class Joules:
    """Energy of one request over the added components (uJ), its interval, and its parts."""

    own: int = 0
    active: int = 0
    full: int = 0
    low: int = 0
    high: int = 0
    prefill: int = 0
    """part of active"""
    decode: int = 0
    by_component: tuple[tuple[str, int], ...] = ()
    """active uJ per component, HBM included"""


@dataclass(frozen=True, slots=True)
class Request:
    """One LLM request, or one tool node of a replay (kind)."""

    wire_id: str
    node_id: str
    workflow_id: str
    class_name: str
    agent_id: str | None
    kind: str
    outcome: str
    due_ns: int | None
    """None for live traffic: nobody planned it"""
    sent_ns: int | None
    """handed to the wire by the generator; for live traffic, arrival at the proxy"""
    first_ns: int | None
    last_ns: int | None
    end_ns: int
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    planned_tokens: tuple[int | None, int | None] = (None, None)
    delay_ns: int = 0
    deps: tuple[Dep, ...] = ()
    error: str | None = None
    joules: Joules | None = None

    @property
    def begin_ns(self) -> int | None:
        """When the user began to wait: due, else sent."""
        return self.due_ns if self.due_ns is not None else self.sent_ns

    def since(self, start: str, end: str) -> int | None:
        """`end`_ns - `start`_ns of a good LLM request; None where either is unknown."""
        a, b = getattr(self, f"{start}_ns"), getattr(self, f"{end}_ns")
        return b - a if self.outcome == "ok" and self.kind == "llm" and a is not None and b is not None else None

    @property
    def tpot_ns(self) -> float | None:
        """Mean time per output token after the first."""
        decode, tokens = self.since("first", "last"), self.output_tokens
        return decode / (tokens - 1) if decode is not None and tokens is not None and tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Workflow:
    """All requests of one workflow."""

    workflow_id: str
    class_name: str
    requests: tuple[Request, ...]

    @property
    def fate(self) -> Literal["complete", "rejected", "failed"]:
        """complete: every node ended well; rejected: at worst the engine's refusal and what that left undone."""
        outcomes = {r.outcome for r in self.requests}
        if outcomes == {"ok"}:
            return "complete"
        return "rejected" if "rejected" in outcomes and outcomes <= {"ok", "rejected", "skipped"} else "failed"

    @property
    def complete(self) -> bool:
        """Every node ended well."""
        return self.fate == "complete"

    @property
    def makespan_ns(self) -> int | None:
        """First due (or sent) to last end; None unless complete."""
        begins = [r.begin_ns for r in self.requests if r.begin_ns is not None]
        return max(r.end_ns for r in self.requests) - min(begins) if self.complete and begins else None

    @property
    def output_tokens(self) -> int:
        """Output tokens of its good requests."""
        return sum(r.output_tokens or 0 for r in self.requests if r.outcome == "ok")

    def uj(self, kind: str = "active") -> int | None:
        """Sum of `kind` (own, active, full, low, high) over its requests; None when nothing was attributed."""
        known = [getattr(r.joules, kind) for r in self.requests if r.joules is not None]
        return sum(known) if known else None

    @property
    def critical(self) -> list[PathStep]:
        """The chain of nodes that decided the makespan."""
        spans = {
            r.node_id: Span(r.begin_ns, r.sent_ns, r.first_ns, r.end_ns)
            for r in self.requests
            if r.begin_ns is not None and r.sent_ns is not None
        }
        return critical_path([_node(r) for r in self.requests], spans)


def _node(r: Request) -> Node:
    return Node(r.workflow_id, r.node_id, r.begin_ns or 0, 0, 0, delay_ns=r.delay_ns, deps=r.deps)


@dataclass(frozen=True, slots=True)
class Power:
    """Mean watts of one device per bin of the timeline; None where it was not measured."""

    device: str
    domain: str
    watts: tuple[float | None, ...]
    simulated: bool
    integrated: bool
    """made from power readings, not from an energy counter"""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Power and what was going on, on one axis. edges_s: bin borders in seconds since the first request."""

    edges_s: tuple[float, ...]
    power: tuple[Power, ...]
    waiting: tuple[float, ...]
    """mean requests sent and without a first token"""
    decoding: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """One run, read. ledger: ledger.json as it stands, None when nothing was attributed."""

    name: str
    info: dict[str, Any]
    requests: Sequence[Request]
    workflows: Sequence[Workflow]
    ledger: dict[str, Any] | None
    timeline: Timeline | None
    truth: dict[str, float] | None = None
    """error of active joules per request against the embedded engine's truth: median, p95"""
    goodput: dict[str, Any] | None = None
    """as figures.json has it for the whole run, with its bounds (`slo`); None where none were given"""
    sensors: Sequence[dict[str, Any]] = ()
    sampling: dict[str, int] = field(default_factory=dict)
    """ticks, missed, gaps, resets, lost of the sampler"""
    itl_ns: dict[str, float] | None = None
    """quantiles of gaps between tokens over the run"""
    planned: bool = True
    """True when a load generator planned the requests (dispatch journal), False for live traffic"""
    notes: Sequence[str] = ()
    """what was missing or damaged, one sentence each"""
