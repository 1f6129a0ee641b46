"""The verdict on a knob rests on the card's state while the load ran, the settling left out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from energy.knob_bench import Turn
from joulegraph.proof import proofs, sentence
from traces.records import DeviceState
from traces.rundir import RunDir

S = 1_000_000_000
CAP = Turn("power_limit", "gpu0", "GPU-0", 700_000, 400_000, 400_000, 0)
CLOCK = Turn("sm_clock", "gpu0", "GPU-0", None, 1200, 1200, 0)


def run_of(path: Path, until_s: int, throttle: int, sm_mhz: int) -> RunDir:
    """A load from 10 s to until_s, with the card throttling (or not) from 15 s on; before and after it differs."""
    run = RunDir.create(path)
    run.update_info(t0_ns=10 * S)
    sent: list[dict[str, Any]] = [
        {"t_sent_ns": 10 * S, "t_end_ns": until_s * S},
        {"t_sent_ns": None, "t_end_ns": 99 * S},
    ]
    run.file("dispatch.0.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in sent))
    inside = [DeviceState("nvml.gpu0", t * S, sm_mhz, 2619, 40, throttle) for t in range(15, until_s + 1)]
    outside = [
        DeviceState("nvml.gpu0", t * S, 1980, 2619, 40, 4 - throttle) for t in (*range(15), *range(until_s + 1, 60))
    ]
    rows = [asdict(state) for state in inside + outside]
    run.file("power.host.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return run


@pytest.mark.parametrize(
    ("turn", "throttle", "sm_mhz", "verdict"),
    [
        (CAP, 4, 1500, "bit"),
        (CAP, 0, 1980, "no effect"),
        (CLOCK, 0, 1200, "bit"),
        (CLOCK, 0, 1980, "not applied"),
    ],
)
def test_the_verdict_is_of_the_load_alone(tmp_path: Path, turn: Turn, throttle: int, sm_mhz: int, verdict: str) -> None:
    [proof] = proofs(run_of(tmp_path / "run", 30, throttle, sm_mhz), [turn])
    assert proof["verdict"] == verdict
    assert sentence(proof).startswith(f"gpu0 {turn.knob} {'400 W' if turn is CAP else '1200 MHz'}: {verdict} (")


def test_a_load_shorter_than_the_settling_proves_nothing(tmp_path: Path) -> None:
    [proof] = proofs(run_of(tmp_path / "run", 14, 4, 1500), [CAP])
    assert proof["verdict"] == "unknown"
    assert "5 s" in proof["why"]
    assert proofs(run_of(tmp_path / "other", 30, 4, 1500), []) == []
