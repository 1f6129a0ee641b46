"""The trace file: JSON Lines (plain or gzip) or Parquet, one row per node, streamed; see docs/traces.md.

Lives here: opening, reading and writing trace files and putting rows together into workflows. What a field may hold is
in traces.rows; whether times and lengths make sense in traces.check. May not know: the network, clocks, replay.
"""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import orjson

from traces.errors import UserError
from traces.graph import find_cycle
from traces.group import Layout, by_arrival, contiguous
from traces.quantum import block_rule, time_quantum_ms
from traces.rows import Where, expand, manifest_row, parse_manifest, parse_row
from traces.workflow import Manifest, Node, Workflow, node_row

__all__ = ["Row", "TraceFile", "Where", "graph_problem", "parse_row", "read_trace", "workflows", "write_trace"]

MAX_LINE = 1 << 28
"""Longest line read, bytes: a row beyond it is not a trace row, and reading it must not eat the machine."""
_LOOK_AHEAD = 4096
"""Rows looked at to notice what a file without a manifest leaves unsaid."""
_REMEDY = "give a .jsonl, .jsonl.gz or .parquet trace, or convert the file with joulegraph trace import"
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
        for where, raw in objects(self.path):
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
        if self.manifest.ordered or layout_of(self.path).ordered:
            groups = contiguous(self.rows(on_problem))
        else:
            groups = by_arrival(self.rows(_ignore if on_problem else None), self.rows(on_problem))
        for group in groups:
            problem = graph_problem(group)
            if problem is None:
                nodes = tuple(row.node for row in group)
                yield Workflow(nodes[0].workflow_id, nodes, group[0].class_name)
            elif on_problem is None:
                raise UserError(problem)
            else:
                on_problem(problem)


def _ignore(problem: str) -> None:
    """The first of two passes: the second tells."""


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
    raw = next(iter(objects(path)), None)
    if raw is None:
        raise UserError(f"{path}: holds no rows; {_REMEDY}")
    if not raw[1].keys() & _TELLING:
        raise UserError(f"{path}: not a trace: its first row has none of {', '.join(sorted(_TELLING))}; {_REMEDY}")
    plain = TraceFile(path, Manifest(), False)
    first = [row.node for row in islice(plain.rows(on_problem), _LOOK_AHEAD)]
    return replace(plain, manifest=noticed(first))


def _declared(path: Path) -> Manifest | None:
    """The manifest a file states itself."""
    if _is_parquet(path):
        from traces import parquet  # pyarrow is slow to import

        found, where = parquet.manifest(path), Where(str(path), 0, 0)
    else:
        where, first = next(_lines(path), (Where(str(path), 1, 1), {}))
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
    return read_trace(path, _ignore if on_problem else None).workflows(on_problem)


def layout_of(path: Path) -> Layout:
    """A first pass for the order of the rows; faults are left to the second."""
    layout = Layout()
    for _, raw in objects(path):
        deps = raw.get("deps")
        stamp = raw.get("timestamp")
        waits = type(deps) is list and any(type(d) is dict and d.get("blocking", True) for d in deps)
        root = None if waits or type(stamp) not in (int, float) else round(stamp * 1_000_000)  # type: ignore[operator]
        key = raw.get("workflow_id")
        layout.see(key if type(key) is str else None, root)
    return layout


# --- files -------------------------------------------------------------------------------------------------------


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def objects(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The raw rows of a trace file, manifest line left out. UserError on what is not a trace."""
    if _is_parquet(path):
        from traces import parquet

        yield from parquet.rows(path)
        return
    for where, row in _lines(path):
        if where.line == 1 and "manifest" in row:
            continue
        yield where, row


def open_binary(path: Path) -> IO[bytes]:
    """A file for reading, through gzip when it is gzipped (by its first bytes, whatever its name). UserError."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; convert it with joulegraph trace import")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a text file, gzipped or not, blank ones left out. UserError on damage and endless lines."""
    number = 0
    with open_binary(path) as file:
        try:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise UserError(f"{path}:{number}: line longer than {MAX_LINE} bytes; {_REMEDY}")
                if not line.isspace():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: gzip data is cut short or damaged after line {number}; fetch or write the file again"
            ) from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _lines(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The JSON objects of a trace file with their places, the manifest line among them."""
    name, row = str(path), 0
    for number, line in raw_lines(path):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            what = "not a trace: line 1 is not JSON" if row == 0 else f"line {number} is not JSON ({error})"
            raise UserError(f"{path}: {what}; {_REMEDY if row == 0 else 'mend or remove the line'}") from error
        if type(value) is not dict:
            raise UserError(f"{path}: line {number} is not a JSON object; {_REMEDY}")
        if "manifest" not in value or number != 1:
            row += 1
        yield Where(name, number, row), value


