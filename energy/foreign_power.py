"""Sensor samples of foreign recordings as a power journal: CSV files as nvidia-smi loops and pollers leave them.

power.csv[.gz]: t0_ns, optional t1_ns, and any of energy_mj, instant_mw, average_mw, hbm_average_mw; ring20ms.csv[.gz]:
wall_us, power_mw, with sampler.json (anchors_monotonic_wall_ns). A column `gpu` tells several GPUs apart.
May not know: requests, attribution.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from energy.foreign_text import find, json_of, scaled, table, whole
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


@cache
def of_gpu(info: SensorInfo, gpu: int) -> SensorInfo:
    """The same sensor of another GPU."""
    return replace(info, source=info.source.replace("nvml0", f"nvml{gpu}"), device=f"gpu{gpu}")


def _gpu(row: dict[str, str], where: str) -> int:
    """The GPU of a CSV row: 0 where there is no such column."""
    gpu = scaled(row, "gpu", 1, where) or 0
    if not 0 <= gpu < MOST_GPUS:
        raise UserError(f"{where}: field gpu is {gpu}, needs 0 to {MOST_GPUS - 1}; fix or remove the line")
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
            done["ring"] = _ring(writer, ring, _anchors(sampler))
    finally:
        writer.close()
    return done


def _samples(writer: Any, path: Path) -> int:
    count = 0
    columns: list[str] = []
    seen: set[int] = set()
    for number, row in table(path, "t0_ns"):
        where = f"{path}: line {number}"
        columns = columns or _columns(row, path)
        if not row["t0_ns"] and number > 2:
            continue  # a line that was not finished
        t0 = whole(row, "t0_ns", where)
        t1 = scaled(row, "t1_ns", 1, where)
        gpu = _gpu(row, where)
        for name in () if gpu in seen else columns:
            writer.write(of_gpu(_POWER[name][0], gpu))
        seen.add(gpu)
        for name in columns:
            info, factor = of_gpu(_POWER[name][0], gpu), _POWER[name][1]
            value = scaled(row, name, factor, where)
            why = None if value is not None else "no value"
            writer.write(PowerSample(info.source, t0, t0 if t1 is None else t1, value, why))
        count += 1
    return count


def _columns(row: dict[str, str], path: Path) -> list[str]:
    columns = [c for c in _POWER if c in row]
    if not set(columns) & {"energy_mj", "instant_mw", "average_mw"}:
        raise UserError(
            f"{path}: needs t0_ns and one of energy_mj, instant_mw, average_mw in its head line, found {', '.join(row)}"
        )
    return columns


def _anchors(path: Path) -> list[tuple[int, int]]:
    """(monotonic, wall) pairs of sampler.json in order, empty where it has none."""
    document = json_of(path)
    rows = document.get("anchors_monotonic_wall_ns") if isinstance(document, dict) else None
    pairs = rows if isinstance(rows, list) else [] if rows is None else [rows]
    for k, pair in enumerate(pairs, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(x) in (int, float) for x in pair)):
            raise UserError(
                f"{path}: anchors_monotonic_wall_ns: entry {k} is {pair!r}, needs [monotonic ns, wall ns]; fix it or"
                " remove the file"
            )
    return sorted((int(a), int(b)) for a, b in pairs)


def _ring(writer: Any, path: Path, anchors: list[tuple[int, int]]) -> int:
    """The driver's wall-stamped ring on the monotonic axis, through the anchors recorded beside it."""
    if not anchors:
        return 0
    mono, wall = (np.array([a[k] - anchors[0][k] for a in anchors], np.float64) for k in (0, 1))
    seen: set[str] = set()
    count = 0
    for number, row in table(path, "wall_us"):
        where = f"{path}: line {number}"
        info = of_gpu(RING, _gpu(row, where))
        wall_us, power = scaled(row, "wall_us", 1, where), scaled(row, "power_mw", 1, where)
        if wall_us is None or power is None:
            continue  # not read, or a line that was not finished
        if info.device not in seen:
            writer.write(info)
            seen.add(info.device)
        t = int(np.interp(wall_us * 1000 - anchors[0][1], wall, mono)) + anchors[0][0]
        writer.write(PowerSample(info.source, t, t, power))
        count += 1
    return count
