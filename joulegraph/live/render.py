"""How a LiveState looks: pure functions from values to rich renderables, or to one plain line.

Every figure carries its unit; what is not known is a dash. May not know: status pages, clocks, terminals.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from joulegraph.live.state import Device, Engine, LiveState, Load, Proxy, Quantiles

_SPARKS = "▁▂▃▄▅▆▇█"
_DASH = "–"
_SPARK_WIDTH = 30
ENGINE_LAG_NS = 20_000_000
"""an embedded engine further behind its model's time than this is worth a line"""
_WIDE = 100
"""columns from which every figure has room; below it the words get shorter"""


def digits3(value: float) -> str:
    """Three significant digits where the number is below 100, so that columns line up: 0.270, 9.50, 27.0, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 99.95 or value == 0 else f"{value:#.3g}"


def duration(ns: int | None) -> str:
    """ns as text with a unit, three digits."""
    if ns is None:
        return _DASH
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{digits3(ns / size)} {unit}"
    return f"{ns} ns" if ns else "0 s"


def clock(ns: int | None) -> str:
    """Elapsed time as m:ss."""
    return _DASH if ns is None else f"{ns // 60_000_000_000}:{ns // 1_000_000_000 % 60:02}"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return _DASH if value is None else f"{value:,.0f}"


def energy(joules: float | None) -> str:
    """Joules with a unit, three digits or more."""
    if joules is None:
        return _DASH
    if joules >= 1e6:
        return f"{joules / 1e6:.2f} MJ"
    if joules >= 1e4:
        return f"{joules / 1e3:.1f} kJ"
    return f"{digits3(joules)} J"


def watts(value: float | None) -> str:
    """Watts with a unit."""
    return _DASH if value is None else f"{value:.0f} W" if value >= 10 else f"{value:.1f} W"


def spark(values: tuple[float, ...], width: int = _SPARK_WIDTH) -> str:
    """The last `width` values as bars from 0 to the highest."""
    shown = values[-width:] if width else ()
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    return "".join(_SPARKS[min(7, max(0, int(v / top * 7.999)))] for v in shown)


def render(state: LiveState, width: int = 110) -> RenderableType:
    """The whole view for a terminal `width` columns wide, at most about twenty lines."""
    parts: list[RenderableType] = [_head(state)]
    body = Table.grid(expand=True, padding=(0, 2))
    body.add_column(ratio=1)
    body.add_column()
    latency = _latency(state)
    body.add_row(_counts(state, width), *([latency] if latency else []))
    parts.append(body)
    power = _power(state, width)
    if power is not None:
        parts.append(power)
    if state.note:
        parts.append(Text(state.note, style="yellow"))
    return Panel(
        Group(*parts), title=state.title, title_align="left", border_style="cyan", padding=(0, 1), width=min(width, 116)
    )


def _head(state: LiveState) -> RenderableType:
    load = state.load
    if load is None:
        return Text("no load generator attached" if state.proxy is None else "live traffic", style="dim")
    done = load.workflows_done + load.workflows_failed
    words = Text.assemble(
        ("workflows ", "dim"),
        (f"{done:,}", "bold"),
        f" of {load.workflows_total:,}  " if load.workflows_total else " done  ",
        (f"{load.workflows_in_flight:,}", "bold cyan"),
        (" in flight", "dim"),
        *((f"  {load.workflows_failed:,} failed", "red") for _ in [0] if load.workflows_failed),
        ("  finished", "green") if load.finished else "",
    )
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column()
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    bar = ProgressBar(total=1.0, completed=state.progress or 0.0, width=None)
    grid.add_row(words, bar, Text(clock(load.elapsed_ns), style="bold"))
    return grid


def _counts(state: LiveState, width: int) -> Table:
    """Left column: what went through."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True)
    if state.load:
        _load_rows(table, state.load, width)
    if state.proxy:
        _proxy_rows(table, state.proxy, width, alone=state.load is None)
    if state.engine:
        _engine_rows(table, state.engine, width)
    if state.sampling and not state.sampling.sensors:
        table.add_row("power", Text("no sensor here", style="yellow"))
    elif state.sampling:
        missed = state.sampling.missed
        table.add_row(
            "sampler", Text(f"{state.sampling.ticks:,} ticks, {missed:,} missed", style="red" if missed else "")
        )
    return table


def _engine_rows(table: Table, engine: Engine, width: int) -> None:
    running, waiting = ("running", "waiting") if width >= _WIDE else ("run", "wait")
    table.add_row("engine", f"{engine.running:,} {running}, {engine.waiting:,} {waiting}, KV {engine.kv_usage:.1%}")
    if engine.lag_ns > ENGINE_LAG_NS:
        table.add_row("", Text(f"{duration(engine.lag_ns)} behind its model", style="red"))


def _load_rows(table: Table, load: Load, width: int) -> None:
    table.add_row("requests", f"{load.requests_done:,} done, {load.requests_in_flight:,} in flight")
    if load.requests_failed or load.requests_rejected:
        table.add_row("", Text(f"{load.requests_failed:,} failed, {load.requests_rejected:,} rejected", style="red"))
    mean = load.tokens_out * 1e9 / load.elapsed_ns if load.elapsed_ns else None
    wide = f", {load.tokens_out:,} in all" if width >= _WIDE else ""
    table.add_row("tokens/s", f"{count(load.tokens_per_s)} now, {count(mean)} mean{wide}")


