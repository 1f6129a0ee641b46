"""The live view: what pages say is what is shown; missing stays missing; a terminal gets a panel, a log gets lines."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from joulegraph.commands import top
from joulegraph.live import LiveState, LiveView, Watch
from joulegraph.live.render import duration, energy, plain, render, spark, watts
from joulegraph.live.state import Device, Engine, Load, Proxy, Quantiles
from joulegraph.live.watch import device_name
from traces.errors import UserError
from traces.status import StatusPage, StatusReader, histogram_names

S = 1_000_000_000
LOADGEN = [
    "t_start_ns",
    "finished",
    "workflows_total",
    "workflows_started",
    "workflows_done",
    "workflows_failed",
    "requests_sent",
    "requests_done",
    "requests_failed",
    "requests_rejected",
    "requests_over",
    "tokens_in",
    "tokens_out",
    *(name for h in ("ttft", "e2e", "lateness", "makespan") for name in histogram_names(h)),
]


def sampler_page(*sources: str) -> StatusPage:
    return StatusPage(["ticks", "missed", "cpu_ns", *(f"{s}.{w}" for s in sources for w in ("value", "t_ns"))])


def show(page: StatusPage, source: str, value: int, t_ns: int) -> None:
    page.set_group({f"{source}.value": value, f"{source}.t_ns": t_ns})


def text_of(state: LiveState, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(render(state, width))
    return console.export_text()


def test_counters_of_all_shards_add_up_and_rates_are_over_the_last_seconds() -> None:
    shards = [StatusPage(LOADGEN), StatusPage(LOADGEN)]
    for shard in shards:
        shard.set("t_start_ns", 10 * S)
        shard.set("workflows_total", 50)
        shard.set("workflows_started", 7)
        shard.set("workflows_done", 4)
        shard.set("workflows_failed", 1)
        shard.observe("ttft", 40_000_000)
    watch = Watch({"loadgen": [StatusReader(s) for s in shards]})
    state = watch.read(11 * S)
    assert state.load and state.load.workflows_total == 100 and state.load.workflows_in_flight == 4
    assert state.progress == 0.1 and state.load.elapsed_ns == S and state.load.tokens_per_s is None
    for second in range(12, 22):
        shards[0].set("tokens_out", 300 * (second - 11))
        shards[1].set("tokens_out", 100 * (second - 11) if second < 16 else 400 + 500 * (second - 15))
        state = watch.read(second * S)
    assert state.load and state.load.tokens_per_s == 800.0, "the mean of the last three seconds, not of the whole run"
    assert state.load.ttft.p50 is not None and 40_000_000 <= state.load.ttft.p50 <= 48_000_000
    assert state.load.e2e == Quantiles(None, None, None)


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 500_000)), min_size=2, max_size=30))
def test_joules_so_far_are_the_counter_difference_whatever_the_pace(steps: list[tuple[int, int]]) -> None:
    page = sampler_page("sim.gpu0.energy")
    watch = Watch({"sampler": [StatusReader(page)]})
    t_ns, value = 5 * S, 123_456_789
    for gap_ms, joules in [(1, 0), *steps]:
        t_ns, value = t_ns + gap_ms * 1_000_000, value + joules * 1_000_000
        show(page, "sim.gpu0.energy", value, t_ns)
        (device,) = watch.read(t_ns).devices
    assert device.joules == pytest.approx(sum(j for _, j in steps))
    assert device.watts is not None and device.watts >= 0


def test_watts_come_from_the_counter_where_there_is_one_and_a_wrap_shows_no_nonsense() -> None:
    page = sampler_page(
        "rapl.package-0.energy", "nvml.gpu0.energy", "nvml.gpu0.power", "nvml.hbm0.power", "nvml.gpu1.power"
    )
    watch = Watch({"sampler": [StatusReader(page)]})
    assert [(d.name, d.watts) for d in watch.read(S).devices] == [
        ("gpu0", None),
        ("gpu1", None),
        ("hbm0", None),
        ("package-0", None),
    ]
    for second, package in ((1, 200_000_000), (2, 260_000_000), (3, 5_000_000)):
        show(page, "rapl.package-0.energy", package, second * S)
        show(page, "nvml.gpu0.energy", second * 400_000_000, second * S)
        show(page, "nvml.gpu0.power", 999_000, second * S)
        show(page, "nvml.hbm0.power", 70_000, second * S)
        show(page, "nvml.gpu1.power", 123_000, second * S)
        seen = {d.name: d for d in watch.read(second * S).devices}
        if second == 2:
            assert seen["package-0"].watts == 60.0
    assert seen["gpu0"].watts == 400.0 and seen["gpu0"].source == "nvml.gpu0.energy" and seen["gpu0"].joules == 800.0
    assert seen["gpu1"].watts == 123.0 and seen["gpu1"].joules is None
    assert seen["hbm0"].inside == "gpu0"
    assert seen["package-0"].watts is None and seen["package-0"].joules == 60.0
    assert "of which hbm0" in text_of(watch.read(3 * S))


def test_names_of_devices() -> None:
    assert device_name("nvml.gpu0.energy") == "gpu0"
    assert device_name("rapl.package-0.dram.energy") == "package-0 dram"


def full_state() -> LiveState:
    q = Quantiles(40_000_000, 180_000_000, 250_000_000)
    load = Load(115, 60, 40, 1, 130, 110, 2, 3, 115, 12_345, 31 * S, False, q, q, q, q, 431.4)
    device = Device("gpu0", "sim.gpu0.energy", 312.4, 9_512.0, (100.0, 200.0, 312.4), simulated=True)
    proxy = Proxy(130, 12, 3, 110, 2, 0, 12_345, 0, 0)
    engine = Engine(running=9, waiting=3, kv_usage=0.012, lag_ns=40_000_000)
    return LiveState(
        "joulegraph demo", load, proxy, engine, None, (device,), {"agentic": 900.0, "chat": None}, "draining"
    )


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_full_view_shows_every_figure_with_its_unit(width: int) -> None:
    text = text_of(full_state(), width)
    for words in (
        "joulegraph demo",
        "41 of 115",
        "19 in flight",
        "1 failed",
        "0:31",
        "110 done",
        "431 now",
        "2 failed, 3 rejected",
        "requests",
        "tokens/s",
        "3 queued",
        "2 errors",
        "engine",
        "KV 1.2%",
        "40.0 ms behind its model",
    ):
        assert words in text
    for words in (
        "TTFT",
        "40.0 ms",
        "180 ms",
        "lateness",
        "gpu0",
        "312 W",
        "9,512 J",
        "agentic",
        "900 J",
        "100%",
        "draining",
        "simulated",
    ):
        assert words in text
    assert max(len(line) for line in text.splitlines()) <= width and len(text.splitlines()) <= 24


def test_the_plain_line_says_the_same_on_one_line() -> None:
    line = plain(full_state())
    assert "\n" not in line
    for words in (
        "0:31",
        "41/115",
        "19 in flight",
        "TTFT p50 40.0 ms p95 180 ms",
        "431 tokens/s",
        "late p99 250 ms",
        "gpu0 312 W",
        "agentic 900 J",
    ):
        assert words in line


def test_nothing_attached_is_said_and_not_shown_as_zero() -> None:
    assert plain(LiveState("x")) == "nothing to show yet"
    assert "0" not in text_of(LiveState("x"))
    alone = LiveState("proxy", proxy=Proxy(10, 2, 0, 8, 1, 0, 500, 0, 3))
    assert "live traffic" in text_of(alone) and "1 error, 3 records dropped" in text_of(alone)
    assert "8 done" in plain(alone)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (999, "999 ns"),
        (1_500, "1.50 µs"),
        (43_200_000, "43.2 ms"),
        (1_234_000_000, "1.23 s"),
        (200 * S, "200 s"),
    ],
)
def test_durations(ns: int | None, text: str) -> None:
    assert duration(ns) == text


def test_energies_watts_and_bars() -> None:
    assert [energy(v) for v in (None, 0.0, 5.25, 1234.0, 54_321.0, 2.5e6)] == [
        "–",
        "0 J",
        "5.25 J",
        "1,234 J",
        "54.3 kJ",
        "2.50 MJ",
    ]
    assert [watts(v) for v in (None, 3.14, 312.4)] == ["–", "3.1 W", "312 W"]
    assert spark((0.0, 50.0, 100.0)) == "▁▄█" and spark(()) == "" and spark((0.0, 0.0)) == ""
    assert len(spark(tuple(float(i) for i in range(200)), 12)) == 12


def test_a_log_gets_a_line_every_few_seconds_and_a_last_one() -> None:
    page = StatusPage(LOADGEN)
    out = io.StringIO()
    with LiveView(Watch({"loadgen": [StatusReader(page)]}), file=out) as view:
        shown = [view.update(second * S) for second in range(12)]
        view.note = "draining"
        assert view.update(12 * S, last=True)
    assert [i for i, s in enumerate(shown) if s] == [0, 5, 10]
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and "draining" in lines[-1] and "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_panel_and_quiet_gets_nothing() -> None:
    pages = {"loadgen": [StatusReader(StatusPage(LOADGEN))]}
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        width=100,
        color_system=None,
        legacy_windows=False,
        _environ={"TERM": "xterm"},
    )
    with LiveView(Watch(pages), console=console) as view:
        assert view.update(S, {"agentic": 3.0}) and not view.update(S + 1)
    assert "agentic" in console.file.getvalue()  # type: ignore[attr-defined]
    silent = io.StringIO()
    with LiveView(Watch(pages), file=silent, quiet=True) as view:
        assert not view.update(S, last=True)
    assert silent.getvalue() == ""


# --- joulegraph top ----------------------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    top.configure(parser)
    return parser.parse_args(words)


def test_top_attaches_to_the_page_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"state": "running"}')
    page = StatusPage(LOADGEN, tmp_path / "status.loadgen")
    page.set("workflows_total", 9)
    page.set("workflows_started", 4)
    classes = StatusPage(["agentic.uj"], tmp_path / "status.classes")
    classes.set("agentic.uj", 2_500_000)
    assert top.run(arguments("--json", str(tmp_path))) == 0
    seen = orjson.loads(capsys.readouterr().out)
    assert seen["load"]["workflows_started"] == 4 and seen["joules"] == {"agentic": 2.5} and seen["proxy"] is None
    (tmp_path / "live.json").write_text('{"classes": {"agentic": 7500000}}')
    page.set("finished", 1)
    assert top.run(arguments(str(tmp_path))) == 0
    said = capsys.readouterr().out
    assert "0/9 (4 in flight)" in said
    assert "agentic 7.50 J" in said, "what continuous attribution wrote"


def test_top_knows_when_a_run_is_over(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"state": "running"}')
    page = StatusPage(LOADGEN, tmp_path / "status.loadgen")
    watch = Watch.of_run(tmp_path)
    assert not top.over(tmp_path, watch)
    (tmp_path / "run.json").write_text('{"state": "interrupted"}')
    assert top.over(tmp_path, watch)
    (tmp_path / "run.json").write_text('{"state": "running"}')
    page.set("finished", 1)
    assert top.over(tmp_path, watch)


def test_top_tells_a_dead_run_from_a_quiet_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"state": "running"}')
    code = f"from traces.status import StatusPage; from pathlib import Path; import os, signal\n" \
        f"p = StatusPage(['t_start_ns', 'finished', 'workflows_done'], Path({str(tmp_path / 'status.loadgen')!r}))\n" \
        "print(flush=True); signal.pause()"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        watch = Watch.of_run(tmp_path)
        assert watch.alive()
        assert not top.over(tmp_path, watch)
        writer.kill()
    assert not watch.alive()
    assert top.over(tmp_path, watch)
    assert top.run(arguments(str(tmp_path))) == 0
    assert "joulegraph finish" in capsys.readouterr().out
    (tmp_path / "run.json").write_text('{"state": "complete"}')
    assert top.run(arguments("--once", str(tmp_path))) == 0
    assert "(this run is over: complete)" in capsys.readouterr().out


def test_parts_that_start_later_are_seen(tmp_path: Path) -> None:
    sampler = StatusPage(["ticks", "missed", "cpu_ns"], tmp_path / "status.sampler")
    (tmp_path / "status.loadgen").write_bytes(b"")
    watch = Watch.of_run(tmp_path)
    state = watch.read(0)
    assert state.load is None
    assert "no sensor here" in text_of(state, 80)
    (tmp_path / "status.loadgen").unlink()
    load = StatusPage(LOADGEN, tmp_path / "status.loadgen")
    load.set("workflows_started", 3)
    state = watch.read(1)
    assert state.load and state.load.workflows_started == 3
    assert sampler.buffer and len(watch.pages["loadgen"]) == 1


def test_top_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no status page"):
        top.run(arguments(str(tmp_path)))
    with pytest.raises(UserError, match="holds no run"):
        top.newest(tmp_path / "runs")
    old, new = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    for age, run in ((2, old), (1, new)):
        run.mkdir(parents=True)
        (run / "run.json").write_text("{}")
        os.utime(run / "run.json", (1e9 - age, 1e9 - age))
    assert top.newest(tmp_path / "runs") == new
