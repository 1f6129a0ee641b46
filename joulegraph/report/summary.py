"""Figures of a run: rows per class, percentiles, totals; and the per-class table for the terminal.

Percentiles are exact, from every request. Latency is given from due (what a user waited) and from sent (what the engine
did). May not know: files, HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from joulegraph.live.render import digits3, duration
from joulegraph.report.facts import Facts, Request, Workflow

_ODD = {"failed": "fail-\ned", "rejected": "re-\njected"}
QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One workflow class. Times in ns from due (from arrival for live traffic); joules are `active` unless said."""

    name: str
    workflows: int
    failed: int
    """workflows of which some request failed"""
    rejected: int
    """workflows that the engine refused in part or whole, by its rules"""
    requests: int
    output_tokens: int
    makespan_p50_ns: float | None
    makespan_p95_ns: float | None
    ttft_p50_ns: float | None
    ttft_p95_ns: float | None
    j_per_workflow: float | None
    """mean of the complete workflows"""
    j_per_workflow_low: float | None
    j_per_workflow_high: float | None
    j_per_output_token: float | None
    """all of the class's joules, failed requests included, per token of a good reply"""
    idle_share: float | None
    """share of tail and idle in the class's full joules, 0..1"""
    active_j: float | None
    full_j: float | None
    own_j: float | None


def quantiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """n, mean, p50, p90, p95, p99, max of the known values; None when there is none."""
    known = np.array([v for v in values if v is not None], np.float64)
    if not len(known):
        return None
    found = np.quantile(known, QUANTILES)
    named = {f"p{q * 100:g}": float(v) for q, v in zip(QUANTILES, found, strict=True)}
    return {"n": len(known), "mean": float(known.mean()), **named, "max": float(known.max())}


def _at(values: Iterable[float | None], q: float) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.quantile(known, q)) if known else None


def _ratio(joules: float | None, of: float) -> float | None:
    return joules / of if joules is not None and of > 0 else None


def joules_of(workflows: Sequence[Workflow], kind: str = "active") -> float | None:
    """Joules of many workflows; None when none was attributed."""
    known = [uj for w in workflows if (uj := w.uj(kind)) is not None]
    return sum(known) / 1e6 if known else None


def ttft_ns(r: Request) -> int | None:
    """First token since due, since arrival for live traffic."""
    return r.since("due", "first") if r.due_ns is not None else r.since("sent", "first")


def class_row(name: str, workflows: Sequence[Workflow]) -> ClassRow:
    """The figures of one class."""
    requests = [r for w in workflows for r in w.requests if r.kind == "llm"]
    tokens = sum(w.output_tokens for w in workflows)
    active, full = joules_of(workflows), joules_of(workflows, "full")
    whole = [w for w in workflows if w.complete]
    makespans, firsts = [w.makespan_ns for w in workflows], [ttft_ns(r) for r in requests]
    return ClassRow(
        name=name,
        workflows=len(workflows),
        failed=sum(w.fate == "failed" for w in workflows),
        rejected=sum(w.fate == "rejected" for w in workflows),
        requests=len(requests),
        output_tokens=tokens,
        makespan_p50_ns=_at(makespans, 0.5),
        makespan_p95_ns=_at(makespans, 0.95),
        ttft_p50_ns=_at(firsts, 0.5),
        ttft_p95_ns=_at(firsts, 0.95),
        j_per_workflow=_ratio(joules_of(whole), len(whole)),
        j_per_workflow_low=_ratio(joules_of(whole, "low"), len(whole)),
        j_per_workflow_high=_ratio(joules_of(whole, "high"), len(whole)),
        j_per_output_token=_ratio(active, tokens),
        idle_share=1 - active / full if active is not None and full else None,
        active_j=active,
        full_j=full,
        own_j=joules_of(workflows, "own"),
    )


def class_rows(of: Facts | Path) -> list[ClassRow]:
    """One row per class by name, then one over all when there are several. A path is that of a run directory."""
    if isinstance(of, Path):
        from joulegraph.report.gather import gather_workflows
        from traces.rundir import RunDir

        workflows: Sequence[Workflow] = gather_workflows(RunDir.open(of))
    else:
        workflows = of.workflows
    members: dict[str, list[Workflow]] = {}
    for workflow in workflows:
        members.setdefault(workflow.class_name, []).append(workflow)
    rows = [class_row(name, members[name]) for name in sorted(members)]
    return rows if len(rows) < 2 else [*rows, class_row("all", workflows)]


