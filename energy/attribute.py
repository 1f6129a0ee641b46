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
from energy.align import Lag
from energy.alone import laid_out
from energy.amortise import Uses, amortised, prompts_of, uses
from energy.carbon import Grid
from energy.covered import apart, elsewhere, partly
from energy.curve import Curve, choose, curves_of
from energy.device import HOST, Asked, Device, attributed, estimated, resplit
from energy.fit import Profile
from energy.groups import NO_STREAM, Scope, outside, scopes_of, slices, steps_of, untold
from energy.joining import joined
from energy.late_reads import read_in_time
from energy.load import load_run
from energy.node_total import node_total
from energy.output import write
from energy.policies import KNOW_OWN, POLICIES
from energy.recompute import in_time, restated, victims, width_of, with_recompute
from energy.rollup import Figures
from energy.speculation import speculation
from energy.tables import RequestTable, RunData, known
from energy.totals import COMPONENTS, all_figures, totals
from energy.unsaid_cache import with_cached
from energy.windows import Windows, windows
from energy.work import WorkCurve, line_of, work_curve
from traces.errors import UserError
from traces.rundir import RunDir

Works = dict[int, tuple[Windows, WorkCurve]]
"""of each scope, by its index"""
LEVELS = ("L0", "L1", "L2", "L3")
ASIDE = ("prefixes", "node", "agreement", "preemptions", "preempted", "speculation")
"""totals that no policy changes"""
AMORTISED = (
    "own joules of prompt blocks are spread over their later hits ({hits} hits of blocks; {lost} cached tokens had no"
    " creator known in this run: nothing is charged for them)"
)
IN_BYTES = (
    "blocks of prompts are of bytes, as a proxy without a tokenizer has them: their tokens are estimated by each"
    " prompt's own tokens per byte"
)
NOTHING = "nothing measured: no joules are given (a measured profile, --profile, gives estimates)"
PREEMPTED = (
    "the engine preempted; without its iteration stream only victims that stalled for long are known, what was computed"
    " again for the others falls on all who ran beside it"
)
ESTIMATED = "nothing measured: every joule is estimated ({source}), none is measured"
NO_SPLIT = "no CPU time per process with a role: all above idle goes to requests, the proxy's and client's part too"


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
    grid: Grid | None = None,
) -> Attribution:
    """Attribute a run and write attribution.parquet, workflows.parquet and ledger.json into it. prefixes: "creator" or
    "amortised" (energy.amortise; UserError where the run does not say who hit what). grid: gCO2e too."""
    if prefixes == "amortised" and policy in POLICIES and policy not in KNOW_OWN:
        raise UserError(f"--prefixes amortised --policy {policy}: it knows no own joules; take {' or '.join(KNOW_OWN)}")
    data = load_run(run)
    result = attribute(data, policy=policy, level=level, profile=profile)
    if prefixes == "amortised":
        found = prompts_of(run, data.requests)
        if found.estimated:
            result.notes.append(IN_BYTES)
        result = with_prefixes(result, uses(data.requests, found.prompts, found.size))
    write(run, result, grid)
    return result


