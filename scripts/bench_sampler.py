"""What the sampler costs and how late it is, without hardware: a fake powercap tree and, with a C compiler, the fake
NVML card with the call times of an H100 (counter 2.8 ms, ring 0.3 ms). Once on the machine as it is, once beside a
saturated uvloop process, and once as a thread inside such a process, to show why it is a process of its own.

    python scripts/bench_sampler.py [--seconds 60] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "dram", "intel-rapl:1": "package-1", "intel-rapl:1:0": "dram"}
LOOP = """
import asyncio, time
try:
    from uvloop import run
except ImportError:
    from asyncio import run
"""
SATURATED = (
    LOOP
    + """
async def busy(until):
    while time.monotonic() < until:
        await asyncio.sleep(0)
run(busy(time.monotonic() + {seconds}))
"""
)
THREAD = (
    LOOP
    + """
import json, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from energy.sampler import Sampler
from energy.sampling import SamplerThread, find_sources
async def busy(until):
    while time.monotonic() < until:
        await asyncio.sleep(0)
found = find_sources(("rapl:" + {tree!r},))
thread = SamplerThread(Sampler(found.sources, lambda record: None, clock=time.monotonic_ns))
run(busy(time.monotonic() + {seconds}))
thread.close()
t = thread.sampler.totals
late = t.late_ns(0.99)
print(json.dumps(dict(reads=t.ticks, missed=t.missed, late_p99_ms=late and late / 1e6)))
"""
)


def fake_tree(root: Path) -> Path:
    """A two-socket server under root."""
    for name, label in ZONES.items():
        zone = root / name
        zone.mkdir(parents=True)
        (zone / "name").write_text(label)
        (zone / "energy_uj").write_text(str(10**9 + 10**8 * len(name)))
        (zone / "max_energy_range_uj").write_text("262143328850")
    return root


def fake_card(root: Path) -> dict[str, str] | None:
    """Environment in which nvidia-ml-py loads the fake card; None without a compiler."""
    source, compiler = ROOT / "tests" / "energy" / "fake_nvml.c", shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not source.is_file():
        return None
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(root / "libnvidia-ml.so.1"), str(source)], check=True
    )
    slots = source.read_text().split("enum {")[1].split("}")[0].replace("\n", " ").split(",")
    values = {"COUNT": 1, "ENERGY_MJ": 10**6, "ENERGY_HANG_US": 2800, "INSTANT_MW": 300_000, "HBM_MW": 40_000}
    values |= {"MODULE_MW": -1, "SM_MHZ": 1980, "MEM_MHZ": 2619, "TEMP_C": 40, "ARCHITECTURE": 9, "RING_MS": 20}
    values |= {"LIMIT_MW": 700_000, "OUT_OF_BAND_MW": 700_000}
    table = b"".join(values.get(name.strip(), 0).to_bytes(8, "little", signed=True) for name in slots)
    (root / "card").write_bytes(table)
    return {"LD_LIBRARY_PATH": str(root), "FAKE_NVML": str(root / "card")}


def sample(folder: Path, name: str, sources: str, env: dict[str, str], seconds: float) -> dict[str, Any]:
    """One `joulegraph sample`; its figures."""
    command = [sys.executable, "-m", "joulegraph", "sample", "--out", str(folder / name), "--json"]
    command += ["--duration", str(seconds), "--sources", sources]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    said = json.loads(done.stdout)
    late = sorted(_late(folder / name))
    return {
        "cpu_percent": said["cpu_percent"],
        "reads": said["ticks"],
        "missed": said["missed"],
        "late_p99_ms_median_second": late[len(late) // 2] / 1e6 if late else None,
        "late_p99_ms_worst_second": said["late_p99_ms"],
        "samples": {k: v["samples"] for k, v in said["sensors"].items()},
    }


def _late(run: Path) -> list[int]:
    from traces.journal import JournalReader

    rows = [row for path in run.glob("power.*.jsonl") for row in JournalReader(path)]
    return [row["late_p99_ns"] for row in rows if row["kind"] == "heartbeat" and row["late_p99_ns"] is not None]


def main() -> int:
    """The three situations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "seconds": args.seconds,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": f"{platform.python_version()} {os.path.realpath(sys.executable)}",
        "loop": "uvloop" if importlib.util.find_spec("uvloop") else "asyncio (uvloop is not installed)",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = fake_tree(folder / "powercap")
        card = fake_card(folder)
        sources = f"rapl:{tree}" + (",nvml" if card else "")
        env = {**os.environ, **(card or {})}
        result["sources"] = "rapl" + (" and nvml, both fake" if card else ", fake (no C compiler for nvml)")
        result["quiet"] = sample(folder, "quiet", sources, env, args.seconds)
        load = subprocess.Popen([sys.executable, "-c", SATURATED.format(seconds=args.seconds + 5)])
        time.sleep(1)
        result["beside_saturated_uvloop"] = sample(folder, "beside", sources, env, args.seconds)
        load.wait()
        script = THREAD.format(root=str(ROOT), tree=str(tree), seconds=min(args.seconds, 10))
        inside = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        result["thread_inside_saturated_uvloop"] = json.loads(inside.stdout)
    for situation, figures in result.items():
        sys.stderr.write(f"{situation}: {figures}\n")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
