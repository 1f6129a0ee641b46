"""How a finished run is shown: the table per workflow class and the ledger on the terminal, or one JSON line on stdout.

May not know: how figures came about. Everything but the JSON line goes to stderr.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from rich.table import Table

JSON_KEYS = (
    "run", "state", "why", "workflows", "classes", "requests", "errors", "rejected", "measured_uj", "attributed_uj",
    "idle_uj", "tail_uj", "foreign_uj", "unmeasured_uj", "closure_uj", "scale", "truth_error", "wall_s", "level",
    "simulated", "components", "class_uj", "outcomes", "goodput", "left_out", "report",
)  # fmt: skip


def show_summary(summary: dict[str, Any], *, as_json: bool) -> None:
    """Print what a run came to."""
    if as_json:
        row = {key: summary.get(key) for key in JSON_KEYS}
        sys.stdout.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
        sys.stdout.flush()
        return
    from pathlib import Path

    from rich.console import Console

    from joulegraph.report.gather import gather
    from joulegraph.report.summary import class_rows, class_table
    from traces.rundir import RunDir

    console = Console(stderr=True)
    console.print(class_table(class_rows(gather(RunDir(Path(summary["run"]))))))
    console.print()
    if summary.get("components"):
        console.print(ledger_table(summary["components"]))
    if summary.get("estimates"):
        console.print(ledger_table(summary["estimates"], "joules, estimated"))
    for line in lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    if summary.get("report"):
        console.print(f"report: {summary['report']}", highlight=False, markup=False, soft_wrap=True)


def joules(uj: int | None) -> str:
    """1234567 -> 1.2."""
    return "–" if uj is None else f"{uj / 1e6:,.1f}"


def counted(n: int, what: str) -> str:
    """1 request, 2 requests."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def ledger_table(components: dict[str, dict[str, Any]], title: str = "joules") -> Table:
    """measured = attributed + idle + tail + foreign + unmeasured, a row a component; fits 80 columns."""
    from rich import box
    from rich.table import Table

    from energy.ledger import BOOK

    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(title, no_wrap=True)
    for name in BOOK:
        table.add_column(("= " if name == "attributed_uj" else "") + name.removesuffix("_uj"), justify="right")
    for name, book in components.items():
        inside = name == "hbm" and "gpu" in components
        table.add_row(f"  of gpu: {name}" if inside else name, *(joules(book.get(entry)) for entry in BOOK))
    return table


def lines(summary: dict[str, Any]) -> list[str]:
    """The level, the truth error where truth is known, failures by kind, validity."""
    from joulegraph.finish import NO_FAILURE

    out = [f"level {summary['level']}" + (", sensors simulated by the embedded engine" if summary["simulated"] else "")]
    if not summary.get("components"):
        out += [f"note: {note}" for note in summary.get("notes") or ()]
    truth = summary.get("truth_error")
    if truth:
        out.append(
            f"error against the engine's true joules per request: median {truth['median']:.1%}, p95 {truth['p95']:.1%}"
        )
    out += summary.get("figures") or ()
    if summary.get("rejected"):
        out.append(
            f"{counted(summary['rejected'], 'request')} refused by the engine (4xx: too long for its context, unknown "
            "model, too many at once)"
        )
    if summary.get("errors"):
        kinds = {k: n for k, n in (summary.get("outcomes") or {}).items() if k not in NO_FAILURE}
        words = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: -item[1]))
        out.append(f"{counted(summary['errors'], 'request')} failed" + (f": {words}" if words else ""))
    left_out = summary.get("left_out")
    if left_out:
        count, first = left_out["count"], left_out["first"][0]
        out.append(f"faults of the trace: {count:,}; what they are about was left out; the first: {first}")
    if summary.get("state") != "complete":
        out.append(f"this run is {summary['state']}: {summary['why']}")
    return out
