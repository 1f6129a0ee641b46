"""Attribution of a run, end to end: tables -> windows -> curves -> lag -> blocks -> fit -> split -> books -> figures.

The composition of the pure parts, and the files it leaves: attribution.parquet, workflows.parquet, ledger.json.
May not know: commands, terminals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from energy.agreement import agreement
from energy.align import Lag, estimate_lag
from energy.amortise import Uses, amortised, prompts_of, uses
from energy.curve import Curve, borders, choose, curves_of
from energy.fit import Fit, Profile, cells, fit_energy, from_profile, spans_of
from energy.ledger import BOOK as BOOK
from energy.ledger import Ledger, book, largest_remainder, settle
from energy.load import load_run
from energy.model import Blocks, Shares, blocks, shares
from energy.node_total import node_total
from energy.others import outside_engine, strangers
from energy.output import write
from energy.policies import CHARGE_WAITING, KNOW_OWN, POLICIES, Split, equal
from energy.recompute import restated, victims, width_of, with_recompute
from energy.rollup import OUTSIDE, Figures, by_label
from energy.speculation import speculation
from energy.tables import Floats, Mask, RequestTable, RunData, known
from energy.timefit import fit_time
from energy.uncertainty import UNRESOLVED, widths
from energy.windows import Windows, windows
from energy.work import WorkCurve, work_curve
from traces.errors import UserError
from traces.rundir import RunDir

BLOCK_NS = 1_000_000_000
LEVELS = ("L0", "L1", "L2", "L3")
COMPONENTS = ("gpu", "hbm", "cpu", "dram")
HOST = ("cpu", "dram")
ASIDE = ("prefixes", "node", "agreement", "preemptions", "preempted", "speculation")
"""totals that no policy changes"""
AMORTISED = (
    "own joules of prompt blocks are spread over their later hits ({hits} hits of blocks; {lost} cached tokens had no"
    " creator known in this run: nothing is charged for them)"
)
NOTHING = "nothing measured: no joules are given (a measured profile, --profile, gives estimates)"
PREEMPTED = (
    "the engine preempted; without its iteration stream only victims that stalled for long are known, what was computed"
    " again for the others falls on all who ran beside it"
)
ESTIMATED = "nothing measured: every joule is estimated ({source}), none is measured"
NO_SPLIT = "no CPU time per process with a role: all above idle goes to requests, the proxy's and client's part too"


@dataclass(frozen=True, slots=True)
class Device:
    """Everything attribution found out about one curve."""

    curve: Curve
    lag: Lag
    blocks: Blocks
    rows: Shares
    fit: Fit
    split: Split
    ledger: Ledger
    work: WorkCurve
    windows: Windows
    unmeasured: Mask
    outside: Floats | None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a run's attribution gives back. figures: one per component, rows as in requests."""

    level: str
    policy: str
    requests: RequestTable
    devices: list[Device]
    figures: list[Figures]
    notes: list[str]
    totals: dict[str, Any] = field(default_factory=dict)


def attribute_run(
    run: RunDir,
    *,
    policy: str = "fitted",
    level: str | None = None,
    profile: Profile | None = None,
    prefixes: str = "creator",
) -> Attribution:
    """Attribute a run and write attribution.parquet, workflows.parquet and ledger.json into it. prefixes: "creator" or
    "amortised" (energy.amortise; UserError where the run does not say who hit what)."""
    if prefixes == "amortised" and policy in POLICIES and policy not in KNOW_OWN:
        raise UserError(f"--prefixes amortised --policy {policy}: it knows no own joules; take {' or '.join(KNOW_OWN)}")
    data = load_run(run)
    result = attribute(data, policy=policy, level=level, profile=profile)
    if prefixes == "amortised":
        prompts, size = prompts_of(run, data.requests)
        result = with_prefixes(result, uses(data.requests, prompts, size))
    write(run, result)
    return result


def with_prefixes(result: Attribution, found: Uses) -> Attribution:
    """The same attribution with own joules of blocks spread over their hits; sums stay."""
    notes = [*result.notes, AMORTISED.format(hits=int(np.count_nonzero(found.row != found.creator)), lost=found.lost)]
    figures = amortised(result.figures, result.requests, found)
    aside = {name: result.totals.get(name) for name in ASIDE} | {"prefixes": "amortised"}
    out = replace(result, figures=figures, notes=notes, totals=aside)
    out.totals.update(totals(out))
    return out


