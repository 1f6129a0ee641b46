"""When workflows arrive: the recorded instants (scaled, windowed, dithered, capped) or a process of one's own.

Why: every liberty taken with a trace's time axis is taken here, seeded, and disclosed as a sentence for run.json.
May live here: pure iterators over workflows and offsets. May not know: clocks, sockets, what is in a prompt.
Only arrivals move; a workflow's inner delays (tool and think time) are never scaled. Integers of ns from the start.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate, count, islice, repeat
from random import Random
from typing import Literal

from loadgen.rates import PROFILES, profile, rescaled
from traces.errors import UserError
from traces.workflow import Manifest, Node, Workflow

Process = Literal["recorded", "constant", "poisson", "gamma"]
_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What to do with a trace's arrivals. Defaults replay them as recorded, with quantised stamps dithered."""

    process: Process = "recorded"
    rate_per_s: float | None = None
    """workflows per second, for every process but `recorded`"""
    rate_profile: str | None = None
    """in place of rate_per_s, a rate that changes with time: ramp:, burst:, mmpp:, series: (loadgen.rates)"""
    cv: float = 1.0
    """coefficient of variation of the gaps, for `gamma`"""
    speed: float = 1.0
    """recorded instants are divided by this; delays inside workflows stay"""
    from_s: float = 0.0
    """window in seconds of trace time, moved to start at 0"""
    until_s: float | None = None
    limit: int | None = None
    """workflows"""
    dither: bool = True
    idle_cap_s: float | None = None
    """longer gaps without an arrival are cut to this (seconds of replay)"""
    absolute: bool = False
    """every node at its recorded instant, whatever its dependencies do (mode "fixed")"""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Workflows in order of arrival, and what was done to them, one sentence each."""

    workflows: Iterable[Workflow]
    sentences: tuple[str, ...]


def plan(workflows: Iterable[Workflow], manifest: Manifest, wanted: Arrivals) -> Plan:
    """Apply `wanted` to a stream of workflows sorted by arrival. Streams: memory is bounded by one quantum of arrivals.

    UserError when a figure makes no sense (speed <= 0, no rate for a process ...).
    """
    check(wanted)
    said: list[str] = []
    stream: Iterable[Workflow] = workflows
    if wanted.from_s > 0 or wanted.until_s is not None:
        stream = _window(stream, round(wanted.from_s * _S), _ns(wanted.until_s))
        said.append(
            f"Only workflows arriving from {wanted.from_s:g} s"
            + ("" if wanted.until_s is None else f" until before {wanted.until_s:g} s")
            + " of the trace, moved to start at 0."
        )
    if wanted.limit is not None:
        stream = islice(stream, wanted.limit)
        said.append(f"At most the first {wanted.limit} workflows.")
    if wanted.absolute:
        stream = map(_unblocked, stream)
        said.append("Every node at its recorded instant; dependencies do not hold it back (mode fixed).")
    if wanted.process == "recorded":
        stream = _recorded(stream, manifest, wanted, said)
    else:
        stream = retime(stream, offsets(wanted))
        said.append(_process_sentence(wanted))
    return Plan(stream, tuple(said))


def settled(manifest: Manifest, wanted: Arrivals, planned: Plan) -> Manifest:
    """The manifest of what is replayed: what was done is disclosed; dithered stamps are quantised no more."""
    exact = wanted.process != "recorded" or wanted.dither
    return replace(
        manifest,
        transforms=(*manifest.transforms, *planned.sentences),
        time_quantum_ms=None if exact else manifest.time_quantum_ms,
    )


def with_process(text: str, base: Arrivals) -> Arrivals:
    """`recorded`, `constant:RATE`, `poisson:RATE` or `gamma:RATE:CV`, put into base. RATE is a number of workflows per
    second or a profile of loadgen.rates (`poisson:ramp:1:20:60`). UserError with the remedy."""
    process, _, rest = text.partition(":")
    cv = 1.0
    try:
        if process == "gamma":
            rest, _, last = rest.rpartition(":")
            cv = float(last)
        rate = float(rest) if rest and rest.partition(":")[0] not in PROFILES else None
    except ValueError:
        rate, process = None, ""
    if process == "recorded" and not rest:
        return replace(base, process="recorded", rate_per_s=None, rate_profile=None)
    if process not in ("constant", "poisson", "gamma") or not rest:
        raise UserError(
            f"--arrivals {text}: write recorded, constant:RATE, poisson:RATE or gamma:RATE:CV; RATE is a number or one "
            f"of {', '.join(PROFILES)} with its figures, like poisson:ramp:1:20:60"
        )
    profiled = rest if rate is None else None
    if profiled is not None:
        profile(profiled, base.seed)  # refuse it now, not at the first arrival
    out = replace(base, process=process, rate_per_s=rate, rate_profile=profiled, cv=cv)  # type: ignore[arg-type]
    check(out)
    return out


def check(wanted: Arrivals) -> None:
    """UserError for figures that cannot be meant."""
    if not wanted.speed > 0:
        raise UserError(f"--speed {wanted.speed:g}: must be above 0; 2 replays twice as fast")
    if wanted.process != "recorded" and wanted.rate_profile is None and not (wanted.rate_per_s or 0) > 0:
        raise UserError(f"--arrivals {wanted.process}:{wanted.rate_per_s}: needs workflows per second above 0")
    if wanted.process == "gamma" and not wanted.cv > 0:
        raise UserError(f"--arrivals gamma: a coefficient of variation of {wanted.cv:g} must be above 0; 1 is Poisson")
    if wanted.limit is not None and wanted.limit < 1:
        raise UserError(f"--limit {wanted.limit}: must be at least 1")
    if wanted.until_s is not None and wanted.until_s <= wanted.from_s:
        raise UserError(f"--until {wanted.until_s:g}: must lie after --from {wanted.from_s:g}")
    if wanted.idle_cap_s is not None and not wanted.idle_cap_s > 0:
        raise UserError(f"--idle-cap {wanted.idle_cap_s:g}: must be above 0 seconds")


def offsets(wanted: Arrivals) -> Iterator[int]:
    """Arrival offsets (ns) of a process, the same for the same seed; endless unless the rate profile ends."""
    if wanted.rate_profile is not None:
        return rescaled(_unit_gaps(wanted), profile(wanted.rate_profile, wanted.seed))
    rate = wanted.rate_per_s or 1.0
    if wanted.process == "constant":  # from the index, so that no rounding adds up
        return (round(index * _S / rate) for index in count())
    return (round(at * _S / rate) for at in accumulate(_unit_gaps(wanted)))


def _unit_gaps(wanted: Arrivals) -> Iterator[float]:
    """Gaps of mean 1 in the shape of the process."""
    random = Random(f"arrivals:{wanted.seed}")
    match wanted.process:
        case "constant":
            return repeat(1.0)
        case "poisson":
            return (random.expovariate(1.0) for _ in count())
        case "gamma":
            shape = 1 / wanted.cv**2
            return (random.gammavariate(shape, 1 / shape) for _ in count())
        case "recorded":
            raise ValueError("recorded arrivals have no process of their own")


def retime(workflows: Iterable[Workflow], at_ns: Iterator[int]) -> Iterator[Workflow]:
    """Each workflow moved as a whole so that its first root arrives at the next offset; ends with the shorter."""
    for workflow, offset in zip(workflows, at_ns):
        yield moved(workflow, offset - arrival_ns(workflow))


def arrival_ns(workflow: Workflow) -> int:
    """Arrival of the first root; of the first row where a cycle leaves no root."""
    if len(workflow.nodes) == 1:
        return workflow.nodes[0].arrival_ns
    return min((n.arrival_ns for n in workflow.nodes if not n.blocking), default=workflow.nodes[0].arrival_ns)


def moved(workflow: Workflow, by_ns: int) -> Workflow:
    """The whole workflow later by by_ns (earlier when negative); durations and delays as they were."""
    if by_ns == 0:
        return workflow
    return Workflow(
        workflow.workflow_id, tuple(_at(n, n.arrival_ns + by_ns) for n in workflow.nodes), workflow.class_name
    )


def _at(node: Node, arrival: int) -> Node:
    by = arrival - node.arrival_ns
    if node.t_end_ns is None and node.t_first_token_ns is None:
        return replace(node, arrival_ns=arrival)
    first = None if node.t_first_token_ns is None else node.t_first_token_ns + by
    end = None if node.t_end_ns is None else node.t_end_ns + by
    return replace(node, arrival_ns=arrival, t_first_token_ns=first, t_end_ns=end)


def _recorded(stream: Iterable[Workflow], manifest: Manifest, wanted: Arrivals, said: list[str]) -> Iterable[Workflow]:
    quantum_ms = manifest.time_quantum_ms
    if wanted.dither and quantum_ms:
        stream = _dither(stream, round(quantum_ms * 1e6), wanted.seed)
        said.append(
            f"Arrival stamps are multiples of {quantum_ms:g} ms; each workflow was moved later by a uniform random "
            f"share of that (seed {wanted.seed})."
        )
    if wanted.speed != 1.0:
        stream = (_scaled(w, wanted.speed) for w in stream)
        said.append(f"Arrivals divided by {wanted.speed:g}; delays inside workflows as recorded.")
    if wanted.idle_cap_s is not None:
        stream = _idle_capped(stream, round(wanted.idle_cap_s * _S))
        said.append(f"Gaps of more than {wanted.idle_cap_s:g} s without an arrival were cut to that.")
    return stream


def _window(stream: Iterable[Workflow], start_ns: int, end_ns: int | None) -> Iterator[Workflow]:
    for workflow in stream:
        at = arrival_ns(workflow)
        if end_ns is not None and at >= end_ns:
            return
        if at >= start_ns:
            yield moved(workflow, -start_ns)


def _unblocked(workflow: Workflow) -> Workflow:
    nodes = (
        replace(n, deps=tuple(replace(d, blocking=False) for d in n.deps)) if n.deps else n for n in workflow.nodes
    )
    return Workflow(workflow.workflow_id, tuple(nodes), workflow.class_name)


def _scaled(workflow: Workflow, speed: float) -> Workflow:
    nodes = tuple(_at(n, round(n.arrival_ns / speed)) for n in workflow.nodes)
    return Workflow(workflow.workflow_id, nodes, workflow.class_name)


def _dither(stream: Iterable[Workflow], quantum_ns: int, seed: int) -> Iterator[Workflow]:
    """Uniform in [0, quantum), keyed by workflow id (so shards and limits agree), put back in order of arrival."""
    held: list[tuple[int, int, Workflow]] = []
    for index, workflow in enumerate(stream):
        at = arrival_ns(workflow)
        while held and held[0][0] <= at:
            yield heapq.heappop(held)[2]
        digest = blake2b(f"{seed}:{workflow.workflow_id}".encode(), digest_size=8).digest()
        shift = int.from_bytes(digest, "little") * quantum_ns >> 64
        heapq.heappush(held, (at + shift, index, moved(workflow, shift)))
    while held:
        yield heapq.heappop(held)[2]


def _idle_capped(stream: Iterable[Workflow], cap_ns: int) -> Iterator[Workflow]:
    last, cut = 0, 0
    for workflow in stream:
        at = arrival_ns(workflow)
        cut += max(0, at - last - cap_ns)
        last = max(last, at)
        yield moved(workflow, -cut)


def _process_sentence(wanted: Arrivals) -> str:
    shape = f" with coefficient of variation {wanted.cv:g}" if wanted.process == "gamma" else ""
    rate = wanted.rate_profile or f"{wanted.rate_per_s:g} workflows/s"
    return f"Arrivals replaced by a {wanted.process} process of {rate}{shape} (seed {wanted.seed})."


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * _S)
