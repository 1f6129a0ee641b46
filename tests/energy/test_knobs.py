"""Knobs on the fake card: set, read back, put back on every way out, and never touched without permission."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy.knob_bench import Turn, pending
from energy.knobs import describe_knobs, prove, restore_left_behind, states, turned
from traces.errors import UserError
from traces.records import DeviceState


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "state" / "knobs.jsonl"


def test_a_cap_and_a_clock_are_set_read_back_and_put_back(nvml: Any, card: Any, journal: Path) -> None:
    card["LIMIT_MW"] = 650_000  # not the default: the previous value comes back, not the default
    with turned(power_cap_w=300, sm_clock_mhz=1200, journal=journal, nvml=nvml, guard=False) as got:
        assert (card["LIMIT_MW"], card["LOCK_MAX_MHZ"]) == (300_000, 1200)
        assert [(t.knob, t.previous, t.wanted, t.enforced) for t in got.turns] == [
            ("power_limit", 650_000, 300_000, 300_000),
            ("sm_clock", None, 1200, 1200),
        ]
    assert (card["LIMIT_MW"], card["LOCK_MAX_MHZ"]) == (650_000, 0)
    assert got.restored == ["gpu0: sm_clock put back to unlocked", "gpu0: power_limit put back to 650 W"]
    assert pending(journal) == []


def test_a_knob_that_cannot_be_put_back_is_said_and_kept_for_the_next_start(
    nvml: Any, card: Any, journal: Path
) -> None:
    with turned(power_cap_w=300, journal=journal, nvml=nvml, guard=False) as got:
        card["MAY_SET"] = 0
    assert "could not be put back" in got.restored[0]
    card["MAY_SET"] = 1
    assert pending(journal)


def test_nothing_asked_nothing_touched(nvml: Any, card: Any, journal: Path) -> None:
    with turned(journal=journal, nvml=nvml) as got:
        assert not got.applied
    assert card["SET_CALLS"] == 0
    assert not journal.exists()


def test_without_permission_the_arm_is_skipped_with_the_command(nvml: Any, card: Any, journal: Path) -> None:
    card["MAY_SET"] = 0
    with turned(power_cap_w=300, journal=journal, nvml=nvml, guard=False) as got:
        assert not got.applied
        assert got.skipped is not None
        assert "Insufficient Permissions" in got.skipped.why
        assert "nvidia-smi -i 0 -pl 300" in (got.skipped.remedy or "")
    assert card["LIMIT_MW"] == 700_000
    assert pending(journal) == []


def test_a_refusal_of_the_second_knob_puts_the_first_back(nvml: Any, card: Any, journal: Path) -> None:
    card["THROTTLE"] = 2  # clocks already locked by someone: cannot be read, so never touched
    with turned(power_cap_w=300, sm_clock_mhz=1200, journal=journal, nvml=nvml, guard=False) as got:
        assert got.skipped is not None
        assert "already locked" in got.skipped.why
        assert card["LIMIT_MW"] == 700_000


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"power_cap_w": 100}, "--power-cap 100: gpu0 takes 200 to 700 W"),
        ({"sm_clock_mhz": 5000}, "--sm-clock 5000: gpu0 takes 1 to 1980 MHz"),
        ({"power_cap_w": 300, "gpus": [3]}, "gpu 3: this machine has 1"),
    ],
)
def test_a_value_the_card_cannot_take_is_refused_before_anything_moves(
    nvml: Any, card: Any, journal: Path, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence), turned(journal=journal, nvml=nvml, guard=False, **asked):
        pytest.fail("the block must not run")
    assert card["SET_CALLS"] == 0


def test_an_exception_in_the_block_puts_back(nvml: Any, card: Any, journal: Path) -> None:
    with pytest.raises(ZeroDivisionError), turned(power_cap_w=300, journal=journal, nvml=nvml, guard=False):
        assert card["LIMIT_MW"] == 300_000
        _ = 1 / 0
    assert card["LIMIT_MW"] == 700_000


def test_a_lower_limit_from_elsewhere_shows_in_the_read_back(nvml: Any, card: Any, journal: Path) -> None:
    card["OUT_OF_BAND_MW"] = 400_000
    with turned(power_cap_w=600, journal=journal, nvml=nvml, guard=False) as got:
        assert got.turns[0].enforced == 400_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(caps=st.lists(st.integers(200, 700), min_size=1, max_size=5), start=st.integers(200, 700))
def test_any_nest_of_caps_ends_where_it_began(nvml: Any, card: Any, journal: Path, caps: list[int], start: int) -> None:
    """Arms one after the other, each from whatever stood before: the value before the first comes back."""
    card["LIMIT_MW"] = start * 1000
    for cap in caps:
        with turned(power_cap_w=cap, journal=journal, nvml=nvml, guard=False):
            assert card["LIMIT_MW"] == cap * 1000
        assert card["LIMIT_MW"] == start * 1000


CHILD = """
import sys, time
from pathlib import Path
from energy.knobs import turned
if __name__ == "__main__":
    with turned(power_cap_w=300, sm_clock_mhz=900, journal=Path(sys.argv[1]), guard=sys.argv[2] == "guard") as got:
        print(len(got.turns), flush=True)
        time.sleep(60)
