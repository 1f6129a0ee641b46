"""What each NVIDIA sensor says of known work, from recordings of a real card: plateaus side by side with their
disagreement, the counter's lag with its interval, the error of `Curve.between` by window length.

    python scripts/power_recordings.py FOLDER [--json]     FOLDER: h100-square-wave.csv, .phases.json and h100-duty*

Truth for a window: the work's recorded begin and end, with the wave's own two levels and lag fitted to the counter's
readings (three numbers for the whole wave); so the error holds what is not a step: warming up, power limit, sensor.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from energy.curve import Curve, curve_of
from energy.foreign_power import AVERAGE, COUNTER, INSTANT, RING
from energy.probe import on_time
from energy.tables import Floats, Ints, Series

WINDOWS_S = (0.1, 0.3, 1.0, 3.0)
LAGS_S = np.arange(-0.05, 0.25, 0.002)
_S = 1_000_000_000


def curve(info: Any, t0: Ints, t1: Ints, value: Ints) -> Curve:
    """A sensor's curve; it must have one."""
    made = curve_of(Series(info, t0, t1, value))
    assert isinstance(made, Curve), made
    return made


def square(folder: Path) -> tuple[dict[str, Curve], list[tuple[str, int, int]]]:
    """Curves of the square-wave recording, and what the card did: (kind, begin, end)."""
    with (folder / "h100-square-wave.csv").open() as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> Ints:
        return np.array([int(row[name]) for row in rows], np.int64)

    t0 = column("t_ns")
    t1 = t0 + column("call_ns")
    phases = json.loads((folder / "h100-square-wave.phases.json").read_text())
    return {
        "counter": curve(COUNTER, t0, t1, column("energy_mj") * 1000),
        "instant": curve(INSTANT, t0, t1, column("instant_mw")),
        "1 s average": curve(AVERAGE, t0, t1, column("power_usage_mw")),
    }, [(str(kind), int(a), int(b)) for kind, a, b in phases]


def duty(folder: Path) -> tuple[dict[str, Curve], list[dict[str, Any]]]:
    """Curves of the duty recording with the driver's ring, and its phases."""
    about = json.loads((folder / "h100-duty.json").read_text())
    mono, wall = about["anchor"]
    with gzip.open(folder / "h100-duty.csv.gz", "rt") as file:
        polled = np.array(list(csv.reader(file))[1:], np.int64)
    with gzip.open(folder / "h100-duty-ring20ms.csv.gz", "rt") as file:
        ring = np.array(list(csv.reader(file))[1:], np.int64)
    at = ring[:, 0] * 1000 - wall + mono
    t0, t1 = polled[:, 0], polled[:, 1]
    return {
        "counter": curve(COUNTER, t0, t1, polled[:, 2] * 1000),
        "ring": curve(RING, at, at, ring[:, 1]),
        "instant": curve(INSTANT, t0, t1, polled[:, 3]),
        "1 s average": curve(AVERAGE, t0, t1, polled[:, 4]),
    }, about["phases"]


def side_by_side(curves: dict[str, Curve], spans: list[tuple[int, int]]) -> dict[str, dict[str, float]]:
    """Mean watts over the spans by every sensor, and what each is off from the counter (percent)."""
    seconds = sum(b - a for a, b in spans) / _S
    watts = {name: sum(one.between(a, b).uj for a, b in spans) / 1e6 / seconds for name, one in curves.items()}
    return {name: {"w": w, "off_percent": 100 * (w / watts["counter"] - 1)} for name, w in watts.items()}


