"""Fits the constants of the profile h100-llama8b to recordings of a real H100 and says how well they fit.

    python scripts/fit_profile.py --data ../shared/data/power [--write]

--data holds the folders h100-vllm-llama8b and h100-vllm-workflows (columns: see the README there). Step times come
from the iteration stream of the second run and from the gaps between streamed tokens of both; powers from the energy
counter and the memory power reading, against what the requests were doing. Every constant is then checked by
replaying the recorded requests through the embedded engine. --write puts constants and errors into the profile file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fit_profile_power import (
    BLOCK,
    COLUMNS,
    LAG_NS,
    LEAK_W_PER_C,
    Grid,
    fit_gpu,
    fit_hbm,
    grid_of,
    idle_power,
)
from fit_profile_times import BUDGET, F64, WINDOW, Run, cached, fit_times, load, seconds_of, step_rows, windows
from numpy.typing import NDArray

from engines.embedded import drive
from engines.embedded.core import EngineCore
from engines.embedded.profiles import DATA, Profile, profile_from_row
from engines.embedded.types import EngineRequest, Limits

RUNS = ("h100-vllm-llama8b", "h100-vllm-workflows")
HELD_OUT = {RUNS[0]: {f"mix {i}" for i in range(5, 10)}, RUNS[1]: {"mix 2", "mix 3"}}


def phase_bounds(run: Run) -> list[tuple[str, float, float]]:
    """(name, start, end) of every phase with work in it; the gap after it belongs to it."""
    out = []
    for i, phase in enumerate(run.phases[:-1]):
        if phase["phase"] in ("gap", "end", "idle"):
            continue
        following = run.phases[i + 1]
        end = run.phases[min(i + 2, len(run.phases) - 1)] if following["phase"] == "gap" else following
        label = " ".join(str(phase[k]) for k in ("phase", "kind", "n", "n_out", "run") if k in phase)
        out.append((label, float(phase["t_ns"]), float(end["t_ns"])))
    return out


def constants(times: F64, gpu: F64, hbm: F64, floor: float) -> dict[str, Any]:
    """The fitted part of the profile."""
    g, h = dict(zip(COLUMNS, gpu.tolist())), dict(zip(COLUMNS, hbm.tolist()))
    idle, idle_hbm = (g["idle"] + g["idle_second"]) / 2, (h["idle"] + h["idle_second"]) / 2
    t = times.tolist()
    return {
        "voltage_floor": floor,
        "times": {
            "overhead_s": t[0] * 1e-3, "weights_s": t[1] * 1e-3, "token_s": t[2] * 1e-6, "sequence_s": t[3] * 1e-6,
            "context_s": t[4] * 1e-9, "attention_s": t[5] * 1e-12,
        },
        "gpu": {
            "idle_w": idle, "busy_w": g["busy"], "weights_j": g["weights"], "prefill_token_j": g["prefill"],
            "decode_token_j": g["decode"], "context_j": g["context"], "attention_j": g["attention"],
        },
        "hbm": {
            "idle_w": idle_hbm, "busy_w": 0.0, "weights_j": h["weights"], "prefill_token_j": h["prefill"],
            "context_j": h["context"],
        },
        "leak_per_c": LEAK_W_PER_C / (idle + g["busy"] / 2),
    }  # fmt: skip


def profile_with(found: dict[str, Any], idle_w: float | None = None) -> Profile:
    """The shipped profile with fitted constants."""
    row = json.loads((DATA / "h100-llama8b.json").read_text())
    row["times"] = found["times"]
    row["power"]["gpu"] = dict(found["gpu"], **({} if idle_w is None else {"idle_w": idle_w}))
    row["power"]["hbm"] = found["hbm"]
    row["voltage_floor"] = found["voltage_floor"]
    row["thermal"]["leak_per_c"] = found["leak_per_c"]
    return profile_from_row(rounded(row), "fit")


def replayed(run: Run, profile: Profile, caching: bool) -> list[dict[str, Any]]:
    """Each phase: measured and simulated energy, and the median ratio of simulated to real request time."""
    limits = Limits(max_num_seqs=256, max_num_batched_tokens=BUDGET, enable_prefix_caching=caching, max_model_len=16384)
    core = EngineCore(profile, limits)
    load, shared = [], np.arange(1 << 20)
    for i, r in enumerate(sorted(run.requests, key=lambda r: r["t_send_ns"])):
        # Cached lengths are replayed as recorded: one shared stretch of tokens, then tokens of the request alone.
        own = 10_000_000 + i * 20_000 + np.arange(r["n_in"] - cached(r))
        prompt = np.concatenate((shared[: cached(r)], own))
        load.append((int(r["t_send_ns"]), EngineRequest(r["id"], prompt, max(1, r["n_out"]), ignore_eos=True)))
    marks = [(name, a, b) for name, a, b in phase_bounds(run)]
    result = drive.run(core, load, keep_steps=False)
    out = []
    for name, a, b in marks:
        measured = float(np.diff(np.interp([a + LAG_NS, b + LAG_NS], run.t_ns, run.joules))[0])
        ratios = []
        for r in run.requests:
            served = result.served.get(r["id"])
            if served is not None and a <= r["t_send_ns"] < b:
                ratios.append((served.token_ns[-1] - r["t_send_ns"]) / (r["t_end_ns"] - r["t_send_ns"]))
        out.append(
            {
                "phase": name,
                "measured_j": measured,
                "simulated_j": float(np.diff(result.energy_j(np.array([a, b], np.int64))[:, 0])[0]),
                "time_ratio": float(np.median(ratios)) if ratios else None,
            }
        )
    return out


def rounded(x: Any) -> Any:
    """Four significant digits: more would claim more than the fit knows."""
    if isinstance(x, dict):
        return {k: v if k == "provenance" else rounded(v) for k, v in x.items()}
    return float(f"{x:.4g}") if isinstance(x, float) else x


def held_in(run: Run, g: Grid) -> NDArray[np.bool_]:
    """Blocks that the held-out fit may see: all before the sixth mix of the first run, the third of the second."""
    last = {RUNS[0]: 5, RUNS[1]: 2}[run.name]
    until = next(p["t_ns"] for p in run.phases if p["phase"] == "mix" and p["run"] == last)
    n = len(g.seconds) // BLOCK
    return np.asarray(g.t0_ns + 1e9 * (np.arange(n) + 1.0) < until)


def fit(runs: list[Run], *, hold_out: bool) -> tuple[dict[str, Any], list[F64], dict[str, float]]:
    """Fitted constants, idle power by run, and the errors of the fit."""
    rows, shared = [], []
    for i, run in enumerate(runs):
        r = step_rows(run)
        if hold_out:
            r = r[: round(0.75 * len(r))]
        r[:, 6] += 1e9 * i
        rows.append(r)
        shared.append(np.full(len(r), float(i)))
    together, which = np.concatenate(rows), np.concatenate(shared)
    times = fit_times(together, which)
    modelled, real = windows(together, seconds_of(times, together, which))
    grids = [grid_of(run, times) for run in runs]
    chosen = [held_in(run, g) if hold_out else np.ones(len(g.seconds) // BLOCK, bool) for run, g in zip(runs, grids)]
    hbm, hbm_rms = fit_hbm(grids, chosen)
    idle = [idle_power(run) for run in runs]
    tried = [(fit_gpu(grids, chosen, hbm, floor, idle), floor) for floor in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
    (gpu, rms), floor = min(tried, key=lambda t: t[0][1])
    errors = {
        "step_time_median_error": float(np.median(np.abs(modelled / real - 1))),
        "step_time_total_error": float(modelled.sum() / real.sum() - 1),
        "block_power_rms_w": rms,
        "hbm_power_rms_w": hbm_rms,
        "context_s_shared": float(times[6] * 1e-9),
        "context_j_shared": float(gpu[COLUMNS.index("context_shared")]),
    }
    return constants(times, gpu, hbm, floor), [gpu[7], gpu[8]], errors


def report(runs: list[Run], found: dict[str, Any], idle: list[F64]) -> list[list[dict[str, Any]]]:
    """Replays of both recordings, each with its own board's idle power."""
    out = []
    for run, watts, caching in zip(runs, idle, (False, True)):
        rows = replayed(run, profile_with(found, float(watts)), caching)
        for row in rows:
            error = row["simulated_j"] / row["measured_j"] - 1
            print(
                f"{run.name:22} {row['phase']:24} {row['measured_j']:8.0f} J measured {100 * error:+6.1f} %  "
                f"request time x{row['time_ratio'] or float('nan'):.3f}",
                file=sys.stderr,
            )
        out.append(rows)
    return out


