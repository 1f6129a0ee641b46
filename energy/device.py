"""One device's attribution: its curve and the work of the engine it served -> lag, blocks, fit, split, books.

The pure parts in order, for one sensor. May not know: files, what other devices came to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from energy.align import Lag, estimate_lag
from energy.curve import Curve, borders
from energy.fit import Fit, Profile, Spans, cells, fit_energy, from_profile, spans_of
from energy.groups import ours
from energy.ledger import Ledger, settle
from energy.model import Blocks, Shares, blocks, shares
from energy.others import outside_engine, strangers
from energy.policies import CHARGE_WAITING, POLICIES, Split
from energy.tables import Floats, Ints, Mask, RunData
from energy.tail import tried_s
from energy.timefit import fit_time
from energy.warmth import Warmth, cooled, leak_of, warmth
from energy.windows import Windows
from energy.work import WorkCurve

BLOCK_NS = 1_000_000_000
HOST = ("cpu", "dram")


@dataclass(frozen=True, slots=True)
class Device:
    """Everything attribution found out about one curve. work, windows: of the engine that the device served. share: the
    part of the device that is ours (slices of a board), None for all; theirs: uJ per block of the others."""

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
    share: float | None = None
    theirs: Ints | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """How a device is to be split: the run's tables, the work that it did, the policy, a prior, a part of the board."""

    data: RunData
    windows: Windows
    work: WorkCurve
    policy: str
    profile: Profile | None
    share: float | None = None


def attributed(asked: Asked, one: Curve, lag: Lag | None) -> Device | str:
    """The device of a sensor's curve, or why there is none. lag: known already, else it is estimated."""
    origin = asked.windows.origin_ns
    part = replace(one, uj=ours(one.uj, asked.share))
    lag = lag or estimate_lag(part, asked.work, origin)
    prior = asked.profile if one.domain == "gpu" else None
    seconds, warm = fit_time(asked.work), warmth(part, origin, lag.lag_s)
    tried = [asked.work.fading(tail_s) for tail_s in tried_s(lag.lag_s)]
    fits = [(_fitted(spans_of(part, work, origin, lag.lag_s), warm, seconds, prior), work) for work in tried]
    found = [(fit, work) for fit, work in fits if not isinstance(fit, str)]
    if not found:
        return str(fits[0][0])
    fit, work = min(found, key=lambda pair: pair[0].residual_w)
    return _split(replace(asked, work=work), one, lag, fit)


def _fitted(spans: Spans, warm: Warmth, seconds: Floats, prior: Profile | None) -> Fit | str:
    """Coefficients for shares. Warmth grows with load and would pass for its cost: it is taken out."""
    return fit_energy(cooled(spans, warm, leak_of(warm, spans, sure=True)), seconds, prior, limited=False)


def resplit(device: Device, policy: str) -> Device:
    """The same device, lag and fit, split by another policy."""
    split = POLICIES[policy](device.rows, device.blocks, device.fit)
    books = settle(device.rows, device.blocks, split, device.unmeasured, device.outside, device.theirs)
    return replace(device, split=split, ledger=books)


def _split(asked: Asked, one: Curve, lag: Lag, fit: Fit) -> Device:
    data, work, curve, policy = asked.data, asked.windows, asked.work, asked.policy
    cut = borders(one, BLOCK_NS)
    t = (one.t_ns[cut] - work.origin_ns) / 1e9 - lag.lag_s
    uj = np.diff(ours(one.uj, asked.share)[cut])
    theirs = None if asked.share is None else np.diff(one.uj[cut]) - uj
    span = np.diff(t)
    usable = (span > 0.2) & (span < 4.0) & ~(np.add.reduceat(one.broken, cut[:-1]) > 0)
    rows = shares(data.requests, work, curve, t, waiting=policy in CHARGE_WAITING)
    held = blocks(rows, curve, t, uj, usable)
    split = POLICIES[policy](rows, held, fit)
    hidden = strangers(data.processes, data.roles, one.device, one.t_ns[cut])
    outside = outside_engine(data.processes, data.roles, one.t_ns[cut]) if one.domain in HOST else None
    books = settle(rows, held, split, hidden, outside, theirs)
    return Device(one, lag, held, rows, fit, split, books, curve, work, hidden, outside, asked.share, theirs)


def estimated(asked: Asked, profile: Profile, name: str = "gpu0") -> Device:
    """Level L0: the profile's coefficients on the run's work stand in for a counter. Marked, never called measured."""
    fit, curve = from_profile(profile), asked.work
    terms, cell_s = np.maximum(cells(curve, curve.t), 0), np.diff(curve.t)
    joules = np.cumsum(np.concatenate([[0.0], fit.bend(terms, cell_s) * (terms @ fit.joules)]))
    t_ns = np.rint(curve.t * 1e9).astype(np.int64) + asked.windows.origin_ns
    n = len(t_ns)
    one = Curve(
        name, "gpu", f"estimated from profile {profile.name}", t_ns, np.rint(joules * 1e6).astype(np.int64),
        np.zeros(n, np.int64), np.zeros(n - 1, bool), 1, int(t_ns[1] - t_ns[0]), integrated=True,
    )  # fmt: skip
    return replace(_split(asked, one, Lag(0.0, 0.0, True), fit), estimated=True)
