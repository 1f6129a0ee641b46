"""Continuous attribution: tails lose nothing, windows forget only what is old, books never count a request twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.align import ASSUMED, Lag
from joulegraph.continuous import (
    LEAST_NS,
    MANY,
    RENEW_NS,
    RETRY_NS,
    Books,
    LiveLags,
    Tail,
    Window,
    attribute_window,
    class_joules,
)
from tests.energy.test_load import S, _run
from traces.rundir import RunDir


@given(pieces=st.lists(st.binary(max_size=20), max_size=20))
def test_a_tail_gives_every_whole_line_once(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("t") / "x.jsonl"
    path.touch()
    tail, seen = Tail(path), b""
    for piece in pieces:
        with path.open("ab") as file:
            file.write(piece)
        seen += b"".join(tail.lines())
    whole = b"".join(pieces)
    assert seen == whole[: whole.rfind(b"\n") + 1]


def test_a_rotated_journal_is_read_from_its_start_even_when_it_has_grown_longer(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"1\n")
    tail = Tail(path)
    assert tail.lines() == [b"1\n"]
    path.rename(tmp_path / "x.jsonl.1")
    path.write_bytes(b"2\n3\n")
    assert tail.lines() == [b"2\n", b"3\n"]
    assert tail.lines() == []


def test_what_came_to_a_journal_between_the_last_look_and_its_rotation_is_read_too(tmp_path: Path) -> None:
    path, renamed = tmp_path / "x.jsonl", tmp_path / "x.jsonl.1"
    path.write_bytes(b"1\n")
    tail = Tail(path)
    assert tail.lines() == [b"1\n"]
    path.rename(renamed)
    with renamed.open("ab") as file:
        file.write(b"2\n")
    assert tail.lines() == []  # not opened anew yet
    with renamed.open("ab") as file:
        file.write(b"3\ntorn")
    path.write_bytes(b"4\n")
    assert tail.lines() == [b"2\n", b"3\n", b"4\n"]
    assert tail.lines() == []
    path.rename(tmp_path / "elsewhere")
    path.write_bytes(b"5\n")
    assert tail.lines() == [b"5\n"]


def devices(**lags: Lag) -> list[Any]:
    return [SimpleNamespace(curve=SimpleNamespace(device=n, domain="gpu"), lag=lag) for n, lag in lags.items()]


def test_lags_are_estimated_one_sensor_at_a_time_and_kept() -> None:
    lags, now = LiveLags(), 1_000
    assert lags.known(now) == {}
    lags.take(devices(a=ASSUMED, b=ASSUMED), {}, now)  # the first window: all assumed
    found, lost = Lag(0.1, 0.01, True), Lag(0.06, 0.2, False)
    given = lags.known(now)
    assert given == {("b", "gpu"): ASSUMED}  # a is to be estimated
    lags.take(devices(a=found, b=ASSUMED), given, now)
    given = lags.known(now)
    assert given == {("a", "gpu"): found}  # now b
    lags.take(devices(a=found, b=lost), given, now)
    both = {("a", "gpu"): found, ("b", "gpu"): lost}
    assert lags.known(now + RETRY_NS - 1) == both
    assert lags.known(now + RETRY_NS) == {("a", "gpu"): found}  # what the window could not tell is tried again
    lags.take(devices(a=found, b=found), lags.known(now + RETRY_NS), now + RETRY_NS)
    assert len(lags.known(now + RENEW_NS - 1)) == 2
    assert len(lags.known(now + RENEW_NS)) == 1


def test_a_window_keeps_sensors_and_forgets_old_samples(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r")
    writer = run.writer("power", "h", mono_ns=0, wall_ns=0)
    writer.write({"kind": "sensor", "source": "s"})
    for t in (1, 5, 9):
        writer.write({"kind": "sample", "t0_ns": t})
    writer.flush()
    window = Window("power")
    assert window.look(run) == 9
    assert window.look(run) is None
    window.drop_before(5)
    window.write(tmp_path / "out.jsonl")
    rows = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert rows == [{"kind": "sensor", "source": "s"}, {"kind": "sample", "t0_ns": 5}, {"kind": "sample", "t0_ns": 9}]
    writer.close()


figures = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.sampled_from(["chat", "agentic"]), st.sampled_from([None, "w1", "w2"]), st.integers(0, 1000)),
)


@given(st.lists(figures, max_size=6))
def test_each_request_counts_once_at_its_last_figure(steps: list[dict[str, tuple[str, str | None, int]]]) -> None:
    # a request id that left and came back would be a new request in truth: make ids unique per stay
    books, state = Books(), {"classes": {}, "workflows": {}}
    last: dict[str, tuple[str, str | None, int]] = {}
    stay: dict[str, int] = {}
    before: set[str] = set()
    for step in steps:
        for name in step.keys() - before:
            stay[name] = stay.get(name, 0) + 1
        before = set(step)
        now = {f"{name}{stay[name]}": figure for name, figure in step.items()}
        last.update(now)
        state = books.take(now)
    by_class: dict[str, int] = {}
    for label, _, uj in last.values():
        by_class[label] = by_class.get(label, 0) + uj
    assert state["classes"] == by_class
    assert sum(w["active_uj"] for w in state["workflows"].values()) == sum(uj for _, w, uj in last.values() if w)


def test_no_live_file_yet_is_none(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r")
    assert class_joules(run) is None
    run.write_json("live.json", {"classes": {"chat": 2_500_000}})
    assert class_joules(run) == {"chat": 2.5}


def test_a_window_keeps_what_splits_cpu_joules(tmp_path: Path) -> None:
    rows = [
        {"kind": "sensor", "source": "rapl"},
        {"kind": "sample", "source": "rapl", "t0_ns": 5, "t1_ns": 6, "value": 1},
        {"kind": "process", "source": "proc", "t_ns": 5, "pid": 8, "role": "engine", "cpu_ns": None},
        {"kind": "process", "source": "proc", "t_ns": 5, "pid": 7, "role": "engine", "cpu_ns": 10},
        {"kind": "heartbeat", "t_ns": 6},
        {"kind": "process", "source": "proc", "t_ns": 9, "pid": 7, "role": "engine", "cpu_ns": 20},
    ]
    (tmp_path / "power.a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    window = Window("power")
    assert window.look(RunDir(tmp_path)) == 9
    window.drop_before(7)
    window.write(tmp_path / "out.jsonl")
    left = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert left == [rows[0], rows[2], rows[5]]


@given(per_s=st.integers(1, 400), window_s=st.integers(10, 60))
def test_a_window_holds_a_bounded_number_of_requests_but_never_too_short_a_time(per_s: int, window_s: int) -> None:
    window, now = Window("requests"), 100 * 1_000_000_000
    for k in range(per_s * 90):
        window.timed.append((10_000_000_000 + k * 1_000_000_000 // per_s, b""))
    begin = window.begin(now, window_s * 1_000_000_000)
    assert now - window_s * 1_000_000_000 <= begin <= now - LEAST_NS
    window.drop_before(begin)
    assert len(window.timed) <= max(MANY, per_s * 10) + 1
    if per_s * window_s <= MANY:
        assert begin == now - window_s * 1_000_000_000


def test_of_what_was_sent_after_the_last_look_at_power_no_joules_are_told(tmp_path: Path) -> None:
    """The sampler flushes twice a second, or has died: not measured yet is not 0 J."""
    run = _run(tmp_path / "run")  # sent at 5 and 9 s; x2 was skipped
    figures = {end: attribute_window(run.path, LiveLags(), 20 * S, end) for end in (4 * S, 8 * S, 20 * S)}
    assert [sorted(found) for found in figures.values()] == [["x2"], ["x0", "x2"], ["x0", "x1", "x2"]]
