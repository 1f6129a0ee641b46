"""Energy that others drew goes to others: CPU time, strangers on the GPU, other policies, symmetry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from energy.attribute import Attribution, attribute
from energy.others import outside_engine, strangers
from energy.policies import POLICIES
from energy.tables import RunData, Series, request_table
from traces.records import SensorInfo

S = 1_000_000_000


def _process(t_s: int, pid: int, cpu_s: float | None = None, source: str = "proc") -> dict[str, Any]:
    cpu = None if cpu_s is None else round(cpu_s * S)
    return {"kind": "process", "source": source, "t_ns": t_s * S, "pid": pid, "cpu_ns": cpu}


def _data(domain: str, processes: list[dict[str, Any]], roles: dict[int, str]) -> RunData:
    t = np.arange(0, 20 * S, S // 10, dtype=np.int64)
    value = np.cumsum(np.where((t > 5 * S) & (t < 15 * S), 40_000_000, 12_000_000)).astype(np.int64)
    info = SensorInfo("c", domain, f"{domain}0", "counter", "uJ", S // 10, 1000)
    rows = [
        {
            "id": f"r{i}", "workflow": "w", "class": "c", "sent_ns": 5 * S, "first_ns": 6 * S, "last_ns": 15 * S,
            "end_ns": 15 * S, "prompt": 500, "cached": 0, "completion": 91,
            "reads": [(6 * S + k * S // 10, 1) for k in range(91)],
        }
        for i in range(2)
    ]  # fmt: skip
    return RunData(request_table(rows), None, {"c": Series(info, t, t, value)}, [], processes, [], roles)


def test_cpu_energy_is_split_by_cpu_time() -> None:
    """A quarter of the CPU time is the engine's: a quarter of what lies above idle goes to requests."""
    processes = [_process(t, pid, t * share) for t in range(21) for pid, share in ((0, 4.0), (7, 1.0), (8, 0.5))]
    roles = {7: "engine", 8: "proxy"}
    assert outside_engine(processes, roles, np.array([0, 10 * S, 20 * S])) == pytest.approx([0.75, 0.75])
    book = attribute(_data("cpu", processes, roles)).totals
    assert book["closure_uj"] == 0
    assert book["foreign_uj"] == pytest.approx(3 * book["attributed_uj"], rel=0.01)


def test_unknown_roles_are_said() -> None:
    result = attribute(_data("cpu", [], {}))
    assert result.totals["foreign_uj"] == 0
    assert any("no CPU time per process" in n for n in result.notes)


def test_pids_of_another_namespace_are_not_strangers() -> None:
    """Inside a container the driver lists the host's pids, none of which has a role here."""
    listing = [_process(t, 4711, source="nvml.gpu0") for t in (0, 10, 20)]
    t_ns = np.arange(0, 21 * S, S)
    assert not strangers(listing, {7: "engine"}, "gpu0", t_ns).any()
    assert strangers([*listing, _process(10, 99, source="nvml.gpu0")], {7: "engine"}, "gpu0", t_ns).any()


def test_a_stranger_on_the_gpu_makes_its_blocks_unmeasured() -> None:
    listing = [_process(0, 7, source="nvml.gpu0"), _process(10, 7, source="nvml.gpu0")]
    listing += [_process(10, 99, source="nvml.gpu0"), _process(20, 7, source="nvml.gpu0")]
    t_ns = np.arange(0, 21 * S, S)
    hidden = strangers(listing, {}, "gpu0", t_ns)
    assert hidden.all()  # seen once, it may have been there from the listing before to the one after
    assert not strangers(listing, {7: "engine", 99: "engine"}, "gpu0", t_ns).any()
    book = attribute(_data("gpu", listing, {})).totals
    assert book["attributed_uj"] == 0
    assert book["unmeasured_uj"] > 0
    assert book["closure_uj"] == 0


def _active(result: Attribution) -> np.ndarray[Any, Any]:
    return result.figures[0].active.sum(1)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_equal_requests_get_equal_joules(policy: str) -> None:
    active = _active(attribute(_data("gpu", [], {}), policy=policy))
    assert active[0] == pytest.approx(active[1], abs=2 * 20)  # one uJ of rounding per block and phase
    assert active.sum() > 0


def test_a_run_without_requests_is_all_idle() -> None:
    data = _data("gpu", [], {})
    result = attribute(replace(data, requests=request_table([])))
    assert result.totals["measured_uj"] == result.totals["idle_uj"] > 0
    assert result.totals["closure_uj"] == 0


def test_an_estimate_is_in_no_measured_total() -> None:
    """Alone: level L0, no measured joules. Beside a measured GPU: a book of its own, in no request."""
    alone = _data("cpu", [], {})
    one = alone.series["c"]
    guess = replace(one, info=replace(one.info, estimated=True))
    result = attribute(replace(alone, series={"c": guess}))
    assert (result.level, result.totals["estimated"], result.totals["measured_uj"]) == ("L0", True, None)
    assert result.totals["components"] == {}
    assert result.totals["estimates"]["cpu"]["attributed_uj"] > 0
    gpu = _data("gpu", [], {}).series["c"]
    measured = attribute(replace(alone, series={"g": gpu}))
    both = attribute(replace(alone, series={"g": gpu, "c": guess}))
    assert both.level == measured.level
    assert both.totals["class_uj"] == measured.totals["class_uj"]
    assert both.totals["components"] == measured.totals["components"]
    assert both.totals["estimates"]["cpu"]["measured_uj"] is None
    cpu = attribute(replace(alone, series={"c": one, "t": replace(guess, info=replace(guess.info, device="cpu9"))}))
    assert cpu.totals["estimates"] == {}  # a domain that is measured needs no estimate
