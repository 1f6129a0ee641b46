"""The trace file: JSON Lines (plain or gzip) or Parquet, one row per node, streamed; see docs/traces.md.

Lives here: a trace on disk as rows and as workflows by arrival. How a file is opened is in traces.lines, how it is
written in traces.writing, what a field may hold in traces.rows; whether times and lengths make sense in traces.check.
May not know: the network, clocks, replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.faults import unheard
from traces.fields import Where
from traces.graph import find_cycle
from traces.group import Layout, by_arrival, contiguous
from traces.lines import REMEDY, is_parquet, json_lines, objects
from traces.manifest import parse_manifest
from traces.quantum import block_rule, time_quantum_ms
from traces.rows import expand, parse_row
from traces.workflow import Manifest, Node, Workflow
from traces.writing import workflow_rows, write_trace

__all__ = [
    "Row",
    "TraceFile",
    "Where",
    "graph_problem",
    "layout_of",
    "parse_row",
    "read_trace",
    "workflow_rows",
    "workflows",
    "write_trace",
]

_LOOK_AHEAD = 4096
"""Rows looked at to notice what a file without a manifest leaves unsaid."""
_TELLING = frozenset({"timestamp", "input_length", "workflow_id", "request_id"})
OnProblem = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One parsed row: where it stands, its node, its class."""

    where: Where
    node: Node
    class_name: str
    key: str | None
    """workflow_id as written in the file; None when the row has none"""

    @property
    def root_ns(self) -> int | None:
        """Arrival of a root, None for a node that waits for others."""
        return self.node.arrival_ns if not any(d.blocking for d in self.node.deps) else None


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace on disk. Iterating gives its nodes in file order; every pass opens the file anew."""

    path: Path
    manifest: Manifest
    declared: bool
    """True when the file has a manifest of its own; False when it was inferred (a plain Mooncake file)"""

    def __iter__(self) -> Iterator[Node]:
        return (row.node for row in self.rows())

    def rows(self, on_problem: OnProblem | None = None) -> Iterator[Row]:
        """Parsed rows in file order. A bad row raises UserError, or is told to on_problem and left out."""
        known = _Known()
        for where, raw in objects(self.path, on_problem):
            try:
                yield _row(raw, where, known)
            except UserError as error:
                if on_problem is None:
                    raise
                on_problem(str(error))

    def workflows(self, on_problem: OnProblem | None = None) -> Iterator[Workflow]:
        """Whole workflows by arrival; constant memory when the file is in order (traces.group says what else costs).

        A bad row or a graph that can never run raises UserError; with on_problem it is told there (once per fault) and
        that row or workflow is left out.
        """
        if self.manifest.ordered or layout_of(self.path, unheard if on_problem else None).ordered:
            groups = _in_order(self.path, contiguous(self.rows(on_problem)), on_problem)
        else:
            groups = by_arrival(self.rows(unheard if on_problem else None), self.rows(on_problem))
        for group in groups:
            problem = graph_problem(group)
            if problem is None:
                nodes = tuple(row.node for row in group)
                yield Workflow(nodes[0].workflow_id, nodes, group[0].class_name)
            elif on_problem is None:
                raise UserError(problem)
            else:
                on_problem(problem)


def _in_order(path: Path, groups: Iterable[list[Row]], on_problem: OnProblem | None) -> Iterator[list[Row]]:
    """The groups as they come. UserError where the file breaks its promise to be sorted by arrival, or that is told to
    on_problem and the workflow left out."""
    last = 0
    for group in groups:
        arrival = min((row.root_ns for row in group if row.root_ns is not None), default=last)
        if arrival < last:
            fault = (
                f"{path}:{group[0].where.line}: workflow arrives at {arrival / 1e6:g} ms, before the one above it, but "
                "manifest.ordered is true; set it to false or write the file again with joulegraph trace import"
            )
            if on_problem is None:
                raise UserError(fault)
            on_problem(fault)
            continue
        last = arrival
        yield group


class _Known:
    """Block ids of the rows of the workflow being read: what prefix_ref may name."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.blocks: dict[str, tuple[int, ...]] = {}

    def turn(self, key: str | None) -> None:
        if key is None or key != self.key:
            self.key, self.blocks = key, {}