def attribute(
    data: RunData,
    *,
    policy: str = "fitted",
    level: str | None = None,
    profile: Profile | None = None,
    lag: Lag | Mapping[tuple[str, str], Lag] | None = None,
) -> Attribution:
    """The same on tables, writes nothing. UserError for an unknown policy or a level the run does not hold.

    lag: known already, for every curve or by (device, domain); of curves without one it is estimated, which takes most
    of the time of a short run.
    """
    if policy not in POLICIES:
        raise UserError(f"--policy {policy!r}: unknown; choose one of {', '.join(POLICIES)}")
    level = choose_level(data, level)
    notes = list(data.notes)
    work = windows(data.requests, level)
    if np.any(work.imputed):
        notes.append(f"{int(work.imputed.sum())} requests without usage: typical token counts stand in for theirs")
    every, missing = curves_of(data.series)
    curves = choose(every)
    node, said = node_total(curves)
    notes += missing + said
    curves = [c for c in curves if c.domain in COMPONENTS]
    notes += apart(curves, work)
    devices: list[Device] = []
    if curves or (profile is not None and len(work)):
        ends = [(float(t) - work.origin_ns) / 1e9 for c in curves for t in (c.t_ns[0], c.t_ns[-1])]
        ends += [0.0, float(work.last.max())] if len(work) else []
        t0, t1 = min(ends) - 2.0, max(ends) + 2.0
        steps = restated(data.steps, width_of(work)) if level == "L3" and data.steps is not None else None
        curve = work_curve(data.requests, work, steps, t0, t1)
        work = with_recompute(data.requests, work, curve, steps, data.preempted)
        if len(work.again):
            curve = work_curve(data.requests, work, steps, t0, t1)
        for one in curves:
            known_lag = lag.get((one.device, one.domain)) if isinstance(lag, Mapping) else lag
            made = _device(data, work, curve, one, policy, profile, known_lag)
            if isinstance(made, str):
                notes.append(f"{one.source}: {made}")
            else:
                devices.append(replace(made, estimated=one.estimated))
        if not devices and profile is not None:
            devices.append(_estimated(data, work, curve, policy, profile))
    notes += [f"{d.curve.source}: {NO_SPLIT}" for d in devices if d.curve.domain in HOST and d.outside is None]
    measured = [d for d in devices if not d.estimated]
    if not measured:
        level = "L0"
        notes.append(ESTIMATED.format(source=devices[0].curve.source) if devices else NOTHING)
    figures = _all_figures(measured or devices, data.requests)
    aside: dict[str, Any] = {"prefixes": "creator", "node": node, "preemptions": data.preempted}
    aside["agreement"] = agreement(curves, every)
    aside["speculation"] = speculation(data.requests)
    aside["preempted"] = victims(data.requests, work) if len(work.again) or data.preempted else None
    if data.preempted and level != "L3":
        notes.append(PREEMPTED)
    result = Attribution(level, policy, data.requests, devices, figures, notes, aside)
    result.totals.update(totals(result))
    return result


def apart(curves: list[Curve], work: Windows) -> list[str]:
    """A note per sensor that was read at other times than the requests ran: most likely on another clock."""
    begin, end = work.origin_ns, work.origin_ns + (round(float(work.last.max()) * 1e9) if len(work) else 0)
    return [
        f"{c.source}: read from {c.t_ns[0]} to {c.t_ns[-1]} ns, requests ran from {begin} to {end} ns: no joules meet"
        " them; are both on one monotonic clock?"
        for c in curves
        if len(work) and (c.t_ns[-1] <= begin or c.t_ns[0] >= end)
    ]


def with_policy(result: Attribution, policy: str) -> Attribution:
    """The same run, lag and fit, split by another policy."""
    devices = []
    for d in result.devices:
        split = POLICIES[policy](d.rows, d.blocks, d.fit)
        books = settle(d.rows, d.blocks, split, d.unmeasured, d.outside)
        devices.append(replace(d, split=split, ledger=books))
    aside = {name: result.totals.get(name) for name in ASIDE}
    out = replace(result, policy=policy, devices=devices, figures=_all_figures(devices, result.requests), totals=aside)
    out.totals.update(totals(out))
    return out


def _all_figures(devices: list[Device], requests: RequestTable) -> list[Figures]:
    measured = [name for name in COMPONENTS if any(d.curve.domain == name for d in devices)]
    return [_figures(name, [d for d in devices if d.curve.domain == name], requests) for name in measured]


