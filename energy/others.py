"""Who else drew power: CPU time of everything that is not the engine, and strangers on the GPU.

CPU package and DRAM energy above idle is split by CPU time: the engine's part goes to requests, the rest (proxy,
client, tools, other) to `foreign`. A GPU block in which an unknown process was listed cannot be split and is
`unmeasured`.
Roles come from run.json ("processes": {pid: role}). May not know: the fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energy.tables import Floats, Ints, Mask

ENGINE = "engine"


def outside_engine(processes: list[dict[str, Any]], roles: dict[int, str], t_ns: Ints) -> Floats | None:
    """Share of the host's CPU time per block (borders t_ns) that was not the engine's; None where it was not recorded
    or nobody says which process is the engine."""
    series = _cpu_series(processes)
    engine = [p for p, role in roles.items() if role == ENGINE and p in series]
    if 0 not in series or not engine:
        return None
    host = _spent(series[0], t_ns)
    mine = np.sum([_spent(series[p], t_ns) for p in engine], axis=0)
    share: Floats = np.clip(1.0 - np.divide(mine, host, out=np.ones(len(host)), where=host > 0), 0.0, 1.0)
    return share


def strangers(processes: list[dict[str, Any]], roles: dict[int, str], device: str, t_ns: Ints) -> Mask:
    """Blocks in which a GPU listed a process that is not ours. Ours: those with a role; where no process listed has one
    (nobody says, or the pids are those of another namespace) those in the first listing. A stranger counts from the
    listing before it was seen to the listing after."""
    listed: dict[int, set[int]] = {}
    for row in processes:
        if row.get("kind") == "process" and str(row.get("source", "")).endswith(f".{device}"):
            listed.setdefault(int(row["t_ns"]), set()).add(int(row["pid"]))
    out = np.zeros(len(t_ns) - 1, bool)
    times = sorted(listed)
    if not times:
        return out
    ours = set(roles)
    if ours.isdisjoint(set().union(*listed.values())):
        ours = listed[times[0]]
    for k, t in enumerate(times):
        if listed[t] - ours:
            begin, end = times[max(0, k - 1)], times[min(len(times) - 1, k + 1)]
            out |= (t_ns[1:] > begin) & (t_ns[:-1] < max(end, t + 1))
    return out


def _cpu_series(processes: list[dict[str, Any]]) -> dict[int, tuple[Ints, Ints]]:
    rows: dict[int, list[tuple[int, int]]] = {}
    for row in processes:
        if row.get("kind") == "process" and row.get("cpu_ns") is not None:
            rows.setdefault(int(row["pid"]), []).append((int(row["t_ns"]), int(row["cpu_ns"])))
    out = {}
    for pid, points in rows.items():
        points.sort()
        out[pid] = (np.array([t for t, _ in points], np.int64), np.array([c for _, c in points], np.int64))
    return out


def _spent(series: tuple[Ints, Ints], t_ns: Ints) -> Floats:
    t, used = series
    return np.diff(np.interp(t_ns.astype(float), t, used))
