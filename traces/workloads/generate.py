"""From patterns to a trace: parameters checked, arrivals drawn, streams merged in order of arrival.

A stream is one pattern arriving by one process; a trace is one or more streams. Everything is seeded: the same streams
and seed give the same trace, and a stream's workflows do not change when another stream is added.
Pure. May not know: files (traces.trace writes), the load generator's own arrival processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from random import Random
from typing import Any

from traces.errors import UserError
from traces.workflow import Manifest, Workflow
from traces.workloads.blocks import Blocks
from traces.workloads.flow import Flow, Wire
from traces.workloads.patterns import PATTERNS, Pattern

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Stream:
    """Workflows of one pattern and how they arrive."""

    pattern: str | Pattern
    """a name of PATTERNS, "composite", or a function of a Flow"""
    count: int
    """workflows in all"""
    class_name: str = ""
    """empty: the pattern's name"""
    params: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 0.0
    """workflows per second, open loop; 0: all at start_s"""
    cv: float = 1.0
    """coefficient of variation of the gaps (gamma): 1 is Poisson, 0 is a metronome"""
    gaps_s: tuple[float, ...] = ()
    """explicit gaps instead of a rate, repeated"""
    start_s: float = 0.0
    users: int = 0
    """sessions the workflows are dealt to in turn; 0: no session ids"""
    scale: float = 1.0
    """multiplies every length of text"""

    @property
    def name(self) -> str:
        """Class name of its workflows."""
        if self.class_name:
            return self.class_name
        return self.pattern if isinstance(self.pattern, str) else self.pattern.__name__.replace("_", "-")


def resolve(pattern: str | Pattern) -> Pattern:
    """The function of a pattern. UserError lists the names."""
    if not isinstance(pattern, str):
        return pattern
    if pattern == "composite":
        return composite
    if pattern not in PATTERNS:
        raise UserError(f"workload {pattern!r} is unknown; choose one of {', '.join([*PATTERNS, 'composite'])}")
    return PATTERNS[pattern]


def parameters(pattern: str | Pattern) -> dict[str, inspect.Parameter]:
    """The keyword parameters of a pattern with their defaults, in order (for --list and for checking)."""
    given = inspect.signature(resolve(pattern)).parameters.values()
    return {p.name: p for p in given if p.kind is p.KEYWORD_ONLY}