def plateaus(folder: Path) -> dict[str, Any]:
    """Steady phases of both recordings; a second is left out at the begin of the first, for nothing is steady there."""
    curves, phases = square(folder)
    out: dict[str, Any] = {}
    for kind in ("idle", "gemm", "copy"):
        spans = [(a, b) for name, a, b in phases if name == kind and 3.5 * _S < b - a < 4.5 * _S]
        out[f"{kind}, 4 s"] = side_by_side(curves, spans)
    for length in (0.5, 0.1, 0.03):
        for kind in ("gemm", "idle"):
            spans = [(a, b) for name, a, b in phases if name == kind and 0.95 * length < (b - a) / _S < 1.25 * length]
            out[f"{kind}, {length:g} s of a wave"] = side_by_side(curves, spans)
    curves, waves = duty(folder)
    for wave in waves:
        span = (int(wave["t0_ns"]) + _S // 2, int(wave["t1_ns"]))
        name = f"{wave['on_ms']} ms of {wave['period_ms']} ms" if wave["on_share"] < 0.99 else "full, 6 s"
        out[name] = side_by_side(curves, [span])
    return out


def fit_wave(one: Curve, edges: Ints, inside: Ints, weight: Floats | None = None) -> tuple[float, float, float]:
    """(lag s, low W, high W) of two levels over the counter's nodes by least squares."""
    t, joules = one.t_ns[inside].astype(float), np.diff(one.uj[inside]) / 1e6
    weight = np.ones(len(joules)) if weight is None else weight
    best = (np.inf, 0.0, 0.0, 0.0)
    for lag in LAGS_S:
        on = np.diff(on_time(edges, t - lag * 1e9)) / 1e9
        x = np.column_stack([np.diff(t) / 1e9, on]) * weight[:, None]
        found, *_ = np.linalg.lstsq(x, joules * weight, rcond=None)
        error = float(np.sum((x @ found - joules * weight) ** 2))
        best = min(best, (error, float(lag), float(found[0]), float(found[0] + found[1])))
    return best[1:]


def windows(folder: Path) -> dict[str, Any]:
    """Lag and levels of the 0.5 s wave, bootstrapped over its cycles; errors of `between` by window length."""
    curves, phases = square(folder)
    edges = np.array([(a, b) for kind, a, b in phases if kind == "gemm" and 0.45 * _S < b - a < 0.56 * _S], np.int64)
    begin, end = int(edges[0, 0]), int(edges[-1, 1])
    one = curves["counter"]
    inside = np.flatnonzero((one.t_ns > begin) & (one.t_ns < end))
    lag, low, high = fit_wave(one, edges, inside)
    rng = np.random.default_rng(1)
    cycle = np.searchsorted(edges[:, 0], one.t_ns[inside][:-1], "right") - 1
    draws = []
    for _ in range(200):
        count = np.bincount(rng.integers(0, len(edges), len(edges)), minlength=len(edges))
        draws.append(fit_wave(one, edges, inside, np.sqrt(count[cycle].astype(float))))
    lo, hi = np.quantile(np.array(draws), (0.05, 0.95), axis=0)
    found: dict[str, Any] = {
        "cycles": len(edges),
        "lag_ms": [round(1e3 * v, 1) for v in (lag, lo[0], hi[0])],
        "low_w": [round(v, 1) for v in (low, lo[1], hi[1])],
        "high_w": [round(v, 1) for v in (high, lo[2], hi[2])],
        "between": {},
    }
    for seconds in WINDOWS_S:
        a = np.linspace(begin, end - seconds * 1e9, 400)
        b = a + seconds * 1e9
        on = (on_time(edges, b) - on_time(edges, a)) / 1e9
        truth = low * seconds + (high - low) * on
        row = {}
        for name in ("counter", "instant", "1 s average"):
            shift = round(lag * 1e9) if name == "counter" else 0
            got = [curves[name].between(int(s) + shift, int(e) + shift) for s, e in zip(a, b, strict=True)]
            off = np.abs(np.array([w.uj for w in got]) / 1e6 - truth) / ((low + high) / 2 * seconds)
            row[name] = {
                "median_percent": 100 * float(np.median(off)),
                "p95_percent": 100 * float(np.quantile(off, 0.95)),
            }
            if name == "counter":
                inside_bound = [abs(w.uj / 1e6 - t) <= w.error_uj / 1e6 for w, t in zip(got, truth, strict=True)]
                row[name]["bound_percent"] = (
                    100 * float(np.median([w.error_uj for w in got])) / 1e6 / ((low + high) / 2 * seconds)
                )
                row[name]["within_bound_percent"] = 100 * float(np.mean(inside_bound))
        found["between"][f"{seconds:g} s"] = row
    return found


def main() -> int:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = {"plateaus": plateaus(args.folder), "wave": windows(args.folder)}
    if args.json:
        print(json.dumps(result))
        return 0
    for name, row in result["plateaus"].items():
        cells = "  ".join(f"{sensor} {v['w']:6.1f} W ({v['off_percent']:+5.1f} %)" for sensor, v in row.items())
        print(f"{name:22} {cells}")
    wave = result["wave"]
    print(f"0.5 s wave, {wave['cycles']} cycles; value [90 % interval]:")
    for key in ("lag_ms", "low_w", "high_w"):
        value, lo, hi = wave[key]
        print(f"  {key} {value} [{lo}, {hi}]")
    for length, row in wave["between"].items():
        cells = "  ".join(f"{n} {v['median_percent']:.1f} / {v['p95_percent']:.1f} %" for n, v in row.items())
        one = row["counter"]
        print(
            f"  window {length:5} off (median / p95): {cells}; counter's bound {one['bound_percent']:.1f} %,"
            f" holds {one['within_bound_percent']:.0f} %"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
