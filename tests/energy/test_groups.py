"""Tensor-parallel groups, replicas, slices: a request's joules are those of the devices that served it, to the uJ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy.attribute import attribute, attribute_run
from energy.foreign import import_run
from energy.groups import MIG_UNTOLD, NO_STREAM, address, groups_of
from energy.policies import POLICIES
from energy.tables import Group, RunData, Series, StepTable, request_table
from engines.embedded import drive
from engines.embedded.core import EngineCore
from engines.embedded.profiles import Profile
from engines.embedded.sensors import SimulatedSensors
from engines.embedded.types import Limits
from joulegraph.validation.mixes import MIXES
from joulegraph.validation.truths import linear_profile
from traces.errors import UserError
from traces.records import SensorInfo
from traces.rundir import RunDir

S = 1_000_000_000
A, B = "127.0.0.1:8000", "127.0.0.1:8010"


def counter(device: str, watts: list[float], seconds: float = 20.0, limits: str | None = None) -> Series:
    """A counter read every 100 ms; watts in equal parts of the time."""
    t = np.arange(0, round(seconds * S), S // 10, dtype=np.int64)
    power = np.array(watts)[(np.arange(len(t)) * len(watts) // len(t))]
    info = SensorInfo(f"{device}.energy", "gpu", device, "counter", "uJ", S // 10, 1, limits=limits)
    return Series(info, t, t + 1000, np.cumsum(power * 1e5).astype(np.int64))


def request(name: str, upstream: str | None, at: float, tokens: int = 40) -> dict[str, Any]:
    sent, first, last = round(at * S), round((at + 0.2) * S), round((at + 1.8) * S)
    reads = [(int(t), 1) for t in np.linspace(first, last, tokens)]
    return {
        "id": name, "upstream": upstream, "sent_ns": sent, "first_ns": first, "last_ns": last, "end_ns": last,
        "prompt": 300, "cached": 0, "completion": tokens, "reads": reads,
    }  # fmt: skip


def run_of(rows: list[dict[str, Any]], series: list[Series], groups: list[Group], **more: Any) -> RunData:
    return RunData(request_table(rows), None, {s.info.source: s for s in series}, [], groups=groups, **more)


def closed(result: Any) -> None:
    for d in result.devices:
        book = d.ledger
        parts = book.attributed + book.idle + book.tail + book.foreign + book.unmeasured
        assert np.array_equal(parts, book.delta)
        assert int(book.delta.sum()) == d.curve.total_uj
    for f in result.figures:
        books = [d.ledger for d in result.devices if d.curve.domain == f.component]
        assert int(f.active.sum()) == sum(int(b.attributed.sum()) for b in books)


def test_a_request_belongs_to_the_devices_of_its_engine() -> None:
    rows = [request("a", f"http://{A}", 4), request("b", B, 10)]
    series = [
        counter("gpu0", [50, 250, 50, 50]),
        counter("gpu1", [60, 260, 60, 60]),
        counter("gpu2", [40, 40, 200, 40]),
    ]
    groups = [Group(A, ("gpu0", "gpu1")), Group(B, ("gpu2",))]
    result = attribute(run_of(rows, series, groups))
    closed(result)
    by_device = {d.curve.device: d for d in result.devices}
    assert [list(by_device[g].windows.row) for g in ("gpu0", "gpu1", "gpu2")] == [[0], [0], [1]]
    active = result.figures[0].active.sum(1)
    assert active[0] == sum(int(by_device[g].ledger.attributed.sum()) for g in ("gpu0", "gpu1"))
    assert active[1] == int(by_device["gpu2"].ledger.attributed.sum())
    full = result.figures[0].full.sum()
    assert full == sum(d.ledger.attributed.sum() + d.ledger.idle.sum() + d.ledger.tail.sum() for d in result.devices)


@given(st.data(), st.sampled_from(sorted(POLICIES)))
@settings(deadline=None, max_examples=30)
def test_books_close_for_any_engines(draw: st.DataObject, policy: str) -> None:
    n = draw.draw(st.integers(0, 10))
    rows = [
        request(f"r{i}", draw.draw(st.sampled_from([A, B, "elsewhere:1", None])), draw.draw(st.floats(0, 17)))
        for i in range(n)
    ]
    gpus = [f"gpu{k}" for k in range(4)]
    series = [counter(g, draw.draw(st.lists(st.integers(0, 700), min_size=1, max_size=5))) for g in gpus]
    share = draw.draw(st.sampled_from([None, 3 / 7]))
    groups = [Group(A, tuple(gpus[:2]), None, share), Group(B, tuple(gpus[2:3]))]
    result = attribute(run_of(rows, series, groups), policy=policy)
    closed(result)
    assert result.totals["closure_uj"] == (0 if result.devices else None)


def test_requests_of_no_engine_and_steps_of_nobody_are_said() -> None:
    rows = [request("a", A, 4), request("b", B, 8), request("c", "other:1", 12), request("d", None, 15)]
    series = [counter("gpu0", [50, 250]), counter("gpu1", [50, 250]), counter("gpu2", [30.0])]
    groups = [Group(A, ("gpu0",)), Group(B, ("gpu1",))]
    n = np.zeros(3, np.int64)
    steps = StepTable(np.array([5, 9, 10]) * S, n, n, n, n, n, n, np.array([0, 1, 1]))
    result = attribute(replace(run_of(rows, series, groups), steps=steps))
    assert NO_STREAM in result.notes
    assert any("1 requests went to other:1" in note for note in result.notes)
    assert any("1 requests do not say" in note for note in result.notes)
    told = [replace(g, engine=k) for k, g in enumerate(groups)]
    result = attribute(replace(run_of(rows, series, told), steps=steps))
    assert NO_STREAM not in result.notes
    assert result.level == "L3"


def test_a_slice_gets_its_share_of_the_board_and_the_rest_is_unmeasured() -> None:
    rows = [request("a", A, 4), request("b", B, 10)]
    board = counter("gpu0", [70, 350, 70, 350, 70], limits="MIG is on: the whole board, not a slice; shape only")
    whole = attribute(run_of(rows, [board], []))
    assert MIG_UNTOLD.format(source="gpu0.energy") in whole.notes
    slices = [Group(A, ("gpu0",), None, 3 / 7), Group(B, ("gpu0",), None, 1 / 7)]
    for groups, share, served in ((slices, 4 / 7, 2), (slices[:1], 3 / 7, 1)):
        result = attribute(run_of(rows, [board], groups))
        closed(result)
        assert any("MIG" in n and "estimated" in n and f"{share:.0%}" in n for n in result.notes)
        books = result.devices[0].ledger
        assert books.unmeasured.sum() == pytest.approx((1 - share) * books.delta.sum(), abs=len(books.delta))
        assert np.count_nonzero(result.figures[0].active.sum(1)) == served
        with_equal = attribute(run_of(rows, [board], groups), policy="equal")
        closed(with_equal)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "no list"),
        ([{"devices": ["gpu0"]}], "needs `upstream`"),
        ([{"upstream": A}], "needs `devices`"),
        ([{"upstream": A, "devices": ["gpu0"], "gpus": 2}], "unknown field 'gpus'"),
        ([{"upstream": A, "devices": ["gpu0"], "engine": -1}], "`engine` is -1"),
        ([{"upstream": A, "devices": ["gpu0"], "mig_share": 1.5}], "`mig_share` is 1.5"),
        ([{"upstream": A, "devices": ["gpu0"]}, {"upstream": f"http://{A}/v1", "devices": ["gpu1"]}], "twice"),
        ([{"upstream": A, "devices": ["gpu0"]}, {"upstream": B, "devices": ["gpu0"]}], "give each its `mig_share`"),
    ],
)
def test_engines_that_make_no_sense_are_refused(said: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        groups_of(said, "run.json")


def test_addresses_are_compared_without_scheme_and_path() -> None:
    assert address("http://h:1/v1") == address("h:1") == address("https://h:1/") == "h:1"
    assert groups_of(None, "run.json") == []


def test_a_recording_of_several_gpus(tmp_path: Path) -> None:
    lines = [
        {"id": name, "engine": engine, "t_send_ns": at * S, "t_first_ns": at * S + S // 5, "t_end_ns": (at + 2) * S,
         "token_dt_us": [50_000] * 30, "usage": {"prompt_tokens": 300, "completion_tokens": 31}}
        for name, engine, at in (("a", "left", 4), ("b", "right", 10))
    ]  # fmt: skip
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(orjson.dumps(x) for x in lines))
    series = {
        0: counter("x", [50, 250, 50, 50]),
        1: counter("x", [60, 260, 60, 60]),
        2: counter("x", [40, 40, 200, 40]),
    }
    rows = sorted((int(t), g, int(v) // 1000) for g, s in series.items() for t, v in zip(s.t0_ns, s.value, strict=True))
    text = "t0_ns,gpu,energy_mj\n" + "".join(f"{t},{g},{v}\n" for t, g, v in rows)
    (tmp_path / "power.csv").write_text(text)
    engines = [{"upstream": "left", "devices": ["gpu0", "gpu1"]}, {"upstream": "right", "devices": ["gpu2"]}]
    (tmp_path / "engines.json").write_bytes(orjson.dumps({"engines": engines}))
    import_run(tmp_path, tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    assert run.info["engines"] == engines
    result = attribute_run(run)
    closed(result)
    assert {d.curve.device: [result.requests.ids[i] for i in d.windows.row] for d in result.devices} == {
        "gpu0": ["a"], "gpu1": ["a"], "gpu2": ["b"],
    }  # fmt: skip
    (tmp_path / "power.csv").write_text(text + "5,7777777,1\n")
    with pytest.raises(UserError, match="line 602: field gpu is 7777777"):
        import_run(tmp_path, tmp_path / "again")


def _engine(profile: Profile, mix: str, seed: int, first_gpu: int, upstream: str) -> tuple[Any, ...]:
    """One engine of two GPUs under a mix: request rows, truth (J per request), counters, steps."""
    plan = MIXES[mix](seed).plan[:150]
    core = EngineCore(profile, Limits(max_num_seqs=256, max_num_batched_tokens=2048, tensor_parallel_size=2))
    sensors = SimulatedSensors(profile, seed, tensor_parallel=2)
    todo = [(p.t_ns, p.request) for p in plan]
    result = drive.run(core, todo, sensors=sensors, poll_ns=20_000_000, lead_ns=6 * S, tail_ns=4 * S)
    rows, truth = [], []
    for p in plan:
        served = result.served[p.request.request_id]
        times = served.token_ns.tolist()
        rows.append(
            {
                "id": f"{upstream} {p.request.request_id}", "upstream": upstream, "sent_ns": served.stats.t_arrival_ns,
                "first_ns": times[0], "last_ns": times[-1], "end_ns": times[-1], "prompt": served.stats.prompt_tokens,
                "cached": served.stats.cached_tokens, "completion": len(times), "reads": [(t, 1) for t in times],
            }
        )  # fmt: skip
        truth.append(next(t.active_uj for t in served.truth if t.component == "gpu"))
    series = []
    for spec in sensors.specs:
        if spec.reading == "counter" and spec.domain == "gpu":
            shown = result.sensors[spec.name]
            device = f"gpu{first_gpu + int(spec.device.removeprefix('gpu'))}"
            info = SensorInfo(f"{device}.energy", "gpu", device, "counter", "uJ", spec.period_ns, spec.resolution)
            series.append(Series(info, shown.t_ns, shown.t_ns, shown.values))
    return rows, truth, series


def test_two_replicas_of_two_gpus_against_the_truth() -> None:
    """Each request's joules over its replica's two GPUs are within the figures of one GPU; with all four GPUs put on
    everyone, whoever is alone on one replica pays for the other's load."""
    profile = linear_profile(7)
    left, right = (_engine(profile, m, s, g, u) for m, s, g, u in (("chat", 7, 0, A), ("decode", 8, 2, B)))
    rows, truth, series = (a + b for a, b in zip(left, right, strict=True))
    groups = [Group(A, ("gpu0", "gpu1")), Group(B, ("gpu2", "gpu3"))]
    data = run_of(rows, series, groups)
    result = attribute(data, level="L1")
    closed(result)
    assert sorted(d.curve.device for d in result.devices) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    error = np.abs(result.figures[0].active.sum(1) / np.array(truth, float) - 1)
    assert np.median(error) < 0.02
    assert np.quantile(error, 0.95) < 0.12
    mixed = attribute(replace(data, groups=[]), level="L1")
    closed(mixed)
    assert np.median(np.abs(mixed.figures[0].active.sum(1) / np.array(truth, float) - 1)) > 3 * np.median(error)