def write_trace(
    path: Path, manifest: Manifest | Callable[[], Manifest], flow: Iterable[Workflow], *, compact: bool = True
) -> int:
    """Write a trace (.jsonl, .jsonl.gz or .parquet by its suffix), one workflow after the other; the number of nodes.

    The manifest may be a function: it is asked for once all workflows have been written, so that it can say what was
    lost on the way. `ordered` in it is set by what was written. compact stores block ids as references to an earlier
    node of the workflow where that is shorter. The file appears whole or not at all. UserError when it cannot.
    """
    count = _Counted(flow)
    part = path.with_name(path.name + ".part")
    try:
        if _is_parquet(path):
            from traces import parquet

            parquet.write(part, lambda: count.settle(manifest), count.rows(compact=False))
        else:
            _write_lines(part, gzip.open if path.suffix == ".gz" else open, count, manifest, compact)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        part.unlink(missing_ok=True)
    return count.nodes


class _Counted:
    """Workflows on their way into a file: counts nodes and watches the order."""

    def __init__(self, flow: Iterable[Workflow]) -> None:
        self._flow = flow
        self._layout = Layout()
        self.nodes = 0

    def rows(self, compact: bool) -> Iterator[dict[str, Any]]:
        for workflow in self._flow:
            self.nodes += len(workflow.nodes)
            for node in workflow.nodes:
                self._layout.see(node.workflow_id, node.arrival_ns if not node.blocking else None)
            yield from workflow_rows(workflow, compact)

    def settle(self, manifest: Manifest | Callable[[], Manifest]) -> Manifest:
        made = manifest() if callable(manifest) else manifest
        return replace(made, ordered=self._layout.ordered)


def _write_lines(
    part: Path, opened: Any, count: _Counted, manifest: Manifest | Callable[[], Manifest], compact: bool
) -> None:
    """Rows first, then the manifest in front of them: it is known last (gzip members may be joined end to end)."""
    body = part.with_name(part.name + ".rows")
    try:
        with opened(body, "wb") as file:
            for row in count.rows(compact):
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        with opened(part, "wb") as file:
            file.write(orjson.dumps(manifest_row(count.settle(manifest)), option=orjson.OPT_APPEND_NEWLINE))
        with part.open("ab") as whole, body.open("rb") as rows:
            shutil.copyfileobj(rows, whole, 1 << 20)
    finally:
        body.unlink(missing_ok=True)


def workflow_rows(workflow: Workflow, compact: bool) -> Iterator[dict[str, Any]]:
    """The rows of one workflow; compact replaces block ids by a reference to the previous node that has some."""
    previous: Node | None = None
    for node in workflow.nodes:
        row = node_row(node, workflow.class_name)
        if compact and node.hash_ids is not None:
            if previous is not None and previous.hash_ids is not None:
                _shorten(row, node.hash_ids, previous.request_id, previous.hash_ids)
            previous = node
        yield row


def _shorten(row: dict[str, Any], blocks: tuple[int, ...], reference: str, base: tuple[int, ...]) -> None:
    """Replace row["hash_ids"] by prefix_ref, prefix_blocks and own_blocks when they share a long enough prefix."""
    shared = next(
        (i for i, (a, b) in enumerate(zip(blocks, base, strict=False)) if a != b), min(len(blocks), len(base))
    )
    if shared < 8:
        return
    runs: list[list[int]] = []
    for block in blocks[shared:]:
        if runs and runs[-1][0] + runs[-1][1] == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    del row["hash_ids"]
    row |= {"prefix_ref": reference, "prefix_blocks": shared, "own_blocks": runs}
