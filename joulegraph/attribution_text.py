"""What an attribution says to people: joules per class first, then the books, and what the figures rest on last.

Plain lines and tables out of the totals that `--json` prints. May not know: how figures came about, files.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING, Any

from joulegraph.show import counted, ledger_table

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = {
    "L0": "nothing was measured",
    "L1": "from a proxy's or the generator's stamps and usage",
    "L2": "with the engine's per-request metrics",
    "L3": "with the engine's iteration stream",
}
UNITS = {
    "idle_s": "W",
    "tail_s": "W",
    "busy_s": "W",
    "steps": "J per engine step",
    "prefill": "J per prompt token computed",
    "prefill_context": "J per prompt token x context",
    "decode": "J per token computed in decode (drafts too)",
    "context": "J per token of context read",
}
WIDTH = 80


def text(result: Any, out: dict[str, Any]) -> str:
    """The whole output. out: the totals of the result and what the command added to them."""
    simulated = any(d.curve.simulated for d in result.devices)
    parts = [*summary(out, simulated=simulated), "", *coefficients(result)]
    return "\n".join(parts) + "\n"


def summary(out: dict[str, Any], *, simulated: bool = False) -> Iterator[str]:
    """Per class and agent, the books, the node, what was asked for, the notes."""
    yield (
        f"level {out['level']} ({LEVELS[out['level']]}), policy {out['policy']}"
        + (", prefixes amortised over their hits" if out.get("prefixes") == "amortised" else "")
        + ("; sensors SIMULATED by the embedded engine" if simulated else "")
    )
    classes = {k: row for k, row in out.get("workflow_classes", {}).items() if row.get("j_per_workflow") is not None}
    if classes:
        yield from per_class(out, classes)
    for books, title in ((out["components"], "joules, measured"), (out["estimates"], "joules, ESTIMATED")):
        if books:
            yield ""
            yield from drawn(ledger_table(books, title))
            yield f"books off by {sum(abs(b['closure_uj']) for b in books.values())} uJ"
    yield from aside(out)
    yield from asked(out)
    yield from (f"note: {n}" for n in out["notes"])


def per_class(out: dict[str, Any], classes: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The table of classes, how it is to be read, and the joules of each agent."""
    estimated = "; every joule is ESTIMATED" if out.get("estimated") else ""
    added = [name for name in (out["estimates"] if out.get("estimated") else out["components"]) if name != "hbm"]
    yield f"joules per workflow of {' + '.join(added)}{estimated}"
    yield ""
    yield from drawn(class_table(classes))
    yield "own: its tokens and contexts; active: and its share of what was on for work, +- 90 % interval (median"
    yield "workflow); full: and of idle. J/token: active per output token. TTFT: first token of a workflow's first"
    yield "request, ms after it was due (after it arrived, where nothing says when it was due)"
    yield ""
    yield from drawn(work_table(classes))
    yield "per successful workflow: joules of failed ones included; critical path: share of the joules on it; EDP: mean"
    yield "of active joules x makespan"
    told = out.get("intervals")
    if told and told["median_half_width"] is not None:
        yield (
            f"intervals: a request's figure +- {told['median_half_width']:.1%} (median), {told['basis']};"
            f" {counted(told['unresolved_requests'], 'request')} not resolved"
        )
    agents = {k: v for k, v in out.get("agent_uj", {}).items() if k != "none"}
    if agents:
        most = sorted(agents.items(), key=lambda item: -item[1])
        rest = f", {len(most) - 8} more" if len(most) > 8 else ""
        yield "per agent: " + ", ".join(f"{name} {uj / 1e6:,.1f} J" for name, uj in most[:8]) + rest