def choose_level(data: RunData, asked: str | None) -> str:
    """The highest level the run holds, or the one asked for if it does. L2 wants engine metrics on nine of ten served
    requests, L3 an iteration stream."""
    r = data.requests
    served = known(r.first_ns)
    told = float(np.mean(known(r.prefill_ns)[served])) if np.any(served) else 0.0
    best = "L3" if data.steps is not None and len(data.steps) > 1 else "L2" if told >= 0.9 else "L1"
    if asked is None:
        return best
    if asked not in LEVELS[1:]:
        raise UserError(f"--level {asked!r}: unknown; choose L1, L2 or L3")
    if LEVELS.index(asked) > LEVELS.index(best):
        raise UserError(
            f"--level {asked}: the run holds only {best} (engine metrics or the iteration stream are missing)"
        )
    return asked


def _device(
    data: RunData,
    work: Windows,
    curve: WorkCurve,
    one: Curve,
    policy: str,
    profile: Profile | None,
    lag: Lag | None,
) -> Device | str:
    lag = lag or estimate_lag(one, curve, work.origin_ns)
    prior = profile if one.domain == "gpu" else None
    fit = fit_energy(spans_of(one, curve, work.origin_ns, lag.lag_s), fit_time(curve), prior, limited=False)
    return fit if isinstance(fit, str) else _split(data, work, curve, one, policy, lag, fit)


def _split(data: RunData, work: Windows, curve: WorkCurve, one: Curve, policy: str, lag: Lag, fit: Fit) -> Device:
    cut = borders(one, BLOCK_NS)
    t = (one.t_ns[cut] - work.origin_ns) / 1e9 - lag.lag_s
    uj = np.diff(one.uj[cut])
    span = np.diff(t)
    usable = (span > 0.2) & (span < 4.0) & ~(np.add.reduceat(one.broken, cut[:-1]) > 0)
    rows = shares(data.requests, work, curve, t, waiting=policy in CHARGE_WAITING)
    held = blocks(rows, curve, t, uj, usable)
    split = POLICIES[policy](rows, held, fit)
    hidden = strangers(data.processes, data.roles, one.device, one.t_ns[cut])
    outside = outside_engine(data.processes, data.roles, one.t_ns[cut]) if one.domain in HOST else None
    books = settle(rows, held, split, hidden, outside)
    return Device(one, lag, held, rows, fit, split, books, curve, work, hidden, outside)


def _estimated(data: RunData, work: Windows, curve: WorkCurve, policy: str, profile: Profile) -> Device:
    """Level L0: the profile's coefficients on the run's work stand in for a counter. Marked, never called measured."""
    fit = from_profile(profile)
    terms, cell_s = np.maximum(cells(curve, curve.t), 0), np.diff(curve.t)
    joules = np.cumsum(np.concatenate([[0.0], fit.bend(terms, cell_s) * (terms @ fit.joules)]))
    t_ns = np.rint(curve.t * 1e9).astype(np.int64) + work.origin_ns
    n = len(t_ns)
    one = Curve(
        "gpu0", "gpu", f"estimated from profile {profile.name}", t_ns, np.rint(joules * 1e6).astype(np.int64),
        np.zeros(n, np.int64), np.zeros(n - 1, bool), 1, int(t_ns[1] - t_ns[0]), integrated=True,
    )  # fmt: skip
    return replace(_split(data, work, curve, one, policy, Lag(0.0, 0.0, True), fit), estimated=True)


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
        width = widths(d.rows, d.blocks, d.split, apart_uj, d.lag, edge_s, d.ledger.ratio, len(work))
        at = np.repeat(work.row * 2, 2) + np.tile([0, 1], len(work))
        half[at] += width.half_uj
    most = sum(d.curve.total_uj for d in devices)
    wide = np.rint(np.minimum(np.nan_to_num(half, nan=most, posinf=most), most)).astype(np.int64)
    shape = (n, 2)
    return Figures(
        name, own.reshape(shape), active.reshape(shape), (active + extra).reshape(shape),
        np.maximum(active - wide, 0).reshape(shape), (active + wide).reshape(shape),
    )  # fmt: skip


def totals(result: Attribution) -> dict[str, Any]:
    """The run's sums over its main component (gpu where measured, else the first) and per component, for --json."""
    books, estimates = (_books(result.devices, estimated) for estimated in (False, True))
    main = next(iter(books or estimates), None)
    out: dict[str, Any] = {"level": result.level, "policy": result.policy, "component": main}
    out |= (books or estimates)[main] if main else dict.fromkeys((*BOOK, "closure_uj", "scale"))
    out["components"] = books
    out["estimates"] = estimates
    out["estimated"] = bool(estimates) and not books
    if result.figures:
        active = sum(f.active.sum(1) for f in result.figures if f.component not in OUTSIDE)
        out["class_uj"] = by_label(result.requests.classes, active)
        out["agent_uj"] = by_label(result.requests.agent, active)
        out["intervals"] = intervals(result.figures[0])
    out["notes"] = result.notes
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