def energy_error(rows: list[dict[str, Any]], kind: str = "") -> float:
    """Mean absolute relative error of phase energies."""
    return float(np.mean([abs(r["simulated_j"] / r["measured_j"] - 1) for r in rows if r["phase"].startswith(kind)]))


def write(found: dict[str, Any], errors: dict[str, float]) -> None:
    """Put the fitted constants and where they come from into the profile file."""
    path = DATA / "h100-llama8b.json"
    row = json.loads(path.read_text())
    row["times"], row["voltage_floor"] = found["times"], found["voltage_floor"]
    row["power"]["gpu"], row["power"]["hbm"] = found["gpu"], found["hbm"]
    row["thermal"]["leak_per_c"] = found["leak_per_c"]
    by = "scripts/fit_profile.py on both recordings of vLLM 0.26.0 on H100 SXM (random weights), 2026-11-22"
    e = {k: round(100 * v, 1) if "error" in k else v for k, v in errors.items()}
    row["provenance"] |= {
        "times": f"{by}: windows of {WINDOW} steps, median error {e['step_time_median_error']} %, total "
        f"{e['step_time_total_error']:+} %; overhead and weights are told apart only by mixed steps, their sum is firm",
        "times.context_s": "first recording, no shared prefixes; where prefixes are shared the second recording gives "
        f"{e['context_s_shared']:.3g} s (keys and values re-read from L2), which the model does not follow",
        "power.gpu": f"{by}: blocks of 1 s, rms {e['block_power_rms_w']} W; busy, weights and token terms are "
        "collinear in the data: their split is uncertain, their sums are not; weights and context at least the "
        "memory's part; "
        "idle_w is measured before the load, the mean of two boards (119.8 and 128.5 W at 35 C)",
        "power.hbm": f"{by}: the memory power reading (1 s average), rms {e['hbm_power_rms_w']} W",
        "voltage_floor": f"{by}: the value of 0.3 ... 0.9 with the least error in power under the recorded clocks",
        "errors": f"replaying the recorded requests: mean absolute error of energy per phase "
        f"{e['replay_phase_energy_error']} %, per mix {e['replay_mix_energy_error']} %, of mixes held out of the fit "
        f"{e['held_out_mix_energy_error']} %",
    }
    path.write_text(json.dumps(rounded(row), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two recordings")
    parser.add_argument("--write", action="store_true", help="write the profile file")
    arguments = parser.parse_args()
    runs = [load(arguments.data / name) for name in RUNS]
    held, idle, _ = fit(runs, hold_out=True)
    print("held out: mixes 5-9 of the first run, 2-3 of the second", file=sys.stderr)
    later = [r for run, rows in zip(runs, report(runs, held, idle)) for r in rows if r["phase"] in HELD_OUT[run.name]]
    found, idle, errors = fit(runs, hold_out=False)
    print("all data", file=sys.stderr)
    rows = report(runs, found, idle)
    errors |= {
        "replay_mix_energy_error": energy_error([*rows[0], *rows[1]], "mix"),
        "replay_phase_energy_error": energy_error([*rows[0], *rows[1]]),
        "held_out_mix_energy_error": energy_error(later),
    }
    if arguments.write:
        write(found, rounded(errors))
    print(json.dumps({"constants": rounded(found), "idle_w": idle, "errors": rounded(errors)}, indent=1))


if __name__ == "__main__":
    main()
