"""Which engine's requests which devices served: tensor-parallel groups, replicas, slices of one board.

run.json `engines`: [{"upstream": "http://host:port", "devices": ["gpu0", "gpu1"], "engine": 0, "mig_share": 0.43}].
A request belongs to the engine whose address served it, its joules are the sum over that engine's devices. Devices that
no engine names (the host's CPU, or all of a run that says nothing) are everyone's. Pure.
May not know: files, how energy is split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from energy.tables import Group, Ints, Mask, RequestTable, RunData, StepTable
from traces.errors import UserError

FIELDS = ("upstream", "devices", "engine", "mig_share")
MIG_UNTOLD = (
    "{source}: MIG is on and the board's counter holds all slices: the figures are estimated, as if the others did"
    " nothing (`mig_share` of `engines` in run.json says which part of the board is ours)"
)
MIG_SHARE = (
    "{source}: MIG: {share:.0%} of the board's energy stands for our slices, the figures are estimated; the rest is"
    " `unmeasured`"
)
NO_STREAM = (
    "several engines, and `engines` of run.json does not say whose the steps are (`engine`): the iteration stream is"
    " left out"
)


def groups_of(said: Any, where: str) -> list[Group]:
    """The engines that run.json names; [] where it names none. UserError names what is wrong."""
    if said is None:
        return []
    if not isinstance(said, list):
        raise UserError(f"{where}: `engines` is no list; docs/attribution.md has its layout")
    groups = [_group(row, f"{where}: engines[{k}]") for k, row in enumerate(said)]
    names = [g.upstream for g in groups]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"{where}: `engines` names {twice} twice; give each address once, with all its devices")
    for g in groups:
        for other in groups:
            shared = set(g.devices) & set(other.devices)
            if shared and g is not other and (g.mig_share is None or other.mig_share is None):
                raise UserError(
                    f"{where}: `engines` gives {min(shared)} to {g.upstream} and to {other.upstream}; where they are"
                    " slices of one board, give each its `mig_share`"
                )
    return groups


def _group(row: Any, where: str) -> Group:
    if not isinstance(row, dict) or not isinstance(row.get("upstream"), str):
        raise UserError(f"{where}: needs `upstream`, the address its requests were sent to")
    if unknown := sorted(set(row) - set(FIELDS)):
        raise UserError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    devices, engine, share = row.get("devices"), row.get("engine"), row.get("mig_share")
    if not isinstance(devices, list) or not devices or not all(isinstance(d, str) for d in devices):
        raise UserError(f'{where}: needs `devices`, names of sensors\' devices such as ["gpu0", "gpu1"]')
    if engine is not None and (not isinstance(engine, int) or isinstance(engine, bool) or engine < 0):
        raise UserError(f"{where}: `engine` is {engine!r}; give the engine's index in the iteration stream, 0 or more")
    if share is not None and not (isinstance(share, int | float) and 0 < share <= 1):
        raise UserError(f"{where}: `mig_share` is {share!r}; give the slice's part of the board, above 0, at most 1")
    return Group(address(row["upstream"]), tuple(devices), engine, None if share is None else float(share))


def address(url: str) -> str:
    """host:port of an address, however it was written."""
    return url.partition("://")[2].partition("/")[0] if "://" in url else url.strip("/")


@dataclass(frozen=True, slots=True)
class Scope:
    """Devices (None: all that no other scope names) and the rows of the request table whose work they did. engines:
    indices in the iteration stream, None for all. share: of each device that is ours."""

    devices: frozenset[str] | None
    rows: Mask
    engines: tuple[int, ...] | None
    share: float | None = None

    def holds(self, device: str) -> bool:
        return self.devices is None or device in self.devices


def scopes_of(groups: list[Group], requests: RequestTable) -> list[Scope]:
    """The scopes of a run, the one of everyone's devices last. Groups that share a board (slices) are one."""
    everyone = np.ones(len(requests), bool)
    out: list[Scope] = []
    left = list(groups)
    while left:
        together = [left.pop(0)]
        devices = set(together[0].devices)
        while more := [g for g in left if devices & set(g.devices)]:
            together += more
            left = [g for g in left if g not in more]
            devices |= {d for g in more for d in g.devices}
        rows = np.isin(requests.upstream.codes, _codes(together, requests))
        index = [g.engine for g in together if g.engine is not None]
        shares = [g.mig_share for g in together if g.mig_share is not None]
        share = min(1.0, sum(shares)) if len(shares) == len(together) else None
        out.append(Scope(frozenset(devices), rows, tuple(index) if len(index) == len(together) else None, share))
    return [*out, Scope(None, everyone, None)]


def _codes(groups: Iterable[Group], requests: RequestTable) -> list[int]:
    names = {g.upstream for g in groups}
    return [k for k, name in enumerate(requests.upstream.names) if address(name) in names]


def outside(scopes: list[Scope], requests: RequestTable) -> list[str]:
    """A note about requests that no engine named in run.json served."""
    if len(scopes) < 2:
        return []
    lost = ~np.any([s.rows for s in scopes[:-1]], axis=0) & (requests.upstream.codes >= 0)
    silent = int(np.count_nonzero(requests.upstream.codes < 0))
    notes = []
    if np.any(lost):
        names = ", ".join(sorted({requests.upstream.names[c] for c in requests.upstream.codes[lost]}))
        notes.append(f"{int(lost.sum())} requests went to {names}, which `engines` of run.json does not name: no GPU")
    if silent:
        notes.append(f"{silent} requests do not say which engine served them (no proxy saw them): no GPU is theirs")
    return notes


def steps_of(steps: StepTable | None, scope: Scope, scopes: list[Scope]) -> StepTable | None:
    """The iteration stream of a scope's engines; None where the stream cannot be told apart."""
    if steps is None or len(scopes) < 2:
        return steps
    if scope.engines is None:
        return steps if len(scopes) == 2 else None
    return select(steps, np.isin(steps.engine, scope.engines))


def untold(steps: StepTable | None, scopes: list[Scope]) -> bool:
    """Whether there is a stream of several engines that cannot be told apart."""
    return steps is not None and len(scopes) > 2 and any(s.engines is None for s in scopes[:-1])


def slices(data: RunData, source: str, scope: Scope) -> list[str]:
    """What is to be said of a sensor whose board is cut into slices."""
    if scope.share is not None:
        return [MIG_SHARE.format(source=source, share=scope.share)]
    limits = [one.info.limits or "" for one in data.series.values() if one.info.source == source]
    return [MIG_UNTOLD.format(source=source)] if any("MIG is on" in said for said in limits) else []


def select(steps: StepTable, keep: Mask) -> StepTable:
    """Only these steps."""
    return StepTable(*(getattr(steps, name)[keep] for name in StepTable.__slots__))


def ours(uj: Ints, share: float | None) -> Ints:
    """Our part of a cumulative energy, whole uJ; what is left of every difference is the others'."""
    return uj if share is None else np.floor(uj * share).astype(np.int64)
