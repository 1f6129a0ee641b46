"""Writing trace files: rows first, then the manifest in front of them, in place whole or not at all.

Lives here: write_trace and the short form of block ids. May not know: how a file is read.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from traces.errors import UserError
from traces.group import Layout
from traces.lines import is_parquet
from traces.manifest import manifest_row
from traces.workflow import Manifest, Node, Workflow, node_row


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
        if is_parquet(path):
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
