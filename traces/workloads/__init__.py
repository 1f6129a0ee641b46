"""Synthetic workloads: the four patterns of multi-request LLM work, and some more, as seeded generators of workflows.

    from traces.workloads import Flow, Stream, generate, manifest
    workflows = generate([Stream("agentic", count=10, params={"files": 4}, rate=0.2)], seed=1)

New ones are functions of a Flow (docs/workloads.md). Pure: nothing here reads a clock or writes a file.
"""

from __future__ import annotations

from traces.workflow import Manifest, Workflow
from traces.workloads.flow import Call, Flow, Text, Wire
from traces.workloads.generate import Stream, generate, manifest
from traces.workloads.patterns import PATTERNS
from traces.workloads.presets import PRESETS, Preset

__all__ = [
    "PATTERNS",
    "PRESETS",
    "Call",
    "Flow",
    "Preset",
    "Stream",
    "Text",
    "Wire",
    "demo_trace",
    "generate",
    "manifest",
]


def demo_trace(seed: int = 0) -> tuple[Manifest, list[Workflow]]:
    """The small mix of all four patterns that `joulegraph demo` plays: 200 to 300 requests in about half a minute."""
    workflows = list(generate(PRESETS["composite"]["demo"].streams, seed=seed))
    return manifest(f"joulegraph workload composite --preset demo --seed {seed}"), workflows
