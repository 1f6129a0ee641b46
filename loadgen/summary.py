"""One replay as figures for people and files: percentiles, goodput, throughput, usage against plan, intervals.

Why: one place turns dispatch records into the numbers that are reported, the same for a shard, a run or a class.
Exact (every record), offline. Times in the output are ms (floats), rates per second; missing is None. May not know:
files, sockets, energy.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

from loadgen.metrics import (
    RequestFigures,
    WorkflowFigures,
    by_workflow,
    itl_ns,
    quantiles,
    request_figures,
    workflow_figures,
)
from traces.errors import UserError
from traces.records import DispatchRecord

_MS = 1e6


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds of good service, ms; None: no such bound. Latencies count from due: what a user waited."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    makespan_ms: float | None = None
    """of the whole workflow"""

    def request_ok(self, figures: RequestFigures) -> bool:
        """Whether one answered request met the bounds that it has figures for."""
        pairs = (
            (self.ttft_ms, figures.ttft_due_ns),
            (self.tpot_ms, figures.tpot_ns),
            (self.e2e_ms, figures.e2e_due_ns),
        )
        return all(bound is None or value is None or value <= bound * _MS for bound, value in pairs)

    def workflow_ok(self, figures: WorkflowFigures) -> bool:
        """Whether a workflow ended well, and in time."""
        return figures.complete and (self.makespan_ms is None or figures.makespan_ns <= self.makespan_ms * _MS)


def parse_slo(text: str) -> Slo:
    """`ttft=500ms,tpot=50ms,makespan=60s` -> Slo (a colon does as well). UserError with the remedy."""
    values: dict[str, float] = {}
    names = {f.name.removesuffix("_ms") for f in fields(Slo)}
    for part in text.split(","):
        name, _, amount = part.strip().replace(":", "=").partition("=")
        scale = 1.0 if amount.endswith("ms") else 1000.0
        try:
            number = float(amount.removesuffix("ms").removesuffix("s")) * scale
        except ValueError:
            number = -1.0
        if name not in names or not number > 0 or not amount.endswith("s"):
            raise UserError(f"--slo {part.strip()}: write NAME=TIME like ttft=500ms; names: {', '.join(sorted(names))}")
        values[f"{name}_ms"] = number
    return Slo(**values)


@dataclass(frozen=True, slots=True)
class Window:
    """Steady state: only requests due in [start_ns, end_ns), and workflows whose first node is."""

    start_ns: int
    end_ns: int


def steady(records: Sequence[DispatchRecord], warmup_s: float, cooldown_s: float = 0.0) -> Window | None:
    """From warmup_s after the first due instant to cooldown_s before the last; None when nothing is left."""
    if not records:
        return None
    start = min(r.due_ns for r in records) + round(warmup_s * 1e9)
    end = max(r.due_ns for r in records) - round(cooldown_s * 1e9)
    return Window(start, end + 1) if start <= end else None


def within(
    records: list[DispatchRecord], window: Window | None
) -> tuple[list[DispatchRecord], list[list[DispatchRecord]]]:
    """The records due in the window, and the workflows (whole) whose first node is; everything without a window."""
    flows = list(by_workflow(records).values())
    if window is None:
        return records, flows
    start, end = window.start_ns, window.end_ns
    begun = [flow for flow in flows if start <= min(r.due_ns for r in flow) < end]
    return [r for r in records if start <= r.due_ns < end], begun


def summarise(
    records: Iterable[DispatchRecord], *, slo: Slo | None = None, window: Window | None = None
) -> dict[str, Any]:
    """All figures of a replay: `all`, and the same per class under `classes`. Plain JSON values."""
    kept, flows = within(list(records), window)
    classes: dict[str, list[DispatchRecord]] = {}
    for record in kept:
        classes.setdefault(record.class_name, []).append(record)
    class_flows: dict[str, list[list[DispatchRecord]]] = {}
    for flow in flows:
        class_flows.setdefault(flow[0].class_name, []).append(flow)
    return {
        "window": None if window is None else {"start_ns": window.start_ns, "end_ns": window.end_ns},
        "slo": None if slo is None else {f.name: getattr(slo, f.name) for f in fields(Slo)},
        "all": _figures(kept, flows, slo),
        "classes": {name: _figures(group, class_flows.get(name, []), slo) for name, group in sorted(classes.items())},
    }


def _figures(records: list[DispatchRecord], flows: list[list[DispatchRecord]], slo: Slo | None) -> dict[str, Any]:
    requests = [r for r in records if r.kind == "llm"]
    answered = [(r, f) for r in requests if (f := request_figures(r)) is not None]
    figures = [f for _, f in answered]
    workflows = [workflow_figures(flow) for flow in flows]
    outcomes: dict[str, int] = {}
    for record in requests:
        outcomes[record.outcome] = outcomes.get(record.outcome, 0) + 1
    gaps = array("d")
    for record, _ in answered:
        gaps.extend(itl_ns(record))
    lateness = [r.t_sent_ns - r.due_ns for r in requests if r.t_sent_ns is not None]
    return {
        "requests": len(requests),
        "outcomes": outcomes,
        "ttft_ms": {"due": _ms([f.ttft_due_ns for f in figures]), "sent": _ms([f.ttft_sent_ns for f in figures])},
        "e2e_ms": {"due": _ms([f.e2e_due_ns for f in figures]), "sent": _ms([f.e2e_sent_ns for f in figures])},
        "tpot_ms": _ms([f.tpot_ns for f in figures]),
        "itl_ms": _ms(gaps),
        "lateness_ms": _ms(lateness),
        "workflows": _workflows(workflows),
        "throughput": throughput([r for r, _ in answered], records, workflows),
        "goodput": None if slo is None else goodput(figures, len(requests), workflows, slo, _span_s(records)),
        "usage": usage_errors([r for r, _ in answered]),
        "merged_share": merged_share(requests),
    }


def _workflows(workflows: list[WorkflowFigures]) -> dict[str, Any]:
    done = [w for w in workflows if w.complete]
    total = sum(w.makespan_ns for w in done)
    return {
        "n": len(workflows),
        "complete": len(done),
        "makespan_ms": _ms([w.makespan_ns for w in done]),
        "path_nodes": quantiles([len(w.path) for w in done]),
        "path_share": None
        if total == 0
        else {
            "serving": sum(w.serving_ns for w in done) / total,
            "tools_and_delays": sum(w.tool_ns for w in done) / total,
            "late": sum(w.late_ns for w in done) / total,
        },
    }


def throughput(
    answered: Sequence[DispatchRecord], records: Sequence[DispatchRecord], workflows: Sequence[WorkflowFigures]
) -> dict[str, Any]:
    """Rates with both denominators: the time in which something was being generated, and the whole workflow time.

    Run level: union of first-to-last-token intervals, and first due to last end. Workflow level: output tokens over
    makespan, per complete workflow.
    """
    whole_s = _span_s(records)
    generating_s = union_ns([(r.t_first_token_ns, r.t_last_token_ns) for r in answered]) / 1e9
    tokens = sum(w.output_tokens for w in workflows) if workflows else 0
    done = [w for w in workflows if w.complete and w.makespan_ns]
    return {
        "output_tokens": tokens,
        "whole_s": whole_s,
        "generating_s": generating_s,
        "tokens_per_s_whole": tokens / whole_s if whole_s else None,
        "tokens_per_s_generating": tokens / generating_s if generating_s else None,
        "requests_per_s": len(answered) / whole_s if whole_s else None,
        "workflows_per_s": len(done) / whole_s if whole_s else None,
        "workflow_tokens_per_s": quantiles([w.output_tokens / (w.makespan_ns / 1e9) for w in done]),
    }


def union_ns(intervals: Iterable[tuple[int | None, int | None]]) -> int:
    """Length of the union of intervals; those with an unknown end are left out."""
    total, reach = 0, None
    for start, end in sorted((a, b) for a, b in intervals if a is not None and b is not None):
        if reach is None or start > reach:
            total += end - start
            reach = end
        elif end > reach:
            total += end - reach
            reach = end
    return total


def goodput(
    figures: Sequence[RequestFigures],
    requests: int,
    workflows: Sequence[WorkflowFigures],
    slo: Slo,
    whole_s: float,
) -> dict[str, Any]:
    """Answered requests and complete workflows within the bounds: share of all (failed, skipped) and rate."""
    good = sum(slo.request_ok(f) for f in figures)
    fine = sum(slo.workflow_ok(w) for w in workflows)
    return {
        "requests": good,
        "requests_per_s": good / whole_s if whole_s else None,
        "request_share": good / requests if requests else None,
        "workflows": fine,
        "workflows_per_s": fine / whole_s if whole_s else None,
        "workflow_share": fine / len(workflows) if workflows else None,
    }


def usage_errors(answered: Sequence[DispatchRecord]) -> dict[str, Any]:
    """Every reply's usage against the plan: share exact, and the distribution of (seen - planned) tokens."""
    prompt = [
        r.prompt_tokens - r.planned_input_tokens
        for r in answered
        if r.prompt_tokens is not None and r.planned_input_tokens is not None
    ]
    output = [
        r.completion_tokens - r.planned_output_tokens
        for r in answered
        if r.completion_tokens is not None and r.planned_output_tokens is not None
    ]
    return {
        "without_usage": sum(r.prompt_tokens is None for r in answered),
        "prompt": _off(prompt),
        "output": _off(output),
    }