def class_table(rows: Sequence[ClassRow], title: str | None = None) -> Table:
    """The table that demo and replay end with; fits 80 columns."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    table.add_column("class", overflow="fold")  # where room is short, names break and figures do not
    for head in headings(rows):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, rows), style="bold" if row.name == "all" and len(rows) > 1 else "")
    return table


def headings(rows: Sequence[ClassRow]) -> list[str]:
    """Column heads after the class; failures and rejections only where there are some."""
    odd = [head for name, head in _ODD.items() if any(getattr(row, name) for row in rows)]
    tail = ["make-\nspan\np50", "p95", "TTFT\np50", "p95", "J per\nwork-\nflow", "J per\ntoken", "idle\nshare"]
    return ["work-\nflows", *odd, "re-\nquests", *tail]


def cells(row: ClassRow, rows: Sequence[ClassRow]) -> list[str]:
    """One table row as text, in the order of class and headings."""
    odd = [f"{getattr(row, name):,}" for name, head in _ODD.items() if head in headings(rows)]
    return [
        row.name,
        f"{row.workflows:,}",
        *odd,
        f"{row.requests:,}",
        duration(_int(row.makespan_p50_ns)),
        duration(_int(row.makespan_p95_ns)),
        duration(_int(row.ttft_p50_ns)),
        duration(_int(row.ttft_p95_ns)),
        figure(row.j_per_workflow),
        figure(row.j_per_output_token),
        "–" if row.idle_share is None else f"{row.idle_share:.0%}",
    ]


def _int(value: float | None) -> int | None:
    return None if value is None else round(value)


def figure(value: float | None) -> str:
    """A number with three significant digits and thousands separators; a dash when unknown."""
    return "–" if value is None else digits3(value)


def latencies(facts: Facts) -> dict[str, dict[str, dict[str, float] | None]]:
    """Quantiles in ns of every latency, from due and from sent."""
    llm = [r for r in facts.requests if r.kind == "llm"]

    def over(pick: Callable[[Request], float | None]) -> dict[str, float] | None:
        return quantiles(pick(r) for r in llm)

    return {
        "ttft": {"due": over(lambda r: r.since("due", "first")), "sent": over(lambda r: r.since("sent", "first"))},
        "e2e": {"due": over(lambda r: r.since("due", "end")), "sent": over(lambda r: r.since("sent", "end"))},
        "tpot": {"sent": over(lambda r: r.tpot_ns)},
        "itl": {"sent": facts.itl_ns},
        "makespan": {"due": quantiles(w.makespan_ns for w in facts.workflows)},
        "lateness": {"due": quantiles(lateness_ns(r) for r in llm)},
    }


def lateness_ns(r: Request) -> int | None:
    """Sent - due, whatever became of the request."""
    return r.sent_ns - r.due_ns if r.sent_ns is not None and r.due_ns is not None else None


def totals(facts: Facts) -> dict[str, Any]:
    """Counts, tokens, joules and both throughputs of the run."""
    llm = [r for r in facts.requests if r.kind == "llm"]
    good = [r for r in llm if r.outcome == "ok"]
    outcomes: dict[str, int] = {}
    for r in llm:
        outcomes[r.outcome] = outcomes.get(r.outcome, 0) + 1
    tokens = sum(r.output_tokens or 0 for r in good)
    begins = [r.begin_ns for r in llm if r.begin_ns is not None]
    wall = max(r.end_ns for r in llm) - min(begins) if begins else None
    firsts, lasts = [r.first_ns for r in good if r.first_ns], [r.last_ns for r in good if r.last_ns]
    generation = max(lasts) - min(firsts) if firsts and lasts else None
    active = joules_of(facts.workflows)
    return {
        "workflows": len(facts.workflows),
        "workflows_failed": sum(w.fate == "failed" for w in facts.workflows),
        "workflows_rejected": sum(w.fate == "rejected" for w in facts.workflows),
        "requests": len(llm),
        "outcomes": outcomes,
        "prompt_tokens": sum(r.prompt_tokens or 0 for r in good),
        "cached_tokens": sum(r.cached_tokens or 0 for r in good),
        "output_tokens": tokens,
        "wall_s": wall / 1e9 if wall is not None else None,
        "generation_s": generation / 1e9 if generation is not None else None,
        "output_tokens_per_s_generation": tokens * 1e9 / generation if generation else None,
        "output_tokens_per_s_wall": tokens * 1e9 / wall if wall else None,
        "active_j": active,
        "full_j": joules_of(facts.workflows, "full"),
        "own_j": joules_of(facts.workflows, "own"),
        "j_per_output_token": _ratio(active, tokens),
        "classes": [asdict(row) for row in class_rows(facts)],
    }
