"""The text of an attribution: what a reader wants first, the coefficients last, and nothing estimated unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from energy.attribute import Attribution, attribute
from energy.fit import TERMS
from energy.output import write
from energy.tables import RunData, Series, request_table
from joulegraph.attribution_text import UNITS, WIDTH, text
from traces.records import SensorInfo
from traces.rundir import RunDir

S = 1_000_000_000


def _result(tmp_path: Path, *, gpu: bool = True, simulated: bool = False, name: str = "chat") -> Attribution:
    t = np.arange(0, 100 * S, S // 10, dtype=np.int64)
    counter = SensorInfo("g.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000, simulated=simulated)
    meter = SensorInfo("ipmi", "node", "node", "gauge", "mW", None, 1000, simulated=simulated)
    series = {"ipmi": Series(meter, t[::20], t[::20], np.full(len(t[::20]), 700_000))}
    if gpu:
        series["g.energy"] = Series(counter, t, t, np.cumsum(np.where((t > 5 * S) & (t < 60 * S), 50, 12) * 1_000_000))
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{i}", "class": name, "agent": f"agent-{i % 9}", "workflow": f"w{i // 2}", "due_ns": i * 5 * S,
            "sent_ns": i * 5 * S, "first_ns": i * 5 * S + S, "last_ns": i * 5 * S + 4 * S, "end_ns": i * 5 * S + 4 * S,
            "prompt": 100, "completion": 40,
        }
        for i in range(1, 11)
    ]  # fmt: skip
    result = attribute(RunData(request_table(rows), None, series, []))
    write(RunDir.create(tmp_path / "run"), result)
    return result


def _text(result: Attribution) -> str:
    return text(result, {**result.totals, "truth_error": None})


def test_summary_first_coefficients_last(tmp_path: Path) -> None:
    lines = _text(_result(tmp_path)).splitlines()
    order = ("level L1", "chat ", "per agent", "gpu ", "node (ipmi", "g.energy: lag")
    at = [next(i for i, line in enumerate(lines) if line.startswith(begin)) for begin in order]
    assert at == sorted(at)
    assert all(line.startswith("    ") for line in lines[at[-1] + 1 :])
    assert "unaccounted" in lines[at[4]]
    assert "1 more" in lines[at[2]]
    row = lines[at[1]].split()
    own, active, full = (float(row[k].replace(",", "")) for k in (3, 4, 6))
    assert row[1:3] == ["6", "10"]
    assert own <= active <= full
    assert not any("SIMULATED" in line or "ESTIMATED" in line for line in lines)


def test_simulated_sensors_are_called_so(tmp_path: Path) -> None:
    assert "SIMULATED" in _text(_result(tmp_path, simulated=True)).splitlines()[0]


def test_nothing_measured_says_so(tmp_path: Path) -> None:
    said = _text(_result(tmp_path, gpu=False))
    assert said.startswith("level L0 (nothing was measured)")
    assert "note: nothing measured: no joules are given" in said


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "a" * 90])
def test_any_class_name_is_shown_whole(tmp_path: Path, name: str) -> None:
    lines = _text(_result(tmp_path, name=name)).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("class"))
    last = next(i for i, line in enumerate(lines) if line.startswith("own:"))
    assert name in "".join(line.split()[0] for line in lines[head + 2 : last])
    assert all(len(line) <= WIDTH for line in lines[head:last])


def test_every_coefficient_has_a_unit() -> None:
    assert set(UNITS) == set(TERMS)
