"""The true joules of every request: Shapley value of each step, settled from the step's real start and end.

v(S) = energy of the step had only the sequences S been in it, at its frozen clock and temperature, v(empty) = 0:
    v(S) = static power x T(S) + weights + token, context and attention energies of S
    T(S) = stretch x (overhead + token time x max(roof, padded N(S)) + own times of S)
stretch = real / modelled duration. Own terms go to their sequence; overhead and weights are shared equally; the roof
by shapley.TokenGame; a term in the square of the context read gives k_i x K. So each step's share of a decoding
sequence is A + B x its context, and sums of A, B and B x step index over steps settle a sequence's whole decode
phase in one subtraction.
May not know: the scheduler, tokens, sensors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.embedded.power import GPU, Batch, Cost, StepModel, Temperature, steps_of
from engines.embedded.profiles import COMPONENTS
from traces.records import TruthRecord, TruthTotals

F64 = NDArray[np.float64]
_HISTORY_NS = 5_000_000_000
"""how far back energy_j answers: longer than any sensor's lag and window"""


class Account:
    """One request's energy so far, J, shape (components,) each. `since` is set while it decodes."""

    __slots__ = ("active", "offset", "own", "pace", "prefill", "since")

    def __init__(self) -> None:
        self.active: F64 = np.zeros(len(COMPONENTS))
        self.own: F64 = np.zeros(len(COMPONENTS))
        self.prefill: F64 = np.zeros(len(COMPONENTS))
        self.since: F64 | None = None
        self.offset = 0
        self.pace = 1


