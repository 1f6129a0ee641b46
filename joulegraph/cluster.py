"""The power of a Ray cluster: one sampler per node, its journal brought home onto our clock when the run ends.

Why: shards and sensors of other machines have clocks of their own; loadgen.ray places and measures, this composes. On
a cluster of more than one node, sources and devices carry their node's name, so that equal sensors stay apart.
May not know: what is replayed, what readings mean. Joulegraph must be installed on every node.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadgen.clocks import Mapping, Reading
from loadgen.ray import RayShards
from traces.errors import UserError
from traces.journal import JournalReader, JournalWriter, QueuedWriter
from traces.rundir import RunDir

STAMPS = ("t_ns", "t0_ns", "t1_ns", "until_ns")
"""instants of a power row"""


@dataclass
class _Node:
    """One node's sampler, as we know it."""

    worker: Any
    name: str
    label: str
    """put before its sources and devices; empty on a cluster of one"""
    before: Reading


class NodeSamplers:
    """Start one on every node; `stop` writes power.<node>.jsonl for each."""

    def __init__(self, cluster: RayShards, sources: Sequence[str], run: RunDir) -> None:
        self._cluster = cluster
        self._run = run
        self._nodes: list[_Node] = []
        self.sensors: list[Any] = []
        self.missing: list[Any] = []
        ids = cluster.nodes()
        for number, node in enumerate(ids):
            worker = cluster.place(node)
            said = cluster.ask(worker, begin, tuple(sources))
            if "error" in said:
                raise UserError(f"--ray: node {said['node']}: {said['error']}")
            name = f"{said['node']}-{number}" if len(ids) > 1 else said["node"]
            label = f"{name}." if len(ids) > 1 else ""
            self._nodes.append(_Node(worker, name, label, cluster.reading(worker)))
            self.sensors += [replace(s, source=label + s.source, device=label + s.device) for s in said["sensors"]]
            self.missing += said["missing"]

    def stop(self) -> list[dict[str, Any]]:
        """End sampling everywhere, bring the rows home; how the clocks stood. Safe to call twice."""
        clocks = []
        nodes, self._nodes = self._nodes, []
        for node in nodes:
            mapping = Mapping(node.before, self._cluster.reading(node.worker))
            rows = self._cluster.ask(node.worker, end)
            now, wall = time.monotonic_ns(), time.time_ns()
            journal = JournalWriter(self._run.journal("power", node.name), "power", mono_ns=now, wall_ns=wall)
            for row in rows:
                journal.write(home(row, node.label, mapping))
            journal.close()
            clocks.append({"sampler": node.name, **mapping.as_json()})
        return clocks


def home(row: dict[str, Any], label: str, mapping: Mapping) -> dict[str, Any]:
    """A power row of another node on our clock, its source and device named after the node."""
    out: dict[str, Any] = {k: mapping.ours(v) if k in STAMPS and v is not None else v for k, v in row.items()}
    for name in ("source", "device"):
        if out.get(name) is not None:
            out[name] = label + out[name]
    return out


# ---------------------------------------------------------------------------------------------- on the node


def begin(held: dict[str, Any], sources: tuple[str, ...]) -> dict[str, Any]:
    """Start sampling in this actor's process: {"node", "sensors", "missing"} or {"node", "error"}."""
    import socket

    from energy.sampling import SamplerThread, find_sources, make_sampler

    node = socket.gethostname().split(".")[0] or "host"
    try:
        found = find_sources(sources)
    except UserError as error:
        return {"node": node, "error": str(error)}
    folder = tempfile.TemporaryDirectory(prefix="joulegraph-")
    path = Path(folder.name) / "power.jsonl"
    journal = JournalWriter(path, "power", mono_ns=time.monotonic_ns(), wall_ns=time.time_ns())
    writer = QueuedWriter(journal, every_s=0.5)
    held |= {"folder": folder, "path": path, "writer": writer}
    clock = held["clock"]
    held["thread"] = SamplerThread(make_sampler(found, writer.put, clock=clock), now_ns=clock)
    return {"node": node, "sensors": found.infos(), "missing": found.missing}


def end(held: dict[str, Any]) -> list[dict[str, Any]]:
    """Stop sampling; every row of the journal."""
    held["thread"].close()
    held["writer"].close()
    return list(JournalReader(held["path"]))
