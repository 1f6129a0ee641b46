"""What is in a trace, in figures: counts, arrivals, lengths, graph shapes, prefix sharing. One pass, streaming.

Lives here: the sums and the text of `joulegraph trace show`. May not know: file formats, rich, how a trace is replayed.
Memory: 8 bytes per request and length, and one entry per distinct prefix block up to a bound that is told.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from traces.graph import topological
from traces.quantum import time_quantum_ms
from traces.workflow import Manifest, Node, Workflow

MAX_BLOCKS = 5_000_000
"""Distinct blocks remembered for prefix sharing (about 500 MB); requests after that are not counted in it."""
LONG_GAP_S = 600
"""A gap between arrivals worth a word: replayed as it is, nothing happens for so long."""
_PERCENTILES = (5, 50, 95, 99)


def _numbers() -> array[int]:
    return array("q")


@dataclass
class Prefixes:
    """Token hits in an infinite cache, prefix-closed: the share of prompt tokens whose blocks were seen before."""

    manifest: Manifest
    tokens: int = 0
    hit_tokens: int = 0
    blocks: int = 0
    requests: int = 0
    hits: int = 0
    """requests with at least one block seen before"""
    left_out: int = 0
    _seen: set[Any] = field(default_factory=set)

    def add(self, node: Node) -> None:
        """Take one request in order of arrival."""
        if node.hash_ids is None:
            return
        if len(self._seen) >= MAX_BLOCKS:
            self.left_out += 1
            return
        scope: str | None = None
        if self.manifest.hash_scope != "global":
            scope = node.session_id if self.manifest.hash_scope == "session" else node.workflow_id
        keys: list[Any] = [b if scope is None else (scope, b) for b in node.hash_ids]
        shared = 0
        for key in keys:
            if key not in self._seen:
                break
            shared += 1
        self._seen.update(keys[shared:])
        self.requests += 1
        self.blocks += len(keys)
        self.hits += shared > 0
        self.tokens += node.input_length
        hit = shared * self.manifest.block_size
        if self.manifest.block_unit == "bytes" and keys:
            hit = round(shared / len(keys) * node.input_length)
        self.hit_tokens += min(hit, node.input_length)

    def row(self) -> dict[str, Any] | None:
        """None when no request carries blocks."""
        if self.requests == 0:
            return None
        return {
            "requests": self.requests,
            "blocks": self.blocks,
            "distinct_blocks": len(self._seen),
            "token_hit_share": self.hit_tokens / self.tokens if self.tokens else None,
            "request_hit_share": self.hits / self.requests,
            "requests_left_out": self.left_out,
        }


@dataclass
class Stats:
    """Sums over the workflows of a trace, added in order of arrival."""

    manifest: Manifest
    workflows: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    edge_kinds: Counter[str] = field(default_factory=Counter)
    provenance: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    arrivals: array[int] = field(default_factory=_numbers)
    stamps: array[int] = field(default_factory=_numbers)
    inputs: array[int] = field(default_factory=_numbers)
    outputs: array[int] = field(default_factory=_numbers)
    sizes: array[int] = field(default_factory=_numbers)
    depths: array[int] = field(default_factory=_numbers)
    prefixes: Prefixes = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = Prefixes(self.manifest)

    def add(self, workflow: Workflow) -> None:
        """Take one workflow."""
        self.workflows += 1
        self.classes[workflow.class_name] += 1
        self.arrivals.append(workflow.arrival_ns)
        self.sizes.append(len(workflow.nodes))
        depth, shape = shape_of(workflow.nodes)
        self.depths.append(depth)
        self.shapes[shape] += 1
        for node in workflow.nodes:
            self._add_node(node)

    def _add_node(self, node: Node) -> None:
        self.kinds[node.kind] += 1
        for dep in node.deps:
            self.edge_kinds[dep.kind if dep.blocking else f"{dep.kind} (not blocking)"] += 1
            self.provenance[dep.provenance] += 1
        if not node.deps:
            self.stamps.append(node.arrival_ns)
        if node.kind != "llm":
            return
        self.inputs.append(node.input_length)
        self.outputs.append(node.output_length)
        self.models[node.model or "(none named)"] += 1
        if node.status is not None:
            self.statuses[node.status] += 1
        self.prefixes.add(node)

    def row(self) -> dict[str, Any]:
        """All figures as one JSON-ready object; None where a figure does not exist."""
        return {
            "workflows": self.workflows,
            "nodes": sum(self.sizes),
            "requests": len(self.inputs),
            "classes": dict(self.classes),
            "kinds": dict(self.kinds),
            "models": dict(self.models.most_common(10)),
            "statuses": dict(self.statuses),
            "arrivals": arrivals(self.arrivals),
            "time_quantum_ms": self.manifest.time_quantum_ms or time_quantum_ms(self.stamps),
            "input_tokens": spread(self.inputs),
            "output_tokens": spread(self.outputs),
            "nodes_per_workflow": spread(self.sizes),
            "depth": spread(self.depths),
            "shapes": dict(self.shapes.most_common(12)),
            "edges": dict(self.edge_kinds),
            "provenance": dict(self.provenance),
            "prefix": self.prefixes.row(),
        }


def collect(manifest: Manifest, flow: Iterable[Workflow]) -> Stats:
    """The figures of a stream of workflows in order of arrival."""
    stats = Stats(manifest)
    for workflow in flow:
        stats.add(workflow)
    return stats


def arrivals(stamps_ns: Sequence[int]) -> dict[str, Any]:
    """Rate and regularity of workflow arrivals (sorted ns). CV of the gaps; None below two of them."""
    gaps = [b - a for a, b in pairwise(stamps_ns)]
    span = stamps_ns[-1] - stamps_ns[0] if stamps_ns else 0
    mean = span / len(gaps) if len(gaps) > 1 else 0.0
    deviation = math.sqrt(math.fsum((g - mean) ** 2 for g in gaps) / len(gaps)) if mean else 0.0
    return {
        "span_s": span / 1e9,
        "rate_per_s": len(gaps) / (span / 1e9) if span else None,
        "cv": deviation / mean if mean else None,
        "longest_gap_s": max(gaps) / 1e9 if gaps else None,
        "same_instant_share": sum(g == 0 for g in gaps) / len(gaps) if gaps else None,
    }


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Sum, mean and exact percentiles (nearest rank); None without values."""
    if not values:
        return None
    ranked = sorted(values)
    at = {f"p{p}": ranked[max(0, -(-p * len(ranked) // 100) - 1)] for p in _PERCENTILES}
    return {"sum": sum(ranked), "mean": sum(ranked) / len(ranked), **at, "max": ranked[-1]}


def shape_of(nodes: Sequence[Node]) -> tuple[int, str]:
    """Depth (nodes on the longest chain of blocking edges) and the name of the shape: single, independent, chain,
    fan-out, fan-in, fan-out/fan-in, tree, graph. Unknown ids are ignored."""
    if len(nodes) == 1:
        return 1, "single"
    depth: dict[str, int] = {}
    parents: Counter[int] = Counter()
    children: Counter[str] = Counter()
    for node in topological(nodes):
        before = {d.on for d in node.blocking if d.on in depth}
        depth[node.request_id] = 1 + max((depth[on] for on in before), default=0)
        parents[len(before)] += 1
        children.update(before)
    return max(depth.values(), default=0), _shape_name(len(nodes), parents, children, max(depth.values(), default=0))


def _shape_name(nodes: int, parents: Counter[int], children: Counter[str], depth: int) -> str:
    joins = sum(count for number, count in parents.items() if number > 1)
    forks = sum(1 for number in children.values() if number > 1)
    if depth == 1:
        return "independent"
    if not joins and not forks:
        return "chain" if parents[0] == 1 else "chains"
    if not joins:
        return "fan-out" if depth == 2 and parents[0] == 1 else "tree"
    if not forks:
        return "fan-in"
    return "fan-out/fan-in" if joins == 1 and forks == 1 and depth == 3 else "graph"


def _counts(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    return [f"{title:<20}" + ", ".join(f"{name} {count:,}" for name, count in counts.items())]


def _spread_line(title: str, values: dict[str, float] | None) -> list[str]:
    if values is None:
        return []
    shown = "  ".join(f"{name} {value:,.0f}" for name, value in values.items() if name not in ("sum", "mean"))
    return [f"{title:<20}mean {values['mean']:,.1f}  {shown}  (sum {values['sum']:,.0f})"]


def text(row: dict[str, Any], manifest: Manifest, declared: bool) -> str:
    """The figures for a person, one topic per line."""
    when, prefix = row["arrivals"], row["prefix"]
    lines = [
        f"{'workflows':<20}{row['workflows']:,} with {row['nodes']:,} nodes, {row['requests']:,} of them LLM requests"
    ]
    for title, name in (("classes", "classes"), ("kinds", "kinds"), ("models", "models"), ("status", "statuses")):
        lines += _counts(title, row[name])
    rate = "" if when["rate_per_s"] is None else f", {when['rate_per_s']:.3g} workflows/s"
    cv = "" if when["cv"] is None else f", CV of the gaps {when['cv']:.2f}"
    lines.append(f"{'arrivals':<20}over {when['span_s']:,.1f} s{rate}{cv}")
    if (when["longest_gap_s"] or 0) > LONG_GAP_S:
        lines.append(f"{'':<20}longest gap {when['longest_gap_s']:,.0f} s: replay with --idle-cap to skip the wait")
    if row["time_quantum_ms"] is not None:
        lines.append(
            f"{'':<20}stamps are multiples of {row['time_quantum_ms']:g} ms: "
            "that CV is the recorder's clock, not burstiness; replay dithers within a step and says so"
        )
    lines += _spread_line("input tokens", row["input_tokens"]) + _spread_line("output tokens", row["output_tokens"])
    lines += _spread_line("nodes per workflow", row["nodes_per_workflow"]) + _spread_line("depth", row["depth"])
    lines += (
        _counts("shapes", row["shapes"]) + _counts("edges", row["edges"]) + _counts("provenance", row["provenance"])
    )
    if prefix is not None:
        lines.append(
            f"{'prefix sharing':<20}{prefix['token_hit_share'] or 0:.1%} of prompt tokens, "
            f"{prefix['request_hit_share']:.1%} of requests hit in an infinite cache "
            f"({prefix['blocks']:,} blocks, {prefix['distinct_blocks']:,} distinct)"
        )
        if prefix["requests_left_out"]:
            lines.append(f"{'':<20}counted over the first {prefix['requests']:,} requests only")
    rules = "" if declared else "; no manifest: read by the rules of Mooncake"
    lines.append(
        f"{'content':<20}{manifest.content_mode}, blocks of {manifest.block_size} {manifest.block_unit} "
        f"({manifest.block_rounding}, scope {manifest.hash_scope}"
        f"{', chained' if manifest.chained else ''}){rules}"
    )
    lines += [f"{'source':<20}{manifest.source}"] if manifest.source else []
    lines += [f"{'licence':<20}{manifest.licence}"] if manifest.licence else []
    lines += [f"{'done to it' if i == 0 else '':<20}{t}" for i, t in enumerate(manifest.transforms)]
    return "\n".join(lines)
