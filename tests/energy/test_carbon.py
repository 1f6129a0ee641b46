"""gCO2e from joules: the arithmetic, its bounds, and the way into tables, ledger and JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from energy.carbon import NO_SOURCE, Grid
from joulegraph.cli import run as main
from traces.errors import UserError
from traces.records import PowerSample, RequestRecord, SensorInfo
from traces.rundir import RunDir

S = 1_000_000_000


def test_a_kilowatt_hour_is_the_intensity_times_pue() -> None:
    assert Grid(400.0, 1.25).gco2e(3.6e12) == pytest.approx(500.0)
    assert Grid(0.0).gco2e(1e9) == 0.0
    assert Grid(400.0).grid_source == NO_SOURCE
    for intensity, pue in ((-1.0, 1.0), (400.0, 0.9)):
        with pytest.raises(UserError, match="at least"):
            Grid(intensity, pue)


def test_from_the_command_line_into_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir.create(tmp_path / "run")
    requests = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    for i in range(4):
        sent = (4 + 4 * i) * S
        requests.write(
            RequestRecord(
                f"r{i}", f"w{i // 2}", f"n{i}", "ok", sent, sent + 3 * S, class_name="chat", t_upstream_ns=sent,
                t_first_token_ns=sent + S // 2, t_last_token_ns=sent + 3 * S, prompt_tokens=100, completion_tokens=30,
            )
        )  # fmt: skip
    power = run.writer("power", "host", mono_ns=0, wall_ns=0)
    power.write(SensorInfo("c", "gpu", "gpu0", "counter", "uJ", S // 10, 1000))
    for k, uj in enumerate(np.cumsum(np.full(250, 30_000_000)).tolist()):
        power.write(PowerSample("c", k * S // 10, k * S // 10 + 1000, uj))
    for writer in (requests, power):
        writer.close()
    run.write_info({"state": "complete"})
    grid = ["--grid", "380", "--grid-source", "a year's mean", "--pue", "1.2"]
    assert main(["attribute", str(run.path), "--json", *grid]) == 0
    out = orjson.loads(capsys.readouterr().out)
    active = out["class_uj"]["chat"]
    assert out["carbon"]["gco2e"] == pytest.approx(active * 380 * 1.2 / 3.6e12)
    table = pq.read_table(run.file("workflows.parquet")).to_pydict()
    assert sum(table["gco2e"]) == pytest.approx(out["carbon"]["gco2e"])
    assert table["edp_js"] == pytest.approx([uj / 1e6 * 7 for uj in table["active_uj"]])
    row = out["workflow_classes"]["chat"]
    assert row["gco2e"] == pytest.approx(out["carbon"]["gco2e"])
    assert row["j_per_successful_workflow"] == pytest.approx(active / 2e6)
    assert row["edp_js"] == pytest.approx(np.mean(table["edp_js"]))
    assert row["critical_path_uj"] == sum(table["critical_path_uj"])
    ledger = orjson.loads(run.file("ledger.json").read_bytes())
    assert ledger["carbon"]["grid_source"] == "a year's mean"
    assert ledger["workflow_classes"] == out["workflow_classes"]
    assert main(["attribute", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "gCO2e" not in text
    assert "EDP" in text
    assert "gco2e" not in pq.read_table(run.file("workflows.parquet")).column_names
    assert main(["attribute", str(run.path), "--grid", "380", "--pue", "0.5"]) == 2