def check_params(pattern: str | Pattern, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in the types the pattern wants (texts of a command line converted). UserError names the parameter."""
    known = parameters(pattern)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(resolve(pattern)).parameters.values())
    out: dict[str, Any] = {}
    for key, value in params.items():
        name = key.replace("-", "_") if "." not in key else key
        if name not in known and not (open_ended and "." in name):
            raise UserError(f"parameter {key!r} is unknown here; choose one of {', '.join(known) or '(none)'}")
        out[name] = _typed(name, value, known.get(name))
    return out


def _typed(name: str, value: Any, wanted: inspect.Parameter | None) -> Any:
    """Whole-number parameters as int; everything else stays an amount or a word."""
    if wanted is None or not isinstance(value, str):
        return value
    whole = wanted.annotation in ("int", int) or (
        wanted.annotation is wanted.empty and type(wanted.default) is int and value.isdigit()
    )
    if not whole:
        return value
    if not value.isdigit():
        raise UserError(f"parameter {name}={value!r} is not a whole number; give one such as {wanted.default}")
    return int(value)


def composite(
    flow: Flow, *, mix: str = "interactive:1,sequential:1,agentic:1", label: str = "members", **members: Any
) -> None:
    """A mix: each workflow is one of several patterns, drawn by weight.

    mix: pattern:weight, comma separated. label: members (each workflow is of its pattern's class) | whole (all keep the
    class of the mix). A member's own parameters as member.parameter=value.
    """
    names, weights = parse_mix(mix)
    for key in members:
        if key.split(".", 1)[0] not in names:
            raise UserError(f"parameter {key!r} belongs to no member of the mix; members are {', '.join(names)}")
    name = flow.rng.choices(names, weights)[0]
    if label not in ("members", "whole"):
        raise UserError(f"parameter label is {label!r}; choose members or whole")
    if label == "members":
        flow.class_name = name
    own = {k.split(".", 1)[1]: v for k, v in members.items() if k.startswith(f"{name}.")}
    resolve(name)(flow, **check_params(name, own))


def parse_mix(text: str) -> tuple[list[str], list[float]]:
    """`chat:40,sequential:9` -> names and weights. UserError on an unknown name or weight."""
    names: list[str] = []
    weights: list[float] = []
    for entry in text.split(","):
        name, _, weight = entry.strip().partition(":")
        if name == "composite":
            raise UserError("parameter mix names composite itself; list its members instead")
        resolve(name)
        try:
            value = float(weight or 1)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise UserError(f"parameter mix has weight {weight!r} for {name}; weights are numbers above 0")
        names.append(name)
        weights.append(value)
    return names, weights


def _arrivals(stream: Stream, rng: Random) -> Iterator[int]:
    """Due instants in ns, count of them, never falling."""
    at = stream.start_s
    for i in range(stream.count):
        yield round(at * _NS)
        if stream.gaps_s:
            at += stream.gaps_s[i % len(stream.gaps_s)]
        elif stream.rate > 0:
            mean = 1 / stream.rate
            at += rng.gammavariate(stream.cv**-2, mean * stream.cv**2) if stream.cv > 0 else mean


def _check(stream: Stream) -> Stream:
    if stream.count < 1:
        raise UserError(f"--count is {stream.count}; ask for at least one workflow")
    if not 0 <= stream.rate < float("inf") or not 0 <= stream.cv < 100:
        raise UserError(
            f"--rate {stream.rate} or --cv {stream.cv} is out of range; rates are 0 or more, cv is 0 to 100"
        )
    if not 0 < stream.scale < float("inf") or stream.users < 0:
        raise UserError(
            f"--scale {stream.scale} or --users {stream.users} is out of range; scale is above 0, users 0 or more"
        )
    return replace(stream, params=check_params(stream.pattern, stream.params))


def _workflows(stream: Stream, prefix: str, blocks: Blocks, seed: str, wire: Wire) -> Iterator[Workflow]:
    build = resolve(stream.pattern)
    for i, arrival_ns in enumerate(_arrivals(stream, Random(f"{seed}:{prefix}:arrivals"))):
        flow = Flow(
            workflow_id=f"{prefix}-{i}",
            arrival_ns=arrival_ns,
            rng=Random(f"{seed}:{prefix}:{i}"),
            blocks=blocks,
            seed=seed,
            class_name=stream.name,
            session_id=f"user-{i % stream.users}" if stream.users else None,
            wire=wire,
            scale=stream.scale,
        )
        build(flow, **stream.params)
        yield flow.workflow()


def generate(
    streams: Sequence[Stream], *, seed: int = 0, block_size: int = 16, wire: Wire | None = None
) -> Iterator[Workflow]:
    """Workflows of all streams in order of arrival. UserError on bad parameters, at the first workflow at latest."""
    checked = [_check(s) for s in streams]
    if block_size < 1:
        raise UserError(f"--block-size is {block_size}; a block holds at least one token")
    blocks = Blocks(block_size)
    names = [s.name for s in checked]
    prefixes = [n if names.count(n) == 1 else f"{n}-{chr(97 + names[:i].count(n))}" for i, n in enumerate(names)]
    parts = [_workflows(s, p, blocks, str(seed), wire or Wire()) for s, p in zip(checked, prefixes, strict=True)]
    return merge(*parts, key=lambda w: w.arrival_ns)


def manifest(source: str, *, block_size: int = 16) -> Manifest:
    """The manifest of a generated trace: chained global block ids, lengths exact, no text."""
    return Manifest(block_size=block_size, source=source, licence="none: synthetic", content_mode="hash")
