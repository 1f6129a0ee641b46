"""Is this a trace that can be run and believed? Every fault with its file, line, field, value and remedy.

Lives here: the faults that show only between rows (graph, recorded times) and the pass that collects all faults up to a
bound. The faults of one row alone are in traces.rows. May not know: how a trace is replayed or drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.faults import unheard
from traces.fields import Where
from traces.graph import find_cycle
from traces.group import by_arrival, contiguous
from traces.lines import objects
from traces.rows import KNOWN_FIELDS, expand, parse_row, row_problems
from traces.trace import layout_of, read_trace
from traces.workflow import Dep, Manifest, Node

BOUND = 20
_EXTRA = frozenset({"wait_for", "manifest"})


@dataclass
class Report:
    """What a check found. problems holds at most `bound` sentences; found counts all."""

    path: Path
    manifest: Manifest
    declared: bool
    bound: int
    rows: int = 0
    workflows: int = 0
    edges: int = 0
    found: int = 0
    problems: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    """Fields that no reader looks at, with the number of rows that have them: allowed, but perhaps misspelt."""

    def fault(self, sentence: str) -> None:
        """Count a fault and keep it while there is room."""
        self.found += 1
        if len(self.problems) < self.bound:
            self.problems.append(sentence)

    def damaged(self, sentence: str) -> None:
        """A line that is no row."""
        self.rows += 1
        self.fault(sentence)


@dataclass(frozen=True, slots=True)
class _Item:
    """A row as the check sees it: the node is None when the row itself is at fault."""

    where: Where
    key: str | None
    request: str
    node: Node | None
    stamped: bool
    """the row states its arrival"""

    @property
    def root_ns(self) -> int | None:
        return self.node.arrival_ns if self.node is not None and not self.node.blocking else None


def check(path: Path, bound: int = BOUND) -> Report:
    """Read the whole trace and report every fault. UserError only when it cannot be read as a trace at all."""
    trace = read_trace(path, on_problem=unheard)  # told in full below
    report = Report(path, trace.manifest, trace.declared, bound)
    layout = layout_of(path, unheard)
    if report.manifest.ordered and not layout.ordered:
        why = "rows of a workflow do not stand together" if not layout.contiguous else "arrivals go back in time"
        report.fault(f"{path}:1: manifest.ordered is True, but {why}; write the file again or set it to false")
    if layout.contiguous:
        groups = contiguous(_items(path, report))
    else:
        groups = by_arrival(_items(path, None), _items(path, report))
    for group in groups:
        report.workflows += 1
        for sentence in _graph_faults(group):
            report.fault(sentence)
        for item in group:
            if item.node is not None:
                for sentence in _node_faults(item.where, item.node, report.manifest):
                    report.fault(sentence)
    if report.rows == 0:
        report.fault(f"{path}: holds no rows below its manifest; a trace needs at least one")
    report.problems.sort(key=lambda sentence: _line(path, sentence))
    return report


def _line(path: Path, sentence: str) -> int:
    """The line a sentence is about; graph faults are found after those of later rows."""
    digits = sentence.removeprefix(f"{path}:").partition(":")[0]
    return int(digits) if digits.isdigit() else 0


def _items(path: Path, report: Report | None) -> Iterator[_Item]:
    """The rows one by one; faults of single rows go to the report (None: the first of two passes, nothing is told)."""
    key: str | None = None
    known: dict[str, tuple[int, ...]] = {}
    for where, raw in objects(path, unheard if report is None else report.damaged):
        given = raw.get("workflow_id")
        own = given if type(given) is str else None
        if own is None or own != key:
            key, known = own, {}
        node, faults = _parsed(raw, where, known)
        if node is not None and node.hash_ids is not None and own is not None:
            known[node.request_id] = node.hash_ids
        if report is not None:
            report.rows += 1
            report.edges += len(node.deps) if node is not None else 0
            report.unknown.update(raw.keys() - KNOWN_FIELDS - _EXTRA)
            for sentence in faults:
                report.fault(sentence)
        yield _Item(where, own, str(raw.get("request_id") or f"row{where.row}"), node, raw.get("timestamp") is not None)


def _parsed(raw: dict[str, Any], where: Where, known: dict[str, tuple[int, ...]]) -> tuple[Node | None, list[str]]:
    """The node of a row, or all that is wrong with it."""
    try:
        return parse_row(expand(raw, where, known), where)[0], []
    except UserError as error:
        return None, row_problems(raw, where) or [str(error)]


def _graph_faults(group: list[_Item]) -> Iterator[str]:
    """Duplicate ids, unknown ids, recorded times against edges, a cycle: of the rows of one workflow."""
    at: dict[str, _Item] = {}
    for item in group:
        first = at.setdefault(item.request, item)
        if first is not item:
            yield item.where.fault("request_id", item.request, f"line {first.where.line} has it too; make it unique")
    nodes = [item.node for item in at.values() if item.node is not None]
    for item in group:
        for dep in item.node.deps if item.node is not None else ():
            source = at.get(dep.on)
            if source is None:
                yield item.where.fault(
                    "deps.on", dep.on, "name a request_id of the same workflow or drop the dependency"
                )
            elif source.node is not None and item.node is not None and item.stamped:
                yield from _late(item.where, item.node, dep, source.node)
    cycle = find_cycle(nodes)
    if cycle is not None:
        shown = " -> ".join(cycle if len(cycle) <= 8 else [*cycle[:7], "...", cycle[-1]])
        yield at[cycle[0]].where.fault("deps", shown, "break the cycle: none of these requests can ever start")


def _late(where: Where, node: Node, dep: Dep, source: Node) -> Iterator[str]:
    """A blocking edge that the recorded times contradict: the child arrived before what it waits for.

    Only a recording has t_end and t_first_token; a planned child carries 0 for its arrival, so `start` needs more."""
    started = source.arrival_ns if node.arrival_ns else None
    at = {"end": source.t_end_ns, "first_token": source.t_first_token_ns, "start": started}[dep.anchor]
    if dep.blocking and at is not None and at > node.arrival_ns:
        seen = f"{dep.on} ({dep.anchor} at {at / 1e6:g} ms, this row arrived at {node.arrival_ns / 1e6:g} ms)"
        yield where.fault(
            "deps.on",
            seen,
            "make the edge not blocking, or anchor it where the child really waited (start, first_token)",
        )


def _node_faults(where: Where, node: Node, manifest: Manifest) -> Iterator[str]:
    """Times and lengths of one node that contradict each other."""
    if node.t_end_ns is not None and node.t_end_ns < node.arrival_ns:
        yield where.fault("t_end", node.t_end_ns / 1e6, "make it no earlier than timestamp")
    first = node.t_first_token_ns
    if first is not None and (
        first < node.arrival_ns or first > (node.t_end_ns if node.t_end_ns is not None else first)
    ):
        yield where.fault("t_first_token", first / 1e6, "make it lie between timestamp and t_end")
    if node.cached_length is not None and node.cached_length > node.input_length:
        yield where.fault("cached_length", node.cached_length, f"make it at most input_length = {node.input_length}")
    if node.token_ids is not None and len(node.token_ids) != node.input_length:
        yield where.fault("token_ids", f"{len(node.token_ids)} ids", f"give input_length = {node.input_length} of them")
    most = node.input_length // manifest.block_size
    if manifest.block_rounding == "ceil":
        most = -(-node.input_length // manifest.block_size)
    if node.hash_ids is not None and len(node.hash_ids) > most and manifest.block_unit == "tokens":
        yield where.fault(
            "hash_ids",
            f"{len(node.hash_ids)} ids",
            f"give at most {most}: {node.input_length} tokens in blocks of {manifest.block_size} (manifest.block_size)",
        )
