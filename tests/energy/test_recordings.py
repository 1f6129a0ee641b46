"""Real H100 recordings: totals predicted from what precedes, pure phases, one profile for both runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from energy.align import estimate_lag
from energy.attribute import Attribution, attribute
from energy.curve import choose, curves_of
from energy.fit import fit_energy, joined, read_profile, spans_of
from energy.foreign import import_run
from energy.load import load_run
from energy.phases import read_phases
from energy.predict import Basis, predict
from traces.errors import UserError
from traces.rundir import RunDir

RUNS = ("h100-vllm-llama8b", "h100-vllm-workflows")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def attributed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Attribution]:
    """Both recordings, imported and attributed at the best level they hold."""
    out = {}
    for name in RUNS:
        path = tmp_path_factory.mktemp("runs") / name
        import_run(data / "power" / name, path)
        out[name] = attribute(load_run(RunDir.open(path)))
    return out


@pytest.fixture(scope="module")
def predicted(data: Path, attributed: dict[str, Attribution]) -> dict[str, list[dict[str, Any]]]:
    """Every mix of both runs and every pure phase of the first, predicted."""
    out = {}
    for name, result in attributed.items():
        gpu = result.devices[0]
        document = orjson.loads((data / "power" / name / "phases.json").read_bytes())
        phases = [p for p in read_phases(document, name) if p["phase"] in ("mix", "batch", "prefill")]
        out[name] = predict(Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows), phases)
    return out


def _off(row: dict[str, Any], kind: str) -> float:
    return abs(row[kind] / row["measured_uj"] - 1)


@pytest.mark.parametrize("name", RUNS)
def test_mixes_from_what_precedes_them(predicted: dict[str, list[dict[str, Any]]], name: str) -> None:
    rows = [r for r in predicted[name] if r["phase"] == "mix"]
    assert np.mean([_off(r, "predicted_uj") for r in rows]) <= 0.010
    assert np.mean([_off(r, "null_uj") for r in rows]) > 0.05
    assert np.mean([_off(r, "planned_uj") for r in rows]) <= 0.02


def test_pure_phases_from_what_precedes_them(predicted: dict[str, list[dict[str, Any]]]) -> None:
    rows = [r for r in predicted[RUNS[0]] if r["phase"] in ("batch", "prefill")]
    assert len(rows) == 12
    assert max(_off(r, "predicted_uj") for r in rows) <= 0.05
    assert max(_off(r, "held_out_uj") for r in rows) <= 0.05


def test_one_profile_fits_both_runs(attributed: dict[str, Attribution]) -> None:
    spans = []
    for result in attributed.values():
        gpu = result.devices[0]
        spans.append(spans_of(gpu.curve, gpu.work, gpu.windows.origin_ns, gpu.lag.lag_s))
    fit = fit_energy(joined(spans), np.mean([r.devices[0].fit.seconds for r in attributed.values()], axis=0))
    assert not isinstance(fit, str)
    for one in spans:
        assert abs(fit.energy(one).sum() / one.joules.sum() - 1) <= 0.02


def test_closure_and_power_limit(attributed: dict[str, Attribution]) -> None:
    for result in attributed.values():
        assert result.totals["closure_uj"] == 0
        assert result.totals["unmeasured_uj"] == 0
        assert result.totals["measured_uj"] == result.devices[0].curve.total_uj
    gpu = attributed[RUNS[0]].devices[0]
    limited = fit_energy(spans_of(gpu.curve, gpu.work, gpu.windows.origin_ns, gpu.lag.lag_s), gpu.fit.seconds)
    assert not isinstance(limited, str)
    assert 690 < limited.cap_w < 900  # a 700 W board
    assert not np.isfinite(gpu.fit.cap_w)  # shares are divided by the straight fit


def test_import_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no requests\.jsonl"):
        import_run(tmp_path, tmp_path / "out")
    (tmp_path / "requests.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="line 1: field 't_send_ns'"):
        import_run(tmp_path, tmp_path / "out2")


def test_shipped_profile_is_measured() -> None:
    path = Path(__file__).parents[2] / "energy" / "profile_data" / "h100-llama8b-vllm.json"
    document = orjson.loads(path.read_bytes())
    profile = read_profile(document, str(path))
    assert all(abs(off) <= 0.02 for off in document["quality"]["runs"].values())
    assert "nvml" in profile.provenance
    with pytest.raises(UserError, match="never a prior"):
        read_profile({**document, "provenance": "x (sim.gpu0.energy, simulated)"}, "file")


def test_one_second_average_is_wrong_on_square_waves(data: Path) -> None:
    """The 1 s average puts work's power on the idle after it; the counter does not (reference figures of the card)."""
    import csv

    from energy.curve import Curve, curve_of
    from energy.foreign_power import AVERAGE, COUNTER
    from energy.tables import Series

    with (data / "power" / "h100-square-wave.csv").open() as file:
        rows = list(csv.DictReader(file))
    t0 = np.array([int(r["t_ns"]) for r in rows])
    t1 = t0 + np.array([int(r["call_ns"]) for r in rows])
    phases = orjson.loads((data / "power" / "h100-square-wave.phases.json").read_bytes())
    phases = phases["phases"] if isinstance(phases, dict) else phases
    counter = curve_of(Series(COUNTER, t0, t1, np.array([int(r["energy_mj"]) * 1000 for r in rows])))
    average = curve_of(Series(AVERAGE, t0, t1, np.array([int(r["average_mw"]) for r in rows])))
    assert isinstance(counter, Curve)
    assert isinstance(average, Curve)
    idle = [(int(a), int(b)) for kind, a, b in phases if kind == "idle" and b - a > 3_000_000_000]
    late = idle[1:]  # after work
    power = [np.mean([c.between(a, b).uj / (b - a) * 1000 for a, b in late]) for c in (counter, average)]
    assert power[0] == pytest.approx(125, abs=15)
    assert power[1] > 1.3 * power[0]