def _off(errors: Sequence[int]) -> dict[str, Any] | None:
    if not errors:
        return None
    return {
        "exact_share": sum(e == 0 for e in errors) / len(errors),
        "min": min(errors),
        "error_tokens": quantiles(errors),
    }


def merged_share(requests: Sequence[DispatchRecord]) -> float | None:
    """Share of token events that came in one read with an earlier one: past a few percent, ITL is not the engine's."""
    events = sum(sum(r.read_tokens) for r in requests)
    reads = sum(len(r.read_tokens) - r.read_tokens.count(0) for r in requests)
    return None if events == 0 else (events - reads) / events


def repeat_intervals(summaries: Sequence[dict[str, Any]], level: float = 0.95) -> dict[str, Any]:
    """Mean and confidence interval of every number over repeated runs, in the shape of one summary.

    Student's t over the repeats; with fewer than two values the interval is None.
    """
    if level <= 0 or level >= 1:
        raise ValueError("level must lie between 0 and 1")
    keys = [k for k in summaries[0] if all(k in s for s in summaries)] if summaries else []
    return {k: _interval([s[k] for s in summaries], level) for k in keys}


def _interval(values: Sequence[Any], level: float) -> Any:
    if all(isinstance(v, dict) for v in values):
        return repeat_intervals(values, level)
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(values) or not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    if len(numbers) < 2:
        return {"n": len(numbers), "mean": mean, "low": None, "high": None}
    from scipy.stats import t as student

    deviation = sqrt(sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1))
    half = float(student.ppf((1 + level) / 2, len(numbers) - 1)) * deviation / sqrt(len(numbers))
    return {"n": len(numbers), "mean": mean, "low": mean - half, "high": mean + half}


def _span_s(records: Sequence[DispatchRecord]) -> float:
    if not records:
        return 0.0
    return (max(r.t_end_ns for r in records) - min(r.due_ns for r in records)) / 1e9


def _ms(values: Iterable[float | None]) -> dict[str, float] | None:
    return quantiles([v / _MS for v in values if v is not None])
