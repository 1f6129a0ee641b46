"""Mooncake traces (conversation, toolagent, synthetic): rows {timestamp, input_length, output_length, hash_ids}.

A Mooncake file is a valid trace as it is; the import adds the manifest: block size and rounding checked against every
row, and the time quantum of the stamps. No session or request ids in the source: every row is a workflow of its own.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

from traces.importers.base import Head, Imported, ImportOptions, Notes
from traces.quantum import block_rule, time_quantum_ms
from traces.trace import TraceFile
from traces.workflow import Manifest

TITLE = "Mooncake request traces (FAST25 conversation, toolagent, synthetic; arXiv)"


def recognises(head: Head) -> bool:
    """The three fields of every Mooncake row, and none that names a request or a format."""
    keys = head.keys
    return keys >= {"timestamp", "input_length", "output_length"} and not keys & {
        "workflow_id",
        "request_id",
        "chat_id",
        "session_id",
        "schema",
    }


def read(path: Path, options: ImportOptions) -> Imported:
    """Every row kept as it is. Lossless."""
    plain = TraceFile(path, Manifest(), False)
    notes = Notes()
    stamps, pairs = array("q"), set()
    for node in plain:
        stamps.append(node.arrival_ns)
        if node.hash_ids is not None:
            pairs.add((node.input_length, len(node.hash_ids)))
    manifest = Manifest(
        content_mode="hash" if pairs else "lengths",
        source=f"{path.name} (Mooncake)",
        time_quantum_ms=time_quantum_ms(stamps),
    )
    rule = block_rule(pairs)
    if rule is not None:
        manifest = replace(manifest, block_size=rule[0], block_rounding=rule[1])  # type: ignore[arg-type]
    elif pairs:
        notes.say("the number of block ids fits no block size: taken as 512 tokens, rounded up")
    return Imported(manifest, plain.workflows(), notes)
