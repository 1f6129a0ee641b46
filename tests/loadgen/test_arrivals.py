"""Arrival processes and transforms: exact tables, statistics within sampling error, order and determinism."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import Arrivals, arrival_ns, moved, offsets, plan, with_process
from traces.errors import UserError
from traces.workflow import Dep, Manifest, Node, Workflow

S = 1_000_000_000
MS = 1_000_000


def single(at_ns: int, name: str = "w") -> Workflow:
    return Workflow(name, (Node(name, "r", at_ns, 10, 10),))


def arrivals_of(stamps: list[int], wanted: Arrivals, manifest: Manifest | None = None) -> list[int]:
    planned = plan((single(t, f"w{i}") for i, t in enumerate(stamps)), manifest or Manifest(), wanted)
    return [arrival_ns(w) for w in planned.workflows]


def test_constant_is_truly_constant() -> None:
    rate = 3.0
    got = list(islice(offsets(Arrivals("constant", rate)), 30_001))
    assert got[0] == 0 and got[-1] == 10_000 * S
    assert {b - a for a, b in pairwise(got)} <= {333_333_333, 333_333_334}


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 0.5), ("gamma", 2.0)])
def test_renewal_processes_have_their_rate_and_cv(process: str, cv: float) -> None:
    got = list(islice(offsets(Arrivals(process, 50.0, cv=cv, seed=3)), 40_000))  # type: ignore[arg-type]
    gaps = [b - a for a, b in pairwise(got)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(S / 50, rel=0.03)
    assert deviation / mean == pytest.approx(cv, rel=0.05)
    assert got == list(islice(offsets(Arrivals(process, 50.0, cv=cv, seed=3)), 40_000))  # type: ignore[arg-type]
    assert got != list(islice(offsets(Arrivals(process, 50.0, cv=cv, seed=4)), 40_000))  # type: ignore[arg-type]


def test_speed_divides_arrivals_and_keeps_delays() -> None:
    chain = Workflow("w", (Node("w", "a", 4 * S, 1, 1), Node("w", "b", 6 * S, 1, 1, delay_ns=S, deps=(Dep("a"),))))
    planned = plan([chain], Manifest(), Arrivals(speed=2.0))
    (got,) = planned.workflows
    assert [n.arrival_ns for n in got.nodes] == [2 * S, 3 * S]
    assert got.nodes[1].delay_ns == S
    assert planned.sentences == ("Arrivals divided by 2; delays inside workflows as recorded.",)


def test_window_limit_and_idle_cap() -> None:
    stamps = [0, 1 * S, 5 * S, 6 * S, 100 * S]
    assert arrivals_of(stamps, Arrivals(from_s=1, until_s=100)) == [0, 4 * S, 5 * S]
    assert arrivals_of(stamps, Arrivals(limit=2)) == [0, S]
    assert arrivals_of(stamps, Arrivals(idle_cap_s=2)) == [0, S, 3 * S, 4 * S, 6 * S]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(0, 3))
def test_dither_stays_within_the_quantum_in_order_and_loses_nothing(steps: list[int], seed: int) -> None:
    stamps = sorted(s * 3_000 * MS for s in steps)
    manifest = Manifest(time_quantum_ms=3000)
    planned = plan((single(t, f"w{i}") for i, t in enumerate(stamps)), manifest, Arrivals(seed=seed))
    got = list(planned.workflows)
    assert sorted(w.workflow_id for w in got) == sorted(f"w{i}" for i in range(len(stamps)))
    assert all(a <= b for a, b in pairwise(arrival_ns(w) for w in got))
    for workflow in got:
        shift = arrival_ns(workflow) - stamps[int(workflow.workflow_id[1:])]
        assert 0 <= shift < 3_000 * MS
    assert len(planned.sentences) == 1 and "3000 ms" in planned.sentences[0]


def test_dither_is_uniform_and_does_not_depend_on_the_limit() -> None:
    manifest = Manifest(time_quantum_ms=1000)
    got = arrivals_of([0] * 4000, Arrivals(seed=1), manifest)
    assert sum(got) / len(got) == pytest.approx(0.5 * S, rel=0.05)
    assert got[0] < 0.01 * S and got[-1] > 0.99 * S
    assert arrivals_of([0] * 4000, Arrivals(seed=1), manifest) == got
    assert arrivals_of([0, 0], Arrivals(dither=False), manifest) == [0, 0]


def test_moving_keeps_recorded_durations() -> None:
    tool = Node("w", "t", 10, 0, 0, kind="tool", t_end_ns=17, t_first_token_ns=12)
    (got,) = moved(Workflow("w", (tool,)), 100).nodes
    assert (got.arrival_ns, got.t_first_token_ns, got.t_end_ns) == (110, 112, 117)


def test_processes_as_words() -> None:
    base = Arrivals(seed=4, limit=3)
    assert with_process("recorded", base) == base
    assert with_process("constant:2", base) == Arrivals("constant", 2.0, seed=4, limit=3)
    assert with_process("gamma:2:0.5", base) == Arrivals("gamma", 2.0, cv=0.5, seed=4, limit=3)
    ramp = with_process("poisson:ramp:1:20:60", base)
    assert ramp == Arrivals("poisson", None, "ramp:1:20:60", seed=4, limit=3)
    assert with_process("gamma:mmpp:1x5,9x5:2", base).rate_profile == "mmpp:1x5,9x5"
    for bad in ("", "constant", "poisson:x", "gamma:2", "recorded:3", "weird:3", "poisson:ramp:1", "constant:-1"):
        with pytest.raises(UserError):
            with_process(bad, base)


def test_absolute_mode_unblocks_every_dependency() -> None:
    chain = Workflow("w", (Node("w", "a", 0, 1, 1), Node("w", "b", 6, 1, 1, deps=(Dep("a"),))))
    (got,) = plan([chain], Manifest(), Arrivals(absolute=True)).workflows
    assert got.nodes[1].blocking == () and got.nodes[1].deps[0].on == "a"


@pytest.mark.parametrize(
    "wanted",
    [
        Arrivals(speed=0),
        Arrivals("constant"),
        Arrivals("gamma", 1.0, cv=0),
        Arrivals(limit=0),
        Arrivals(from_s=5, until_s=5),
        Arrivals(idle_cap_s=0),
    ],
)
def test_senseless_figures_are_refused(wanted: Arrivals) -> None:
    with pytest.raises(UserError):
        plan([], Manifest(), wanted)