"""


def start_child(tmp_path: Path, card: Any, journal: Path, guard: str) -> subprocess.Popen[str]:
    """A process that has both knobs turned when this returns."""
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "child.py"), str(journal), guard]
    child = subprocess.Popen(command, env=card.env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "2\n"
    assert (card["LIMIT_MW"], card["LOCK_MAX_MHZ"]) == (300_000, 900)
    return child


def end(child: subprocess.Popen[str], number: int) -> int:
    child.send_signal(number)
    code = child.wait(20)
    assert child.stdout is not None
    child.stdout.close()
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_put_back(tmp_path: Path, card: Any, journal: Path, number: int) -> None:
    child = start_child(tmp_path, card, journal, "alone")
    assert end(child, number) != 0
    assert (card["LIMIT_MW"], card["LOCK_MAX_MHZ"]) == (700_000, 0)


def test_after_a_sigkill_the_guardian_puts_back(tmp_path: Path, card: Any, journal: Path) -> None:
    child = start_child(tmp_path, card, journal, "guard")
    assert end(child, signal.SIGKILL) == -9
    until = time.monotonic() + 10
    while card["LIMIT_MW"] != 700_000 or card["LOCK_MAX_MHZ"] != 0:
        assert time.monotonic() < until, "ten seconds after the kill the card is still turned"
    while pending(journal):
        assert time.monotonic() < until


def test_after_a_sigkill_the_next_start_puts_back(tmp_path: Path, nvml: Any, card: Any, journal: Path) -> None:
    child = start_child(tmp_path, card, journal, "alone")
    assert restore_left_behind(journal, nvml) == []  # its owner lives: not ours to undo
    with (
        pytest.raises(UserError, match=r"has its \w+ turned now"),
        turned(power_cap_w=400, journal=journal, nvml=nvml, guard=False),
    ):
        pass
    assert card["LIMIT_MW"] == 300_000
    assert end(child, signal.SIGKILL) == -9
    assert card["LIMIT_MW"] == 300_000
    assert sorted(restore_left_behind(journal, nvml)) == [
        "gpu0: power_limit put back to 700 W",
        "gpu0: sm_clock put back to unlocked",
    ]
    assert (card["LIMIT_MW"], card["LOCK_MAX_MHZ"]) == (700_000, 0)
    assert restore_left_behind(journal, nvml) == []


def test_a_torn_journal_line_is_ignored(journal: Path) -> None:
    journal.parent.mkdir()
    turn = {
        "knob": "power_limit",
        "device": "gpu0",
        "uuid": "u",
        "previous": 1,
        "wanted": 2,
        "enforced": None,
        "t_ns": 3,
    }
    whole = json.dumps({"what": "turn", "pid": 1, "start": 2, "turn": turn})
    journal.write_text(whole + "\n" + whole[:40])
    assert len(pending(journal)) == 1


def test_an_unwritable_journal_means_hands_off(nvml: Any, card: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="knobs are not touched without that"),
        turned(power_cap_w=300, journal=tmp_path / "file" / "knobs.jsonl", nvml=nvml, guard=False),
    ):
        pytest.fail("the block must not run")
    assert card["SET_CALLS"] == 0


def state(mhz: int, throttle: int) -> DeviceState:
    return DeviceState("nvml.gpu0", 0, mhz, 2619, 60, throttle)


@pytest.mark.parametrize(
    ("turn", "states", "verdict"),
    [
        (("power_limit", 300_000, 300_000), [state(1200, 4)] * 9 + [state(1900, 0)], "bit"),
        (("power_limit", 600_000, 600_000), [state(1980, 0)] * 10, "no effect"),
        (("power_limit", 300_000, 700_000), [state(1980, 0)] * 10, "not applied"),
        (("sm_clock", 1200, 1200), [state(1200, 2)] * 10, "bit"),
        (("sm_clock", 1200, 1980), [state(1200, 2), state(1980, 0)], "not applied"),
        (("power_limit", 300_000, 300_000), [], "unknown"),
    ],
)
def test_proof_that_a_knob_bit(turn: tuple[Any, int, int], states: list[DeviceState], verdict: str) -> None:
    knob, wanted, enforced = turn
    assert prove(Turn(knob, "gpu0", "u", 700_000, wanted, enforced, 0), states).verdict == verdict


def test_states_of_one_device_in_a_window() -> None:
    rows = [asdict(DeviceState(f"nvml.gpu{n}", t, 1200, 2619, 60, 4)) for n in (0, 1) for t in range(10)]
    got = states([*rows, {"kind": "sample"}], "gpu1", 3, 5)
    assert [(s.source, s.t_ns) for s in got] == [("nvml.gpu1", t) for t in (3, 4, 5)]


def test_doctor_describes_knobs_and_touches_nothing(nvml: Any, card: Any) -> None:
    [row] = describe_knobs(nvml)
    assert row["state"].startswith("700 W of 200-700 W")
    assert os.geteuid() == 0 or "needs root" in row["state"]
    assert card["SET_CALLS"] == 0
