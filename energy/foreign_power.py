"""Sensor samples of foreign recordings as a power journal: CSV files as nvidia-smi loops and pollers leave them.

power.csv[.gz]: t0_ns, optional t1_ns, and any of energy_mj, instant_mw, average_mw, hbm_average_mw; ring20ms.csv[.gz]:
wall_us, power_mw, with sampler.json (anchors_monotonic_wall_ns). A column `gpu` tells several GPUs apart.
May not know: requests, attribution.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from traces.errors import UserError
from traces.records import PowerSample, SensorInfo
from traces.rundir import RunDir

COUNTER = SensorInfo("nvml0.energy", "gpu", "gpu0", "counter", "uJ", 100_000_000, 1000, limits="updates every 100 ms")
INSTANT = SensorInfo(
    "nvml0.power", "gpu", "gpu0", "gauge", "mW", 100_000_000, 1, limits="a 25 ms window of each 100 ms; shape only"
)
AVERAGE = SensorInfo("nvml0.average", "gpu", "gpu0", "gauge", "mW", 100_000_000, 1, limits="1 s average; never a phase")
HBM = SensorInfo(
    "nvml0.hbm", "hbm", "gpu0", "gauge", "mW", 100_000_000, 1, scope="memory", limits="1 s average of the memory scope"
)
RING = SensorInfo("nvml0.ring", "gpu", "gpu0", "gauge", "mW", 20_000_000, 1, limits="the driver's 20 ms samples")
_POWER = {
    "energy_mj": (COUNTER, 1000),
    "instant_mw": (INSTANT, 1),
    "average_mw": (AVERAGE, 1),
    "hbm_average_mw": (HBM, 1),
}


MOST_GPUS = 1024
NONE_SAID = ("", "nan", "n/a", "none", "null", "not supported", "unknown error")
"""cells with which pollers say that a sensor gave nothing"""


@cache
def of_gpu(info: SensorInfo, gpu: int) -> SensorInfo:
    """The same sensor of another GPU."""
    return replace(info, source=info.source.replace("nvml0", f"nvml{gpu}"), device=f"gpu{gpu}")


def find(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _whole(text: str) -> int:
    """A whole number, also where a tool wrote it as 12.0 or 1.2e6."""
    try:
        return int(text)
    except ValueError:
        return int(Decimal(text))


def _value(text: str | None, factor: int) -> int | None:
    """A reading in whole units; None where the tool wrote that it had none."""
    said = (text or "").strip().strip("[]").lower()
    return None if said in NONE_SAID else round(Decimal(said) * factor)


def _gpu(row: dict[str, str]) -> int:
    """The GPU of a CSV row: 0 where there is no such column."""
    gpu = _whole(row.get("gpu") or "0")
    if not 0 <= gpu < MOST_GPUS:
        raise ValueError(gpu)
    return gpu


def write_power(run: RunDir, source: Path) -> dict[str, int]:
    power = find(source, "power.csv")
    if power is None:
        return {"samples": 0, "ring": 0}
    writer = run.writer("power", "imported", mono_ns=0, wall_ns=0)
    try:
        done = {"samples": _samples(writer, power), "ring": 0}
        ring, sampler = find(source, "ring20ms.csv"), find(source, "sampler.json")
        if ring is not None and sampler is not None:
            done["ring"] = _ring(writer, ring, orjson.loads(sampler.read_bytes()))
    finally:
        writer.close()
    return done


def _samples(writer: Any, path: Path) -> int:
    count = 0
    with opened(path) as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        there = set(reader.fieldnames or ())
        columns = [c for c in _POWER if c in there]
        if "t0_ns" not in there or not there & {"energy_mj", "instant_mw", "average_mw"}:
            raise UserError(
                f"{path}: needs t0_ns and one of energy_mj, instant_mw, average_mw in its head line, found"
                f" {', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        seen: set[int] = set()
        for number, row in enumerate(reader, 2):
            try:
                t0 = _whole(row["t0_ns"])
                t1 = _whole(row["t1_ns"]) if row.get("t1_ns") else t0
                gpu = _gpu(row)
                for name in () if gpu in seen else columns:
                    writer.write(of_gpu(_POWER[name][0], gpu))
                seen.add(gpu)
                for name in columns:
                    info, factor = of_gpu(_POWER[name][0], gpu), _POWER[name][1]
                    value = _value(row[name], factor)
                    writer.write(PowerSample(info.source, t0, t1, value, None if value is not None else "no value"))
            except (ValueError, TypeError, InvalidOperation) as error:
                raise UserError(f"{path}: line {number}: not a number in {row}; fix or remove the line") from error
            count += 1
    return count


def _ring(writer: Any, path: Path, sampler: dict[str, Any]) -> int:
    """The driver's wall-stamped ring on the monotonic axis, through the anchors recorded beside it."""
    anchors = sampler.get("anchors_monotonic_wall_ns") or []
    if not anchors:
        return 0
    mono, wall = np.array(anchors, np.float64).T - np.array(anchors[0], np.float64)[:, None]
    seen: set[str] = set()
    count = 0
    with opened(path) as file:
        for row in csv.DictReader(file):
            info = of_gpu(RING, _gpu(row))
            if info.device not in seen:
                writer.write(info)
                seen.add(info.device)
            t = int(np.interp(int(row["wall_us"]) * 1000 - anchors[0][1], wall, mono)) + anchors[0][0]
            writer.write(PowerSample(info.source, t, t, int(row["power_mw"])))
            count += 1
    return count