def with_prefixes(result: Attribution, found: Uses) -> Attribution:
    """The same attribution with own joules of blocks spread over their hits; sums stay."""
    notes = [*result.notes, AMORTISED.format(hits=int(np.count_nonzero(found.row != found.creator)), lost=found.lost)]
    figures = amortised(result.figures, result.requests, found)
    aside = {name: result.totals.get(name) for name in ASIDE} | {"prefixes": "amortised"}
    return _summed(replace(result, figures=figures, notes=notes, totals=aside))


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
    scopes = scopes_of(data.groups, data.requests)
    notes = list(data.notes) + outside(scopes, data.requests)
    if untold(data.steps, scopes):
        data, notes = replace(data, steps=None), [*notes, NO_STREAM]
    if said := elsewhere(data.steps, data.requests):
        data, notes = replace(data, steps=None), [*notes, *said]
    level = choose_level(data, level)
    as_read = data.requests
    if level != "L1":
        requests, said = read_in_time(as_read)
        data, notes = replace(data, requests=requests), [*notes, *said]
    every, missing = curves_of(data.series)
    curves = choose(every)
    node, about = node_total(curves)
    notes += missing + about
    curves = [c for c in curves if c.domain in COMPONENTS]
    works = _works(data, level, scopes, curves, profile, notes)
    own = engines(works, scopes) or [windows(data.requests, level)]
    if guessed := sum(int(w.imputed.sum()) for w in own):
        notes.append(f"{guessed} requests without usage: typical token counts stand in for theirs")
    notes += apart(curves, data.requests) or partly(curves, data.requests)
    devices: list[Device] = []
    for one in curves:
        k = next(k for k, s in enumerate(scopes) if s.holds(one.device))
        asked = Asked(data, *works[k], policy, profile, scopes[k].share)
        made = attributed(asked, one, lag.get((one.device, one.domain)) if isinstance(lag, Mapping) else lag)
        notes += [f"{one.source}: {made}"] if isinstance(made, str) else []
        notes += slices(data, one.source, scopes[k])
        devices += [] if isinstance(made, str) else [replace(made, estimated=one.estimated)]
    if not devices and profile is not None and works:
        devices = _without_sensors(data, works, scopes, policy, profile)
    notes += [f"{d.curve.source}: {NO_SPLIT}" for d in devices if d.curve.domain in HOST and d.outside is None]
    measured = [d for d in devices if not d.estimated]
    if not measured:
        level = "L0"
        notes.append(ESTIMATED.format(source=devices[0].curve.source) if devices else NOTHING)
    aside: dict[str, Any] = {"prefixes": "creator", "node": node, "preemptions": data.preempted}
    aside["agreement"] = agreement(curves, every)
    aside["speculation"] = speculation(data.requests)
    hit = victims(data.requests, own)
    aside["preempted"] = hit if hit["requests"] or data.preempted else None
    if data.preempted and level != "L3":
        notes.append(PREEMPTED)
    figures = all_figures(measured or devices, data.requests)
    return _summed(Attribution(level, policy, as_read, devices, figures, notes, aside))


def _summed(result: Attribution) -> Attribution:
    """With its totals."""
    said = {"level": result.level, "policy": result.policy}
    result.totals.update(totals(result.devices, result.figures, result.requests, said))
    result.totals["notes"] = result.notes
    return result


def _works(
    data: RunData, level: str, scopes: list[Scope], curves: list[Curve], profile: Profile | None, notes: list[str]
) -> Works:
    """Windows and work of each scope that has a device; without any sensor, of the engines or of everyone."""
    if curves:
        used = {next(k for k, s in enumerate(scopes) if s.holds(c.device)) for c in curves}
    else:
        used = set(range(len(scopes) - 1)) or {0}
    out = {}
    for k in sorted(used):
        work = windows(data.requests, level, scopes[k].rows)
        work, said = joined(data.requests, work) if level == "L1" else (work, [])
        notes += said
        steps = steps_of(data.steps, scopes[k], scopes) if level == "L3" else None
        steps = None if steps is None else restated(steps, width_of(work))
        if not curves and (profile is None or not len(work)):
            continue
        mine = [c for c in curves if next(s for s in scopes if s.holds(c.device)) is scopes[k]]
        ends = [(float(t) - work.origin_ns) / 1e9 for c in mine for t in (c.t_ns[0], c.t_ns[-1])]
        ends += [0.0, float(work.last.max())] if len(work) else []
        t0, t1 = min(ends) - 2.0, max(ends) + 2.0
        told = in_time(data.requests, work, steps)
        work, said = with_cached(data.requests, work, None if told is None else line_of(told, work))
        notes += said
        if told is None:
            work, curve, alone, said = laid_out(data.requests, work, level, t0, t1)
            notes += said
        else:
            curve, alone = work_curve(data.requests, work, told, t0, t1), False
        work = with_recompute(data.requests, work, curve, steps, data.preempted)
        if len(work.again):
            curve = work_curve(data.requests, work, told, t0, t1, alone=alone)
        out[k] = (work, curve)
    return out


def engines(works: Works, scopes: list[Scope]) -> list[Windows]:
    """Each engine's windows once: the scope of everyone's devices holds the same requests again."""
    named = [work for k, (work, _) in works.items() if k < len(scopes) - 1]
    return named or [work for work, _ in works.values()]


def _without_sensors(
    data: RunData,
    works: Works,
    scopes: list[Scope],
    policy: str,
    profile: Profile,
) -> list[Device]:
    """Level L0: a device per engine, its first; the profile is of a whole tensor-parallel group."""
    return [
        estimated(Asked(data, *work, policy, profile), profile, min(scopes[k].devices or {"gpu0"}))
        for k, work in works.items()
    ]


def with_policy(result: Attribution, policy: str) -> Attribution:
    """The same run, lag and fit, split by another policy."""
    devices = [resplit(d, policy) for d in result.devices]
    aside = {name: result.totals.get(name) for name in ASIDE}
    figures = all_figures(devices, result.requests)
    return _summed(replace(result, policy=policy, devices=devices, figures=figures, totals=aside))


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
