"""`joulegraph doctor`: the table from machines with and without sensors, and the verdict on a kept probe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from energy.examine import examine
from energy.probing import SQUARE, Recording, plan
from energy.source import Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

MS = 1_000_000
S = 1_000_000_000


def doctor(*options: str, env: dict[str, str] | None = None, code: int = 0) -> tuple[Any, str]:
    command = [sys.executable, "-m", "joulegraph", "doctor", "--json", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == (1 if code == 0 else 0)
    return (json.loads(lines[0]) if lines else None), done.stderr


def test_a_machine_without_sensors_says_level_zero_and_what_would_help(tmp_path: Path) -> None:
    result, told = doctor("--sources", f"rapl:{tmp_path / 'absent'}")
    assert result["sensors"] == []
    assert result["level"].startswith("L0")
    assert all(row["remedy"] for row in result["missing"])
    assert "Nothing is measurable here" in told


def test_the_fake_card_is_measured_on_the_spot(card: Any) -> None:
    card["ENERGY_HANG_US"] = 3000
    result, told = doctor("--sources", "nvml", env=card.env)
    rows = {row["sensor"]: row for row in result["sensors"]}
    assert rows["nvml.gpu0.power"]["watts"] == 124.78
    assert rows["nvml.gpu0.power"]["period_ms"] is None, "it never changed while looked at: not seen, not invented"
    assert rows["nvml.gpu0.power"]["period_documented_ms"] == 100
    assert 3000 < rows["nvml.gpu0.energy"]["call_us_p50"] < 20_000, "the driver's own 3 ms, not what we skip"
    assert rows["nvml.gpu0.energy"]["calls"] > 20
    assert result["knobs"][0]["state"].startswith("700 W of 200-700 W")
    assert card["SET_CALLS"] == 0
    assert "nvml.gpu0.ring" in told


def test_a_closed_rapl_gives_the_command(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    result, told = doctor("--sources", f"rapl:{tmp_path}")
    assert result["missing"][0]["sensor"] == "rapl.package-0.energy"
    assert "energy_uj" in told


class Clocked:
    """A counter that rises by 5 mJ every 10 ms of a scripted clock; each call takes 1 ms."""

    name = "scripted"
    infos = (SensorInfo("scripted", "gpu", "gpu0", "counter", "uJ", None, None),)
    poll_ns = 20 * MS

    def __init__(self) -> None:
        self.now = 0

    def read(self, now_ns: NowNs) -> list[Reading]:
        t0 = now_ns()
        self.now += MS
        return [PowerSample("scripted", t0, now_ns(), t0 // (10 * MS) * 5000)]

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)

    def close(self) -> None:
        pass


def test_period_step_and_cost_are_what_they_are() -> None:
    source = Clocked()
    [seen] = examine(source, now_ns=lambda: source.now, sleep=source.sleep)
    assert seen.updates.period_ns is not None
    assert abs(seen.updates.period_ns - 10 * MS) <= 2 * MS
    assert seen.updates.resolution == 5000
    assert seen.call_p50_ns == MS
    assert seen.busy == 0.05
    assert seen.watts is not None
    assert abs(seen.watts - 0.5) < 0.02


def kept_probe(folder: Path) -> None:
    bursts, _ = plan(0, [SQUARE])
    info = SensorInfo("a.energy", "gpu", "gpu0", "counter", "uJ", 100 * MS, 1000)
    rows: list[Any] = [{f: getattr(info, f) for f in SensorInfo.__dataclass_fields__}]
    for t in range(0, 15 * S, 20 * MS):
        at = t // (100 * MS) * 100 * MS
        on = sum(min(max(at - a, 0), b - a) for a, b in bursts)
        rows.append(
            {"kind": "sample", "source": "a.energy", "t0_ns": t, "t1_ns": t, "value": (100 * at + 500 * on) // 1000}
        )
    (folder / "gpu.probe.json").write_bytes(orjson.dumps(Recording(rows, bursts, [])))


def test_a_kept_probe_is_judged_again(tmp_path: Path) -> None:
    kept_probe(tmp_path)
    result, told = doctor("--from", str(tmp_path))
    fit = result["probe"]["gpu"]["a.energy"]["response"]
    assert np.isclose(fit["low_w"], 100, atol=15)
    assert np.isclose(fit["high_w"], 600, atol=15)
    assert "updates every 100" in told


def test_a_folder_without_a_probe_is_one_sentence(tmp_path: Path) -> None:
    _, told = doctor("--from", str(tmp_path), code=2)
    assert "no *.probe.json" in told
    (tmp_path / "gpu.probe.json").write_text("{}")
    _, told = doctor("--from", str(tmp_path), code=2)
    assert "not a probe recording" in told


def test_probe_without_sensors_is_skipped_with_the_reason(tmp_path: Path) -> None:
    result, told = doctor("--probe", "--sources", f"rapl:{tmp_path / 'absent'}")
    assert result["probe"] == {}
    assert "skipped, no CPU sensor" in told
