"""Record every power sensor of this machine: counters, instantaneous power, the driver's rings, clocks; with a live
view. Runs alone, beside any load, until --duration or Ctrl-C. A machine with nothing to measure says so.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegraph.flags import real

if TYPE_CHECKING:
    from energy.sampling import Ready
    from energy.summary import Summary
    from traces.status import StatusReader

_DEFAULT_SOURCES = "nvml,rapl"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `joulegraph sample`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory to create")
    parser.add_argument("--duration", type=real(), metavar="S", help="stop after S seconds (default: until Ctrl-C)")
    parser.add_argument(
        "--sources",
        default=_DEFAULT_SOURCES,
        help=f"comma list (default {_DEFAULT_SOURCES}); also simulated:PAGE, recorded:JOURNAL (see docs/power.md)",
    )
    parser.add_argument("--period-ms", type=real(), default=20.0, help="of instantaneous power and RAPL (default 20)")
    parser.add_argument("--json", action="store_true", help="one line of results on stdout")


def run(args: argparse.Namespace) -> int:
    """Sample until the end, then sum up."""
    from energy.knobs import restore_left_behind
    from energy.sampling import SamplerConfig, start_sampler
    from energy.summary import summarise
    from joulegraph import host
    from traces.errors import UserError
    from traces.rundir import RunDir
    from traces.status import StatusReader

    if args.period_ms < 1 or (args.duration is not None and args.duration <= 0):
        raise UserError(f"--period-ms {args.period_ms} --duration {args.duration}: give at least 1 ms, and over 0 s")
    for restored in restore_left_behind():
        _say(f"left by a run that was killed: {restored}")
    run_dir = RunDir.create(args.out)
    page = run_dir.file("status.sampler")
    config = SamplerConfig(
        journal=str(run_dir.power_journal()),
        sources=tuple(name.strip() for name in args.sources.split(",") if name.strip()),
        status=str(page),
        poll_ns=int(args.period_ms * 1e6),
    )
    busy_before = _busy_s()
    run_dir.update_info(kind="sample", versions=host.versions(), host=host.describe(), anchors=[host.anchor()])
    try:
        child, ready = start_sampler(config)
    except UserError:
        run_dir.file("run.json").unlink()  # nothing was recorded: the same --out may be given again
        raise
    began = time.monotonic()
    interrupted = False
    try:
        _introduce(ready)
        ended = _watch(ready, StatusReader(page), args.duration, child.process.is_alive)
    except KeyboardInterrupt:
        interrupted, ended = True, "Ctrl-C"
    finally:
        code = child.stop()
    wall_s = time.monotonic() - began
    busy_s = None if busy_before is None else (_busy_s() or 0) - busy_before
    summary = summarise(run_dir.rows("power"))
    result = _result(run_dir.path, ready, summary, wall_s, busy_s)
    stopped_well = code == 0 and (args.duration is None or interrupted or ended == "duration")
    state = "complete" if stopped_well else "interrupted"
    run_dir.update_info(state=state, why=None if stopped_well else f"the sampler ended with {code}", sample=result)
    _conclude(result, summary)
    if args.json:
        import orjson

        sys.stdout.buffer.write(orjson.dumps(result) + b"\n")
    return 0 if stopped_well else 1


def _introduce(ready: Ready) -> None:
    for info in ready.sensors:
        period = f"{info.period_ns / 1e6:g} ms" if info.period_ns else "unknown period"
        _say(
            f"  {info.source:<28} {info.domain:<7} {info.reading:<8} {period}{', estimated' if info.estimated else ''}"
        )
    for missing in ready.missing:
        _say(f"  {missing.sensor:<28} not measured: {missing.sentence()}")
    if not ready.sensors:
        _say(
            "Nothing to measure here: only the sampler's heartbeat is recorded (level L0); --sources tdp:WATTS with the"
            " CPU's design power gives estimates, marked so."
        )


def _watch(ready: Ready, reader: StatusReader, duration_s: float | None, alive: Callable[[], bool]) -> str:
    """Show the sensors until the time is up; what ended it."""
    end = None if duration_s is None else time.monotonic() + duration_s
    with _view(ready, reader) as refresh:
        while end is None or time.monotonic() < end:
            if not alive():
                return "sampler"
            time.sleep(min(0.5, max(0.0, end - time.monotonic())) if end else 0.5)
            refresh()
    return "duration"


@contextmanager
def _view(ready: Ready, reader: StatusReader) -> Iterator[Callable[[], None]]:
    """A live table on a terminal, one line every ten seconds elsewhere."""
    before = dict.fromkeys((info.source for info in ready.sensors), (0, 0))

    def rows() -> list[tuple[str, str, str]]:
        shown = []
        for info in ready.sensors:
            now = reader.get(f"{info.source}.value"), reader.get(f"{info.source}.t_ns")
            domain = f"{info.domain}, estimated" if info.estimated else info.domain
            shown.append((info.source, domain, _watts(info.reading, before[info.source], now)))
            if now[1] - before[info.source][1] >= 1_000_000_000:
                before[info.source] = now
        return shown

    began, cpu_before = time.monotonic(), reader.get("cpu_ns")

    def head() -> str:
        cpu = (reader.get("cpu_ns") - cpu_before) / 1e7 / max(0.001, time.monotonic() - began)
        return f"{reader.get('ticks')} reads, {reader.get('missed')} missed, sampler {cpu:.1f} % of a core"

    if not sys.stderr.isatty():
        calls = itertools.count(1)

        def line() -> None:
            shown = rows()
            if next(calls) % 20 == 0:
                _say(f"{head()}  " + "  ".join(f"{name} {watts} W" for name, _, watts in shown))

        yield line
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table() -> Table:
        grid = Table(title=head())
        for name in ("sensor", "domain", "watts"):
            grid.add_column(name, justify="right" if name == "watts" else "left")
        for row in rows():
            grid.add_row(*row)
        return grid

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda: live.update(table(), refresh=True)


def _watts(reading: str, before: tuple[int, int], now: tuple[int, int]) -> str:
    if not now[1]:
        return "-"
    if reading == "gauge":
        return f"{now[0] / 1000:.1f}"
    step, span = now[0] - before[0], now[1] - before[1]
    return f"{step * 1000 / span:.1f}" if before[1] and span > 0 and step >= 0 else "-"


def _result(path: Path, ready: Ready, summary: Summary, wall_s: float, busy_s: float | None) -> dict[str, Any]:
    """Everything `--json` prints; joules are integer uJ."""
    beat = summary.last_beat
    return {
        "run": str(path),
        "wall_s": round(wall_s, 3),
        "sensors": {
            name: {
                "domain": s.info.domain,
                "estimated": s.info.estimated,
                "samples": s.samples,
                "failed": s.failed,
                "gaps": s.gaps,
                "resets": s.resets,
                "energy_uj": s.energy_uj,
                "mean_w": None if s.mean_mw is None else round(s.mean_mw / 1000, 3),
                "call_us_p50": _quantile_us(s.call_ns, 0.5),
                "call_us_p99": _quantile_us(s.call_ns, 0.99),
            }
            for name, s in summary.sensors.items()
        },
        "missing": {m.sensor: m.sentence() for m in ready.missing},
        "ticks": beat.ticks if beat else 0,
        "missed": beat.missed if beat else 0,
        "late_p99_ms": round(summary.late_p99_ns / 1e6, 3),
        "cpu_percent": None if summary.cpu_share is None else round(100 * summary.cpu_share, 3),
        "own_uj": _own_uj(summary, busy_s),
    }


def _own_uj(summary: Summary, busy_s: float | None) -> int | None:
    """The sampler's share of the packages' energy by CPU time; None without a package counter."""
    packages = [
        s.energy_uj
        for s in summary.sensors.values()
        if s.info.domain == "cpu" and s.energy_uj is not None and not s.info.estimated
    ]
    first, last = summary.first_beat, summary.last_beat
    if not packages or not busy_s or first is None or last is None or last.cpu_ns is None or first.cpu_ns is None:
        return None
    return int(sum(packages) * min(1.0, (last.cpu_ns - first.cpu_ns) / 1e9 / busy_s))


def _conclude(result: dict[str, Any], summary: Summary) -> None:
    for name, sensor in result["sensors"].items():
        joules = "" if sensor["energy_uj"] is None else f"{sensor['energy_uj'] / 1e6:,.1f} J  "
        joules = f"estimated {joules}" if sensor["estimated"] else joules
        mean = "no reading" if sensor["mean_w"] is None else f"mean {sensor['mean_w']:,.1f} W"
        flaws = "".join(f", {sensor[k]} {k}" for k in ("failed", "gaps", "resets") if sensor[k])
        call = "" if sensor["call_us_p50"] is None else f", {sensor['call_us_p50']:g} us a call"
        _say(f"  {name:<28} {joules}{mean}, {sensor['samples']} samples{call}{flaws}")
    for name, why in summary.lost.items():
        if name in result["sensors"]:
            _say(f"  {name:<28} lost: {why}")
    cpu = "unknown" if result["cpu_percent"] is None else f"{result['cpu_percent']:.2f} % of one core"
    own = "joules unknown (no CPU counter)" if result["own_uj"] is None else f"{result['own_uj'] / 1e6:.2f} J"
    _say(
        f"sampler: {cpu}, {own}; {result['ticks']} reads, {result['missed']} missed, "
        f"lateness p99 {result['late_p99_ms']} ms in the worst second"
    )
    _say(f"recorded in {result['run']}")


def _quantile_us(values: list[int], q: float) -> float | None:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1000, 1) if ordered else None


def _busy_s() -> float | None:
    """CPU seconds all processes of the machine have used (user, nice, system)."""
    import os

    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    return sum(int(fields[i]) for i in (1, 2, 3)) / os.sysconf("SC_CLK_TCK")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