def _proxy_rows(table: Table, proxy: Proxy, width: int, *, alone: bool) -> None:
    queued = f"{proxy.queued:,} queued" if proxy.queued else ""
    beside = f", {queued}" if queued and width >= _WIDE else ""
    table.add_row("proxy", f"{proxy.done:,} done, {proxy.in_flight:,} in flight{beside}")
    if queued and not beside:
        table.add_row("", queued)
    trouble = [
        f"{n:,} {one if n == 1 else more}"
        for n, one, more in (
            (proxy.errors, "error", "errors"),
            (proxy.client_left, "client left", "clients left"),
            (proxy.journal_dropped, "record dropped", "records dropped"),
        )
        if n
    ]
    if trouble:
        table.add_row("", Text(", ".join(trouble), style="red"))
    if alone:
        table.add_row("tokens/s", f"{count(proxy.tokens_per_s)} now, {proxy.tokens_out:,} in all")


def _latency(state: LiveState) -> Table | None:
    """Right column: quantiles, from the load generator where it runs, else from the proxy."""
    rows = _quantile_rows(state)
    if not rows:
        return None
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for name in ("", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if not name else "right", style="dim" if not name else "", no_wrap=True)
    for name, q in rows:
        table.add_row(name, duration(q.p50), duration(q.p95), duration(q.p99))
    return table


def _quantile_rows(state: LiveState) -> list[tuple[str, Quantiles]]:
    if state.load:
        load = state.load
        return [("TTFT", load.ttft), ("E2E", load.e2e), ("makespan", load.makespan), ("lateness", load.lateness)]
    if state.proxy:
        return [("TTFT", state.proxy.ttft), ("E2E", state.proxy.e2e), ("ITL", state.proxy.itl)]
    return []


def _power(state: LiveState, width: int) -> RenderableType | None:
    """Watts per device beside joules per class."""
    if not state.devices and not state.joules:
        return None
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1)
    grid.add_column()
    grid.add_row(_device_table(state.devices, max(0, min(_SPARK_WIDTH, width - 70))), _class_table(state))
    return grid


def _device_table(devices: tuple[Device, ...], bars: int) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("device", no_wrap=True)
    table.add_column("watts", justify="right", no_wrap=True)
    table.add_column("so far", justify="right", no_wrap=True)
    table.add_column("simulated" if any(d.simulated for d in devices) else "", no_wrap=True, style="cyan")
    for device in devices[:8]:
        name = f"  of which {device.name}" if device.inside else device.name
        table.add_row(name, watts(device.watts), energy(device.joules), spark(device.history, bars) if bars else "")
    if len(devices) > 8:
        table.add_row(f"and {len(devices) - 8} more", watts(_sum(devices[8:])), "", "")
    return table


def _sum(devices: tuple[Device, ...]) -> float | None:
    known = [d.watts for d in devices if d.watts is not None and not d.inside]
    return sum(known) if known else None


def _class_table(state: LiveState) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("class", no_wrap=True)
    table.add_column("so far", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    total = sum(v for v in state.joules.values() if v is not None)
    for name, joules in sorted(state.joules.items(), key=lambda item: -(item[1] or 0.0))[:8]:
        share = f"{joules / total:.0%}" if joules is not None and total > 0 else _DASH
        table.add_row(name, energy(joules), share)
    if not state.joules:
        table.add_row(Text("known after the run", style="dim"), "", "")
    return table


def plain(state: LiveState) -> str:
    """One line with the same figures, for logs."""
    words: list[str] = []
    if (load := state.load) is not None:
        words += [
            clock(load.elapsed_ns),
            f"workflows {load.workflows_done + load.workflows_failed:,}"
            + (f"/{load.workflows_total:,}" if load.workflows_total else ""),
            f"({load.workflows_in_flight:,} in flight),",
            f"requests {load.requests_done:,} done {load.requests_in_flight:,} in flight",
            f"{load.requests_failed:,} failed {load.requests_rejected:,} rejected,",
            f"TTFT p50 {duration(load.ttft.p50)} p95 {duration(load.ttft.p95)},",
            f"E2E p50 {duration(load.e2e.p50)} p95 {duration(load.e2e.p95)},",
            f"{count(load.tokens_per_s)} tokens/s,",
            f"late p99 {duration(load.lateness.p99)},",
        ]
    elif (proxy := state.proxy) is not None:
        words += [
            f"requests {proxy.done:,} done {proxy.in_flight:,} in flight {proxy.errors:,} errors,",
            f"TTFT p50 {duration(proxy.ttft.p50)} p95 {duration(proxy.ttft.p95)},",
            f"{count(proxy.tokens_per_s)} tokens/s,",
        ]
    words += [f"{d.name} {watts(d.watts)}" for d in state.devices if not d.inside]
    words += [f"{name} {energy(joules)}" for name, joules in sorted(state.joules.items())]
    if words:
        words[-1] = words[-1].removesuffix(",")
    if state.note:
        words.append(f"({state.note})")
    return " ".join(words) if words else "nothing to show yet"
