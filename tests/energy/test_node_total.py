"""The node's meter beside its parts: exact to the microjoule, silent where it cannot know, never on a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.attribute import attribute, with_policy
from energy.curve import Curve
from energy.node_total import node_total
from energy.tables import RunData, Series, request_table
from traces.records import SensorInfo

S = 1_000_000_000


def _curve(domain: str, watts: float, begin: int = 0, end: int = 100, **more: Any) -> Curve:
    t = np.arange(begin, end + 1, dtype=np.int64) * S
    uj = np.rint((t - t[0]) / 1e9 * watts * 1e6).astype(np.int64)
    return Curve(f"{domain}0", domain, f"{domain}.x", t, uj, 0 * t, np.zeros(len(t) - 1, bool), 1, S, **more)


WHOLE = [_curve("node", 900), _curve("gpu", 500), _curve("cpu", 150), _curve("dram", 50)]


@pytest.mark.parametrize(
    ("curves", "unaccounted_j", "said"),
    [
        (WHOLE, 20_000, ""),
        ([*WHOLE, _curve("hbm", 90)], 20_000, ""),
        (WHOLE[:1], 90_000, ""),
        ([_curve("node", 900), _curve("gpu", 500, 50, 150)], 20_000, "over 50 s"),
        ([_curve("node", 400), _curve("gpu", 500)], -10_000, "meters disagree"),
        ([_curve("node", 900), _curve("gpu", 500, simulated=True)], 90_000, "gpu.x not set against it"),
        ([_curve("node", 900), _curve("cpu", 90, estimated=True)], 90_000, "cpu.x not set against it"),
        ([_curve("node", 900), _curve("gpu", 500, 200, 300)], None, "never read at the same time"),
        (WHOLE[1:], None, ""),
    ],
)
def test_node_total(curves: list[Curve], unaccounted_j: float | None, said: str) -> None:
    total, notes = node_total(curves)
    assert (None if total is None else total["unaccounted_uj"] / 1e6) == unaccounted_j
    assert (said in notes[0]) if said else not notes


def test_energy_lost_in_a_reset_is_not_called_unaccounted() -> None:
    broken = np.zeros(100, bool)
    broken[40] = True
    total, notes = node_total([WHOLE[0], replace(WHOLE[1], broken=broken)])
    assert total is None
    assert "part of the energy of gpu.x is unknown" in notes[0]


@given(st.lists(st.tuples(st.sampled_from(["gpu", "cpu", "dram"]), st.floats(0, 900)), max_size=5), st.floats(0, 9000))
def test_node_adds_up_exactly(parts: list[tuple[str, float]], watts: float) -> None:
    curves = [replace(_curve(d, w), device=f"d{i}", source=f"s{i}") for i, (d, w) in enumerate(parts)]
    total, _ = node_total([_curve("node", watts), *curves])
    assert total is not None
    assert total["node_uj"] == sum(total["parts_uj"].values()) + total["unaccounted_uj"]
    assert total["measured_uj"] == sum(c.total_uj for c in curves)


def _run(*, node: bool) -> RunData:
    t = np.arange(0, 100 * S, S // 10, dtype=np.int64)
    gpu = SensorInfo("g.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000)
    series = {"g.energy": Series(gpu, t, t, np.cumsum(np.full(len(t), 30_000_000)))}
    if node:
        info = SensorInfo("ipmi", "node", "node", "gauge", "mW", None, 1000)
        series["ipmi"] = Series(info, t[::20], t[::20], np.full(len(t[::20]), 700_000))
    rows = [{"id": "a", "sent_ns": 5 * S, "first_ns": 6 * S, "last_ns": 15 * S, "end_ns": 15 * S, "prompt": 9}]
    return RunData(request_table(rows), None, series, [])


def test_no_joule_of_the_node_reaches_a_request() -> None:
    without, beside = attribute(_run(node=False)), attribute(_run(node=True))
    assert np.array_equal(without.figures[0].full, beside.figures[0].full)
    assert without.totals["node"] is None
    assert beside.totals["node"]["unaccounted_uj"] == pytest.approx(400e6 * beside.totals["node"]["seconds"], rel=0.01)
    assert with_policy(beside, "equal").totals["node"] == beside.totals["node"]
