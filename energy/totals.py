"""From devices to figures and totals: sums over the devices of a component, books, intervals.

Pure. May not know: files, how a device was split.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energy.device import Device
from energy.ledger import BOOK, book, largest_remainder
from energy.policies import equal
from energy.rollup import OUTSIDE, Figures, by_label
from energy.tables import RequestTable
from energy.uncertainty import UNRESOLVED, widths

COMPONENTS = ("gpu", "hbm", "cpu", "dram")


def all_figures(devices: list[Device], requests: RequestTable) -> list[Figures]:
    """One per component that has a device, in order of COMPONENTS."""
    measured = [name for name in COMPONENTS if any(d.curve.domain == name for d in devices)]
    return [_figures(name, [d for d in devices if d.curve.domain == name], requests) for name in measured]


def _figures(name: str, devices: list[Device], requests: RequestTable) -> Figures:
    """Sum over the devices of one component; idle and tail shared by active seconds for `full`."""
    n = len(requests)
    own, active, extra = (np.zeros(2 * n, np.int64) for _ in range(3))
    half = np.zeros(2 * n)
    for d in devices:
        work = d.windows
        cell = work.row[d.rows.window] * 2 + d.rows.phase
        np.add.at(own, cell, d.ledger.own)
        np.add.at(active, cell, d.ledger.active)
        seconds = np.bincount(cell, d.rows.seconds, 2 * n)
        spare = int(d.ledger.idle.sum() + d.ledger.tail.sum())
        if seconds.sum() > 0:
            extra += largest_remainder(seconds.astype(float), np.zeros(2 * n, np.int64), np.array([spare], np.int64))
        apart_uj = equal(d.rows, d.blocks, d.fit)
        edge_s = d.curve.period_ns / 1e9
        width = widths(
            d.rows,
            d.blocks,
            d.fit,
            d.split,
            apart_uj,
            d.lag,
            edge_s,
            d.ledger.ratio,
            len(work),
            again=work.computed_again,
            told=d.work.told is not None,
        )
        at = np.repeat(work.row * 2, 2) + np.tile([0, 1], len(work))
        half[at] += width.half_uj
    most = sum(d.curve.total_uj for d in devices)
    wide = np.rint(np.minimum(np.nan_to_num(half, nan=most, posinf=most), most)).astype(np.int64)
    shape = (n, 2)
    return Figures(
        name, own.reshape(shape), active.reshape(shape), (active + extra).reshape(shape),
        np.maximum(active - wide, 0).reshape(shape), (active + wide).reshape(shape),
    )  # fmt: skip


def totals(
    devices: list[Device], figures: list[Figures], requests: RequestTable, said: dict[str, Any]
) -> dict[str, Any]:
    """The run's sums over its main component (gpu where measured, else the first) and per component, for --json. said:
    level, policy and what no sum changes."""
    books, estimates = (_books(devices, estimated) for estimated in (False, True))
    main = next(iter(books or estimates), None)
    out: dict[str, Any] = {**said, "component": main}
    out |= (books or estimates)[main] if main else dict.fromkeys((*BOOK, "closure_uj", "scale"))
    out["components"] = books
    out["estimates"] = estimates
    out["estimated"] = bool(estimates) and not books
    if figures:
        active = sum(f.active.sum(1) for f in figures if f.component not in OUTSIDE)
        out["class_uj"] = by_label(requests.classes, active)
        out["agent_uj"] = by_label(requests.agent, active)
        out["intervals"] = intervals(figures[0])
    return out


def _books(devices: list[Device], estimated: bool) -> dict[str, dict[str, Any]]:
    """The ledger of each component, of what was measured or of what was estimated, which has no measured total."""
    made = {
        name: book([d.ledger for d in devices if d.curve.domain == name and d.estimated == estimated])
        for name in COMPONENTS
    }
    books = {name: one for name, one in made.items() if one is not None}
    return {name: one | {"measured_uj": None} for name, one in books.items()} if estimated else books


def intervals(figures: Figures) -> dict[str, Any]:
    """What the intervals rest on, their median width, and how many requests the sensors cannot resolve."""
    active = figures.active.sum(1)
    half = (figures.high - figures.low).sum(1) / 2
    some = active > 0
    share = half[some] / active[some]
    return {
        "coverage": 0.9,
        "basis": "calibrated in simulation; the board's gain (up to 5 %, common to all requests) is not in them",
        "median_half_width": float(np.median(share)) if np.any(some) else None,
        "unresolved_requests": int(np.count_nonzero(share > UNRESOLVED)),
    }
