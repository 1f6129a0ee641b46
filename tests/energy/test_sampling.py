"""The sampler's own process, for real: it records, survives a driver call that hangs, and never outlives its parent."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from energy.sampler import Sampler
from energy.sampling import SamplerThread, find_sources
from energy.source import Reading
from traces.errors import UserError
from traces.journal import JournalReader
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs
from traces.status import StatusPage

MS = 1_000_000


def sample(out: Path, *options: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "joulegraph", "sample", "--out", str(out), "--json", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result


def rows(out: Path) -> list[dict[str, Any]]:
    [path] = out.glob("power.*.jsonl")
    return list(JournalReader(path))


def test_a_machine_with_nothing_to_measure_works_and_says_so(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    result = sample(tmp_path / "run", "--duration", "0.5", "--sources", f"rapl:{absent}")
    assert result["sensors"] == {}
    assert str(absent) in result["missing"]["rapl"]
    kinds = {row["kind"] for row in rows(tmp_path / "run")}
    assert {"lost", "heartbeat", "anchor"} <= kinds


def test_the_fake_card_is_recorded_and_its_hang_is_survived(tmp_path: Path, card: Any) -> None:
    card["ENERGY_HANG_US"] = 900_000
    result = sample(tmp_path / "run", "--duration", "2.5", "--sources", "nvml", env=card.env)
    recorded = rows(tmp_path / "run")
    lost = [r for r in recorded if r["kind"] == "lost" and r["source"] == "nvml.gpu0.energy"]
    assert lost
    assert all("has not returned" in r["why"] for r in lost)
    power = [r for r in recorded if r["kind"] == "sample" and r["source"] == "nvml.gpu0.power"]
    assert len(power) > 50, "the other sensors go on while one hangs"
    assert {r["value"] for r in power} == {card["INSTANT_MW"]}
    assert result["sensors"]["nvml.gpu0.ring"]["samples"] > 50
    assert next(r["sm_mhz"] for r in recorded if r["kind"] == "state") == 1980


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(UserError, match="no such source; choose from nvml, rapl"):
        find_sources(("nvidia",))


def test_an_unwritable_out_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "joulegraph", "sample", "--out", str(tmp_path / "file" / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


PARENT = """
import os, sys
from energy.sampling import SamplerConfig, start_sampler
if __name__ == "__main__":
    child, ready = start_sampler(SamplerConfig(journal=sys.argv[1], sources=("simulated:" + sys.argv[2],)))
    print(child.process.pid, len(ready.sensors), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_killed_parent_takes_its_sampler_along_within_a_second(tmp_path: Path) -> None:
    page = StatusPage(
        [f"sim.gpu0.energy.{s}" for s in ("value", "t_ns", "period_ns", "resolution", "wraps_at")], tmp_path / "page"
    )
    page.set_group({"sim.gpu0.energy.period_ns": 100 * MS, "sim.gpu0.energy.resolution": 1000})
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "power.jsonl"), str(tmp_path / "page")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9
    pid, sensors = map(int, done.stdout.split())
    assert sensors == 1
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        pass
    else:
        gone, _, _ = select.select([handle], [], [], 2.0)
        os.close(handle)
        assert gone, "the sampler is still there two seconds after its parent was killed"
    kinds = [row["kind"] for row in JournalReader(tmp_path / "power.jsonl")]
    assert kinds[0] == "sensor"
    assert kinds[-1] == "anchor", "closed in order: last heartbeat, last anchor"


class Broken:
    """A source with a bug."""

    name = "broken"
    infos = (SensorInfo("broken", "gpu", "gpu0", "gauge", "mW", None, None),)
    poll_ns = MS

    def read(self, now_ns: NowNs) -> list[Reading]:
        return [PowerSample("someone.else", 0, 0, 1)]

    def close(self) -> None:
        pass


def test_a_bug_in_a_source_ends_the_sampler_loudly() -> None:
    thread = SamplerThread(Sampler([Broken()], lambda record: None))
    with pytest.raises(KeyError):
        thread.watch(Event())