def _row(raw: dict[str, Any], where: Where, known: _Known) -> Row:
    key = raw.get("workflow_id")
    known.turn(key)
    if "prefix_ref" in raw or "own_blocks" in raw:
        raw = expand(raw, where, known.blocks)
    node, class_name = parse_row(raw, where)
    if node.hash_ids is not None and key is not None:
        known.blocks[node.request_id] = node.hash_ids
    return Row(where, node, class_name, key)


def graph_problem(group: list[Row]) -> str | None:
    """Why the graph of these rows (one workflow) can never run, or None: unknown or duplicate ids, a cycle."""
    if len(group) == 1 and not group[0].node.deps:
        return None
    at: dict[str, Row] = {}
    for row in group:
        first = at.setdefault(row.node.request_id, row)
        if first is not row:
            return row.where.fault("request_id", row.node.request_id, f"line {first.where.line} has it; make it unique")
    for row in group:
        for dep in row.node.deps:
            if dep.on not in at:
                return row.where.fault(
                    "deps.on", dep.on, f"name a request_id of workflow {row.node.workflow_id} or drop the dependency"
                )
    cycle = find_cycle([row.node for row in group])
    if cycle is not None:
        shown = " -> ".join(cycle if len(cycle) <= 8 else [*cycle[:7], "...", cycle[-1]])
        return at[cycle[0]].where.fault("deps", shown, "break the cycle: none of these requests can ever start")
    return None


def read_trace(path: Path, on_problem: OnProblem | None = None) -> TraceFile:
    """Open a trace: its manifest, or what its first rows tell where it has none. UserError when it is not a trace;
    on_problem takes the faults of those first rows instead."""
    declared = _declared(path)
    if declared is not None:
        return TraceFile(path, declared, True)
    raw = next(objects(path), None)
    if raw is None:
        raise UserError(f"{path}: holds no rows; {REMEDY}")
    if not raw[1].keys() & _TELLING:
        raise UserError(f"{path}: not a trace: its first row has none of {', '.join(sorted(_TELLING))}; {REMEDY}")
    plain = TraceFile(path, Manifest(), False)
    first = [row.node for row in islice(plain.rows(on_problem), _LOOK_AHEAD)]
    return replace(plain, manifest=noticed(first))


def _declared(path: Path) -> Manifest | None:
    """The manifest a file states itself."""
    if is_parquet(path):
        from traces import parquet  # pyarrow is slow to import

        found, where = parquet.manifest(path), Where(str(path), 0, 0)
    else:
        where, first = next(json_lines(path), (Where(str(path), 1, 1), {}))
        found = first.get("manifest") if where.line == 1 else None
    return parse_manifest(found, where) if found is not None else None


def noticed(nodes: Iterable[Node]) -> Manifest:
    """The manifest of rows that come without one: Mooncake's rules, the block size that explains their block counts,
    and the time quantum that their stamps show."""
    rows = list(nodes)
    content = "hash" if any(n.hash_ids for n in rows) else "lengths"
    if any(n.messages is not None or n.prompt is not None for n in rows):
        content = "text"
    elif any(n.token_ids is not None for n in rows):
        content = "token_ids"
    rule = block_rule({(n.input_length, len(n.hash_ids)) for n in rows if n.hash_ids is not None}) or (512, "ceil")
    return Manifest(
        block_size=rule[0],
        block_rounding=rule[1],  # type: ignore[arg-type]
        content_mode=content,  # type: ignore[arg-type]
        time_quantum_ms=time_quantum_ms([n.arrival_ns for n in rows]),
    )


def workflows(path: Path, on_problem: OnProblem | None = None) -> Iterator[Workflow]:
    """The workflows of a trace file by arrival; see TraceFile.workflows."""
    return read_trace(path, unheard if on_problem else None).workflows(on_problem)


def layout_of(path: Path, on_problem: OnProblem | None = None) -> Layout:
    """A first pass for the order of the rows; faults of rows are left to the second."""
    layout = Layout()
    for _, raw in objects(path, on_problem):
        deps = raw.get("deps")
        stamp = raw.get("timestamp")
        waits = type(deps) is list and any(type(d) is dict and d.get("blocking", True) for d in deps)
        root = None if waits or type(stamp) not in (int, float) else round(stamp * 1_000_000)  # type: ignore[operator]
        key = raw.get("workflow_id")
        layout.see(key if type(key) is str else None, root)
    return layout
