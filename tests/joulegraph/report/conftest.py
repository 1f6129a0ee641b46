"""A run directory made by hand: workflows served by a formula, sensors that integrate a formula, every journal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.graph import topological
from traces.records import DispatchRecord, PowerEvent, PowerSample, RequestRecord, SensorInfo
from traces.rundir import RunDir
from traces.workflow import Node, Workflow, dep_row
from traces.workloads import demo_trace

MS = 1_000_000
T0 = 50_000 * 1_000 * MS
SENSORS = {"gpu": (90.0, 160.0, 6.0), "hbm": (30.0, 25.0, 1.0), "cpu": (40.0, 10.0, 0.5), "dram": (5.0, 1.0, 0.1)}
"""component: idle W, W while anything runs, W per request in flight"""

Served = list[tuple[Workflow, Node, DispatchRecord]]


def serve(workflows: list[Workflow], late_ns: int = 200_000) -> Served:
    """Every node in due order, served without queueing: 5 ms + 0.05 ms per prompt token, then 8 ms per token."""
    out: Served = []
    for workflow in workflows:
        ended: dict[str, int] = {}
        for place, node in enumerate(topological(workflow.nodes)):
            ready = max((ended[d.on] for d in node.blocking), default=T0 + node.arrival_ns)
            due = ready + (node.delay_ns if node.blocking else 0)
            sent = due + late_ns + 10_000 * place
            first = sent + 5 * MS + node.input_length * MS // 20
            last = first + (node.output_length - 1) * 8 * MS
            ended[node.request_id] = last + MS
            record = DispatchRecord(
                request_id=node.request_id,
                workflow_id=workflow.workflow_id,
                wire_id=f"r-{len(out)}",
                outcome="ok",
                due_ns=due,
                t_end_ns=last + MS,
                class_name=workflow.class_name,
                agent_id=node.agent_id,
                deps=tuple(dep_row(d) for d in node.deps),
                api="completions",
                model="toy",
                delay_ns=node.delay_ns,
                t_sent_ns=sent,
                t_first_byte_ns=first,
                t_first_token_ns=first,
                t_last_token_ns=last,
                status=200,
                finish_reason="length",
                planned_input_tokens=node.input_length,
                planned_output_tokens=node.output_length,
                prompt_tokens=node.input_length,
                cached_tokens=0,
                completion_tokens=node.output_length,
                read_dt_ns=(first - sent, *([8 * MS] * (node.output_length - 1))),
                read_tokens=(1,) * node.output_length,
            )
            out.append((workflow, node, record))
    return out


def write_power(run: RunDir, served: Served, end_ns: int) -> None:
    """Counters of every component, read every 20 ms from 3 s before the first request to 3 s after the last."""
    t = np.arange(T0 - 3000 * MS, end_ns + 3000 * MS, 20 * MS)
    starts = np.sort([r.t_sent_ns or 0 for _, _, r in served])
    ends = np.sort([r.t_end_ns for _, _, r in served])
    active = np.searchsorted(starts, t, "right") - np.searchsorted(ends, t, "right")
    with_writer = run.writer("power", "host", mono_ns=int(t[0]), wall_ns=0)
    for name, (idle, busy, each) in SENSORS.items():
        source = f"sim.{name}0.energy"
        with_writer.write(
            SensorInfo(source, name, f"{name}0", "counter", "uJ", 20 * MS, 1000, simulated=True, limits="made up")
        )
        watts = idle + np.where(active > 0, busy, 0.0) + each * active
        value = np.concatenate([[0], np.cumsum(watts[:-1] * 0.02 * 1e6)]).astype(int)
        for at, uj in zip(t.tolist(), value.tolist(), strict=True):
            with_writer.write(PowerSample(source, at, at + 20_000, uj))
    with_writer.write(PowerEvent("heartbeat", int(t[-1]), ticks=len(t), missed=0, cpu_ns=1))
    with_writer.close()


def build(path: Path, served: Served, *, proxy: bool = True, dispatch: bool = True, power: bool = True) -> RunDir:
    run = RunDir.create(path)
    end_ns = max(r.t_end_ns for _, _, r in served)
    journals: list[tuple[bool, str, Callable[[DispatchRecord, Node], Any]]] = [
        (dispatch, "dispatch", lambda r, n: r),
        (proxy, "requests", as_seen),
    ]
    for wanted, name, make in journals:
        if wanted:
            writer = run.writer(name, "0", mono_ns=T0, wall_ns=0)
            for _, node, record in served:
                writer.write(make(record, node))
            writer.close()
    if power:
        write_power(run, served, end_ns)
    run.update_info(
        state="complete",
        command="joulegraph replay t.jsonl --embedded toy --seed 0",
        versions={"joulegraph": "0.1.0", "python": "3.11.7"},
        host={"os": "Linux 6.1", "cpu": "a processor", "cores": 2},
        config={"target": "embedded:toy", "speed": 1.0, "seed": 0},
        transforms=["arrivals as recorded"],
        load={"valid": True, "why": [], "lateness_p99_ns": 900_000},
    )
    return run


def as_seen(record: DispatchRecord, node: Node) -> RequestRecord:
    """The same request in the proxy's journal."""
    return RequestRecord(
        request_id=record.wire_id,
        workflow_id=record.workflow_id,
        node_id=record.request_id,
        outcome=record.outcome,
        t_arrival_ns=(record.t_sent_ns or 0) + 50_000,
        t_end_ns=record.t_end_ns - 50_000,
        agent_id=record.agent_id,
        class_name=record.class_name,
        deps=record.deps,
        tag_source="x-workflow",
        api="completions",
        model="toy",
        stream=True,
        t_upstream_ns=(record.t_sent_ns or 0) + 100_000,
        t_first_token_ns=record.t_first_token_ns,
        t_last_token_ns=record.t_last_token_ns,
        status=record.status,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        completion_tokens=record.completion_tokens,
        read_dt_ns=record.read_dt_ns,
        read_tokens=record.read_tokens,
    )


@pytest.fixture(scope="session")
def served() -> Served:
    return serve(demo_trace(0)[1])


@pytest.fixture(scope="session")
def whole_run(served: Served, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Complete and attributed."""
    from energy.attribute import attribute_run

    run = build(tmp_path_factory.mktemp("runs") / "whole", served)
    attribute_run(run)
    return run


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunDir]:
    """build(path, served, proxy=, dispatch=, power=) for tests of their own runs."""
    return build