def test_lag_is_stable_over_halves_of_a_run(attributed: dict[str, Attribution]) -> None:
    gpu = attributed[RUNS[0]].devices[0]
    assert gpu.lag.known
    again = estimate_lag(gpu.curve, gpu.work, gpu.windows.origin_ns)
    assert again == gpu.lag
    assert curves_of({}) == ([], [])
    assert choose([]) == []


def test_sensors_side_by_side_on_known_work(data: Path) -> None:
    """The script whose tables stand in docs/power.md: disagreement of sensors, the lag's interval, windows' errors."""
    import subprocess
    import sys

    script = Path(__file__).parents[2] / "scripts" / "power_recordings.py"
    done = subprocess.run(
        [sys.executable, str(script), str(data / "power"), "--json"], capture_output=True, text=True, check=True
    )
    found = orjson.loads(done.stdout)
    off = {name: {s: v["off_percent"] for s, v in row.items()} for name, row in found["plateaus"].items()}
    assert off["idle, 4 s"]["1 s average"] > 45
    assert -15 < off["gemm, 4 s"]["1 s average"] < -8
    wave = [found["plateaus"][f"{kind}, 0.5 s of a wave"]["1 s average"]["w"] for kind in ("gemm", "idle")]
    assert wave[0] < wave[1], "the average cannot tell work from idle"
    locked = off["25 ms of 100 ms"]
    assert abs(locked["ring"]) < 4
    assert locked["instant"] < -40
    lag, low, high = found["wave"]["lag_ms"]
    assert -30 < low <= lag <= high < 30
    for length, most in (("0.1 s", 6), ("0.3 s", 3), ("1 s", 2), ("3 s", 1.5)):
        counter = found["wave"]["between"][length]["counter"]
        assert counter["median_percent"] < most
        assert counter["within_bound_percent"] >= 95
