"""The shipped H100 profile is what the fit gives on the recordings, and it predicts them as well as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from engines.embedded.profiles import COMPONENTS, load_profile

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fit_profile.py"


@pytest.mark.slow
def test_the_shipped_profile_is_the_fit(data: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(data / "power")], capture_output=True, text=True, check=True
    )
    found = orjson.loads(run.stdout)
    profile = load_profile("h100-llama8b")
    for name, value in found["constants"]["times"].items():
        assert getattr(profile.times, name) == pytest.approx(value, rel=0.01), name
    for component in COMPONENTS[:2]:
        for name, value in found["constants"][component].items():
            assert getattr(profile.power[component], name) == pytest.approx(value, rel=0.01, abs=1e-9), name
    errors = found["errors"]
    assert errors["step_time_median_error"] < 0.03
    assert errors["replay_mix_energy_error"] < 0.03
    assert errors["replay_phase_energy_error"] < 0.03
    assert errors["held_out_mix_energy_error"] < 0.05