def class_table(classes: dict[str, dict[str, Any]]) -> Table:
    """A row a class; fits 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("class", overflow="fold")
    for name in ("flows", "requests", "own", "active", "+-", "full", "J/token", "TTFT p50", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in classes.items():
        n, token, ttft, width = row["workflows"], row["j_per_output_token"], row["ttft_ms"], row["half_width"]
        table.add_row(
            Text(name), f"{n:,}", f"{row['requests']:,}",
            *(f"{v / 1e6 / n:,.2f}" for v in (row["own_uj"], row["active_uj"])),
            "-" if width is None else f"{width:.0%}", f"{row['full_uj'] / 1e6 / n:,.2f}",
            "-" if token is None else f"{token:.3g}",
            *("-" if ttft is None else f"{ttft[q]:,.1f}" for q in ("p50", "p95")),
        )  # fmt: skip
    return table


def work_table(classes: dict[str, dict[str, Any]]) -> Table:
    """What a class's workflows came to: a row a class; fits 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    carbon = any(row.get("gco2e") is not None for row in classes.values())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("class", overflow="fold")
    for name in ("J per successful", "critical path", "EDP J s", *(["gCO2e"] if carbon else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in classes.items():
        good, active = row["j_per_successful_workflow"], row["active_uj"]
        cells = [
            "-" if good is None else f"{good:,.2f}",
            f"{row['critical_path_uj'] / active:.0%}" if active else "-",
            f"{row['edp_js']:,.4g}",
            *([f"{row['gco2e']:.3g}"] if carbon else []),
        ]
        table.add_row(Text(name), *cells)
    return table


def drawn(table: Table) -> list[str]:
    """A table as plain lines."""
    from rich.console import Console

    page = StringIO()
    Console(file=page, width=WIDTH, color_system=None).print(table)
    return [line.rstrip() for line in page.getvalue().splitlines()]


def aside(out: dict[str, Any]) -> Iterator[str]:
    """What stands beside the books: the node's meter, sensors set against each other, preemptions, truth."""
    if node := out.get("node"):
        parts = " + ".join(f"{name} {uj / 1e6:,.1f}" for name, uj in node["parts_uj"].items()) or "nothing measured"
        yield (
            f"node ({node['source']}, {node['seconds']:.0f} s): {node['node_uj'] / 1e6:,.1f} J = {parts}"
            f" + unaccounted {node['unaccounted_uj'] / 1e6:,.1f}; on no request"
        )
    for row in out.get("agreement", []):
        yield (
            f"{row['source']}: {row['percent']:+.1f} % against {row['against']} over {row['seconds']} s, single seconds"
            f" {row['window_percent']:.1f} % apart (median)"
        )
    if out.get("preemptions") is not None or out.get("preempted"):
        yield preempted(out)
    if drafts := out.get("speculation"):
        share = "" if drafts["acceptance"] is None else f", {drafts['acceptance']:.0%} accepted"
        whom = counted(drafts["requests"], "request")
        yield f"speculation: {drafts['draft_tokens']:,} draft tokens verified for {whom}{share}, charged to theirs"
    if out.get("truth_error"):
        yield f"truth: median error {out['truth_error']['median']:.2%}, p95 {out['truth_error']['p95']:.2%}"


def preempted(out: dict[str, Any]) -> str:
    """How often the engine preempted, whom that hit, and what was computed again at their cost."""
    times = "the engine does not say how many" if out.get("preemptions") is None else f"{out['preemptions']:,}"
    hit = out.get("preempted")
    if not hit:
        return f"preemptions: {times}"
    whom = counted(hit["requests"], "request")
    return f"preemptions: {times}; {whom} known to be hit, {hit['recomputed_tokens']:,} tokens computed again for them"


def asked(out: dict[str, Any]) -> Iterator[str]:
    """Predictions, shares and carbon, where they were asked for."""
    for row in out.get("phases", []):
        yield " ".join([f"{row['phase']} {row['run'] if row['run'] is not None else row['kind']}:", *beside(row)])
    for band in out.get("shares", []):
        for name, row in band["types"].items():
            yield f"share of {name} at rate {band['rate']}: {tested(row)}"
    if c := out.get("carbon"):
        yield f"{c['gco2e']:.3f} gCO2e at {c['grid_gco2e_per_kwh']} g/kWh ({c['grid_source']}), PUE {c['pue']}"


def beside(row: dict[str, Any]) -> list[str]:
    """Each prediction of a phase and how far it lies from the measurement."""
    measured = row["measured_uj"]
    said = [f"measured {measured / 1e6:.0f} J" if measured else "not measured"]
    for name in ("predicted", "held_out", "null", "planned"):
        value = row[f"{name}_uj"]
        off = f" ({value / measured - 1:+.1%})" if value is not None and measured else ""
        said.append(f"{name} {'-' if value is None else round(value / 1e6)}{off}")
    return said


def tested(row: dict[str, Any]) -> str:
    """A type's share against the regression."""
    if row["agrees"] is None:
        return f"{row['attributed_j']:.1f} J attributed; not testable (the regression is less certain than 3 %)"
    verdict = "agrees" if row["agrees"] else "DISAGREES"
    return (
        f"{row['attributed_j']:.1f} J attributed, {row['regressed_j']:.1f} +- {row['se_j']:.1f} J regressed: {verdict}"
    )


def _fading(tail_s: float) -> str:
    return f"with {tail_s:g} s" if tail_s > 0 else "too fast for this sensor to show"


def coefficients(result: Any) -> Iterator[str]:
    """What the split of each device rests on: lag, quality of the fit, coefficients with 90 % intervals."""
    from energy.output import fit_json

    for device in result.devices:
        fit, lag = fit_json(device.fit), device.lag
        behind = f"{lag.lag_s * 1e3:.0f} +- {lag.spread_s * 1e3:.0f} ms" if lag.known else "not resolved"
        yield (
            f"{device.curve.source}: lag {behind}; {fit['blocks']} blocks, residual {fit['residual_w']:.1f} W,"
            f" condition {fit['condition']:.0f}; power after work fades {_fading(device.work.tail_s)};"
            f" prior: {fit['prior']}"
        )
        for term, value in fit["joules"].items():
            low, high = fit["interval90"][term]
            yield f"    {term:16} {value:<10.4g} [{low:.3g}, {high:.3g}] {UNITS[term]}"
