"""Arms of runs: no verdict below five repeats, gain cancels, drift is said; the calibration's design."""

from __future__ import annotations

from typing import Any

import pytest

from joulegraph.calibration import BATCHES, design
from joulegraph.commands.compare import lines
from joulegraph.comparison import FEWEST, compare
from traces.errors import UserError

JOULES = ("j_per_workflow", "j_per_output_token", "j_per_request", "edp_js")


def _arm(
    values: list[float], start: int, gain: float = 1.0, device: str = "gpu/gpu0/nvml0.energy"
) -> list[dict[str, Any]]:
    return [
        {
            "run": f"r{start + 2 * i}", "devices": [device], "host": "h", "t_start_ns": float(start + 2 * i),
            "virtual": False, "accounting": "level L3",
            "makespan_s": 1.0, **dict.fromkeys(JOULES, gain * v),
        }
        for i, v in enumerate(values)
    ]  # fmt: skip


NOISE = [100.0, 101.0, 99.0, 100.5, 99.5]


def test_five_repeats_give_a_verdict_and_the_gain_cancels() -> None:
    a, b = _arm(NOISE, 0), _arm([0.9 * x for x in NOISE], 1)
    report = compare(a, b)
    row = report["figures"]["j_per_workflow"]
    assert row["verdict"] == "b is lower"
    assert row["ratio"] == pytest.approx(0.9)
    hot = compare(_arm(NOISE, 0, 1.05), _arm([0.9 * x for x in NOISE], 1, 1.05))
    assert hot["figures"]["j_per_workflow"]["ratio"] == pytest.approx(row["ratio"])
    assert report["figures"]["makespan_s"]["verdict"] == "no difference shown"
    assert report["notes"] == []


def test_fewer_repeats_give_none() -> None:
    report = compare(_arm(NOISE[: FEWEST - 1], 0), _arm(NOISE, 1))
    assert report["figures"]["j_per_workflow"]["verdict"] is None
    assert "at least 5" in report["notes"][0]


def test_another_board_or_blocks_in_time_are_said() -> None:
    other = compare(_arm(NOISE, 0), _arm(NOISE, 1, device="gpu/gpu1/nvml1.energy"))
    assert other["figures"]["j_per_workflow"]["verdict"] is None
    assert any("gain does not cancel" in n for n in other["notes"])


def _ordered(order: str) -> dict[str, Any]:
    """Arms whose runs came in this order, b drawing half of a."""
    arms: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    for t, arm in enumerate(order):
        value = NOISE[len(arms[arm]) % len(NOISE)] * (1.0 if arm == "a" else 0.5)
        arms[arm] += _arm([value], t)
    return compare(arms["a"], arms["b"])


@pytest.mark.parametrize(
    ("order", "turns"),
    [("ab" * 5, True), ("abbaabbaab", True), ("aaaaabbbbb", False), ("aaabbbbbaa", False), ("ababaabbbaabb", True)],
)
def test_arms_that_took_no_turns_get_no_verdict(order: str, turns: bool) -> None:
    report = _ordered(order)
    verdict = report["figures"]["j_per_workflow"]["verdict"]
    assert verdict == ("b is lower" if turns else None)
    assert any("not interleaved" in n for n in report["notes"]) != turns
    assert lines(report)[0].endswith("b is lower" if turns else "no verdict")


def test_a_run_without_a_start_cannot_tell() -> None:
    a = _arm(NOISE, 0)
    a[2]["t_start_ns"] = None
    assert compare(a, _arm(NOISE, 1))["figures"]["j_per_workflow"]["verdict"] is None


def test_missing_is_no_zero() -> None:
    arm = _arm(NOISE, 0)
    for row in arm:
        row["j_per_output_token"] = None
    assert compare(arm, _arm(NOISE, 1))["figures"]["j_per_output_token"]["ratio"] is None


def test_the_design_is_a_graph_of_parts() -> None:
    flow = design(3, 2.0)
    assert flow == design(3, 2.0)
    names = {n.request_id for n in flow.nodes}
    assert all(d.on in names for n in flow.nodes for d in n.deps)
    agents = [n.agent_id for n in flow.nodes]
    for n in BATCHES:
        assert agents.count(f"batch-{n}") == n
    used = [b for n in flow.nodes for b in n.hash_ids or ()]
    assert len(used) == len(set(used))  # no prompt shares a prefix: nothing is cached


def test_runs_in_virtual_time_need_no_turns() -> None:
    a, b = ([{**row, "t_start_ns": 1.0, "virtual": True} for row in _arm(NOISE, k)] for k in (0, 1))
    assert compare(a, b)["figures"]["j_per_workflow"]["verdict"] == "no difference shown"
    a[0]["virtual"] = False
    assert compare(a, b)["figures"]["j_per_workflow"]["verdict"] is None


def test_runs_attributed_differently_get_no_verdict() -> None:
    a, b = _arm(NOISE, 0), _arm(NOISE, 1)
    b[1]["accounting"] = "level L1"
    report = compare(a, b)
    assert report["figures"]["j_per_workflow"]["verdict"] is None
    assert "(level L1; level L3)" in report["notes"][0]


def test_a_run_named_twice_is_no_repeat() -> None:
    a = _arm(NOISE, 0)
    with pytest.raises(UserError, match="r4: named more than once"):
        compare([*a, a[2]], _arm(NOISE, 1))