class Truth:
    """True energy of one engine replica: a timeline of what it drew, and accounts of who caused it."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._t0_ns: int | None = None
        self._t_ns = 0
        self._energy: F64 = np.zeros(len(COMPONENTS))
        self._times: list[int] = []
        self._history: list[F64] = []
        # Running sums over steps of A, B, B x step; then the same of own energy. Plain floats: rows are this short.
        self._sums = [[0.0] * len(COMPONENTS) for _ in range(6)]
        self._flight: tuple[int, Cost] | None = None
        start = Temperature(model.profile.thermal, model.profile.thermal.ref_c)
        self._temperature = Temperature(model.profile.thermal, start.target(float(model.idle_w[GPU]) / model.gpus))
        self._carry: F64 = np.zeros(len(COMPONENTS))
        self._settled_uj = [0] * len(COMPONENTS)
        self._open: dict[int, Account] = {}
        self.stretched_ns = 0
        """real minus modelled duration of all steps"""

    @property
    def celsius(self) -> float:
        """GPU temperature at the last event."""
        return self._temperature.celsius

    # -- time ---------------------------------------------------------------------------------------------------

    def idle_until(self, t_ns: int) -> None:
        """Nothing runs up to t_ns (no-op while a step is in flight or for instants already passed)."""
        if self._t0_ns is None:
            self._t0_ns = self._t_ns = t_ns
            self._mark()
        if self._flight is not None or t_ns <= self._t_ns:
            return
        seconds = (t_ns - self._t_ns) / 1e9
        for part in steps_of(seconds, self._model.profile.thermal.tau_s / 20):
            watts = self._model.idle_w.copy()
            watts[GPU] *= self._model.leak(self._temperature.celsius)
            self._energy = self._energy + watts * part
            self._temperature.after(float(watts[GPU]) / self._model.gpus, part)
        self._t_ns = t_ns
        self._mark()

    def begin(self, cost: Cost, t_ns: int) -> None:
        """A step starts; until it is settled the timeline shows its modelled power."""
        self.idle_until(t_ns)
        self._flight = (max(t_ns, self._t_ns), cost)

    def energy_j(self, t_ns: int) -> F64:
        """Cumulative energy at t_ns (not more than 5 s back), J, shape (components,)."""
        self.idle_until(t_ns)
        if t_ns >= self._t_ns:
            return self._energy + self._in_flight(t_ns)
        i = bisect_right(self._times, t_ns)
        if i == 0:
            return self._history[0]
        t_a, t_b = self._times[i - 1], self._times[i]
        share = (t_ns - t_a) / (t_b - t_a)
        return self._history[i - 1] + share * (self._history[i] - self._history[i - 1])

    def _in_flight(self, t_ns: int) -> F64:
        if self._flight is None:
            return np.zeros(len(COMPONENTS))
        start, cost = self._flight
        seconds = max(0, t_ns - start) / 1e9
        return cost.static_w * seconds + cost.dynamic_j * min(1.0, seconds / cost.seconds)

    def _mark(self) -> None:
        self._times.append(self._t_ns)
        self._history.append(self._energy)
        if len(self._times) >= 4096 and self._times[2048] < self._t_ns - _HISTORY_NS:
            del self._times[:2048], self._history[:2048]

    # -- shares -------------------------------------------------------------------------------------------------

    def open(self) -> Account:
        """A new request."""
        account = Account()
        self._open[id(account)] = account
        return account

    def join_decode(self, account: Account, offset: int, pace: int = 1) -> None:
        """From the next settled step on the request decodes; its context in step s is pace x s - offset."""
        account.since = np.array(self._sums)
        account.offset, account.pace = offset, pace

    def leave_decode(self, account: Account) -> None:
        """The request decodes no longer (finished, preempted, aborted)."""
        active, own = self._decoded(account)
        account.active += active
        account.own += own
        account.since = None

    def _decoded(self, account: Account) -> tuple[F64, F64]:
        if account.since is None:
            return np.zeros(len(COMPONENTS)), np.zeros(len(COMPONENTS))
        d = np.array(self._sums) - account.since
        offset, pace = account.offset, account.pace
        return d[0] - offset * d[1] + pace * d[2], d[3] - offset * d[4] + pace * d[5]

    def settle(
        self, batch: Batch, cost: Cost, chunks: Sequence[Account], step_index: int, t_start_ns: int, t_end_ns: int
    ) -> None:
        """The step really ran in [t_start_ns, t_end_ns]; chunks: accounts of batch.chunks, in order."""
        self._flight = None
        self.idle_until(t_start_ns)
        start = max(t_start_ns, self._t_ns)
        seconds = max(t_end_ns - start, 0) / 1e9
        r = cost.rates
        self.stretched_ns += round((seconds - cost.seconds) * 1e9)
        stretch = seconds / cost.seconds
        units, each = r.game.shapley(batch.decodes, [n for n, _ in batch.chunks], batch.width)
        if batch.decodes:
            self._settle_decodes(batch, cost, stretch, step_index, units.tolist())
        if chunks:
            self._settle_chunks(batch, cost, stretch, chunks, each)
        drawn = cost.static_w * seconds + cost.dynamic_j
        self._energy = self._energy + drawn
        if seconds > 0:
            self._temperature.after(float(drawn[GPU]) / seconds / self._model.gpus, seconds)
        self._t_ns = max(t_end_ns, start)
        self._mark()

    def _settle_decodes(self, batch: Batch, cost: Cost, stretch: float, step_index: int, units: list[float]) -> None:
        r, n, context = cost.rates, batch.sequences, batch.context
        width = batch.width
        base_s = stretch * (r.fixed_s / n + r.sequence_s + r.token_s * (width + units[0]))
        context_s = stretch * r.context_s
        sums = self._sums
        for i, (watts, joules) in enumerate(zip(cost.static_w.tolist(), r.by_component)):
            weights_j, _, token_j, context_j, context2_j, _, padding_j = joules
            decode_j = token_j * width
            a = watts * base_s + weights_j / n + decode_j + padding_j * units[1]
            b = watts * context_s + context_j + context2_j * context
            sums[0][i] += a
            sums[1][i] += b
            sums[2][i] += b * step_index
            sums[3][i] += decode_j
            sums[4][i] += context_j
            sums[5][i] += context_j * step_index

    def _settle_chunks(
        self, batch: Batch, cost: Cost, stretch: float, chunks: Sequence[Account], each: Sequence[F64]
    ) -> None:
        r, n = cost.rates, batch.sequences
        weights_j, prefill_j, _, context_j, context2_j, attention_j, padding_j = r.joules
        watts = cost.static_w * stretch
        shared = watts * (r.fixed_s / n + r.sequence_s) + weights_j / n
        square = context2_j * batch.context
        for account, (tokens, context), extra in zip(chunks, batch.chunks, each):
            pairs = tokens * (context + tokens / 2)
            own = prefill_j * tokens + context_j * context + attention_j * pairs
            time = r.token_s * (tokens + extra[0]) + r.context_s * context + r.attention_s * pairs
            active = own + shared + watts * time + padding_j * extra[1] + square * context
            account.own += own
            account.active += active
            account.prefill += active

    # -- figures ------------------------------------------------------------------------------------------------

    def close(self, account: Account, request_id: str) -> list[TruthRecord]:
        """Final figures of a request that will draw no more; rounding remainders go to the next to close."""
        if account.since is not None:
            self.leave_decode(account)
        exact = account.active * 1e6 + self._carry
        whole = np.floor(exact + 0.5)
        self._carry = exact - whole
        del self._open[id(account)]
        active = [int(x) for x in whole]
        self._settled_uj = [a + b for a, b in zip(self._settled_uj, active)]
        return _records(request_id, account.own, active, account.prefill)

    def figures(self, account: Account, request_id: str) -> list[TruthRecord]:
        """Figures so far of a request that still runs (not part of the ledger yet)."""
        active, own = self._decoded(account)
        return _records(request_id, account.own + own, _micro(account.active + active), account.prefill)

    def totals(self, t_ns: int) -> list[TruthTotals]:
        """sum of active (settled, and running so far) + idle = total, exactly."""
        self.idle_until(t_ns)
        total = _micro(self._energy)
        running = _micro(sum((a.active + self._decoded(a)[0] for a in self._open.values()), self._carry * 1e-6))
        out = []
        for i, component in enumerate(COMPONENTS):
            active = self._settled_uj[i] + running[i]
            out.append(
                TruthTotals(component, total[i], active, total[i] - active, self._t0_ns or 0, max(t_ns, self._t_ns))
            )
        return out


def _micro(joules: F64) -> list[int]:
    return [int(x) for x in np.floor(joules * 1e6 + 0.5)]


def _records(request_id: str, own: F64, active: list[int], prefill: F64) -> list[TruthRecord]:
    out = []
    for i, component in enumerate(COMPONENTS):
        prefilled = min(max(round(float(prefill[i]) * 1e6), 0), active[i])
        out.append(
            TruthRecord(
                request_id=request_id,
                component=component,
                own_uj=round(float(own[i]) * 1e6),
                active_uj=active[i],
                prefill_uj=prefilled,
                decode_uj=active[i] - prefilled,
            )
        )
    return out
