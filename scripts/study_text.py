"""study.md: what came out of the study's sweep, by finding of the paper. Means with 95 % intervals over repeats.

Used by study.py; reads the sweep's tables, plays nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulegraph.sweep.config import Point, Sweep
from joulegraph.sweep.stats import line, plateau
from joulegraph.sweep.tables import factor_names, means, results

Found = dict[str, dict[str, Any]]
VARIED = ("max_num_seqs", "proxy_limit", "max_batch_size", "tasks_capacity", "power_cap_w", "output_length",
          "input_length", "prefix_caching")  # fmt: skip
WORKLOADS = ("sequential", "interactive", "agentic", "composite")


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of the study. knob: the factor that is its batch size."""

    name: str
    engine: str
    knob: str


class Table:
    """Means of class `all`: point -> figure -> row of means."""

    def __init__(self, asked: Sweep, out: Path) -> None:
        self.points = asked.points
        self.turned = asked.turn_knobs
        self.values: dict[str, Found] = {}
        rows = results(asked, out)
        self.runs = [(row["state"], row["why"]) for row in rows if row["class"] == "all"]
        for row in means(rows, factor_names(asked.points)):
            if row["class"] == "all":
                self.values.setdefault(row["point"], {})[row["figure"]] = row

    def find(self, arm: Arm, **factors: Any) -> list[tuple[Point, Found]]:
        """Points of an arm with exactly these factors among those that the study varies, that have figures."""
        wanted = {**dict.fromkeys(VARIED), "users": 16, "engine": arm.engine, **factors}
        return [
            (point, self.values[point.key()])
            for point in self.points
            if point.key() in self.values and all(_fits(getattr(point, k), v) for k, v in wanted.items())
        ]


def _fits(value: Any, wanted: Any) -> bool:
    """... stands for any value that is set."""
    return value is not None if wanted is ... else bool(value == wanted)


def mean(found: Found, figure: str) -> float | None:
    """Mean over repeats; None where it was not measured."""
    row = found.get(figure)
    return None if row is None else float(row["mean"])


def shown(found: Found, figure: str, digits: int, scale: float = 1.0) -> str:
    """The mean with half its 95 % interval; a dash where it was not measured."""
    row = found.get(figure)
    if row is None:
        return "-"
    text = f"{scale * row['mean']:.{digits}f}"
    low, high = row["low95"], row["high95"]
    return text if low is None or high is None else f"{text} ± {scale * (high - low) / 2:.{digits}f}"


def batch_rows(table: Table, arm: Arm, **factors: Any) -> str:
    """A table over batch size."""
    head = ("batch", "makespan s", "J/token", "tokens/s in flight", "generating", "mean batch", "KV max %",
            "preempted", "cached %")  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point, got in table.find(arm, **{arm.knob: ...}, **factors):
        cells = (
            str(getattr(point, arm.knob)),
            shown(got, "makespan_s_mean", 2),
            shown(got, "j_per_output_token", 3),
            shown(got, "tokens_per_s_in_flight", 0),
            shown(got, "tokens_per_s_generating", 0),
            shown(got, "batch_mean", 2),
            shown(got, "kv_usage_max", 0, 100),
            shown(got, "preemptions", 0),
            shown(got, "cached_share", 0, 100),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def cache_rows(table: Table, arm: Arm) -> str:
    """Batch 16 with the prefix cache and without it: what sharing prompts is worth."""
    head = ("workload", "prefix cache", "makespan s", "J/token", "mean batch", "KV max %", "preempted", "cached %")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for workload in WORKLOADS:
        for name, setting in (("on", None), ("off", False)):
            for _, got in table.find(arm, workload=workload, prefix_caching=setting, **{arm.knob: 16}):
                cells = (
                    workload,
                    name,
                    shown(got, "makespan_s_mean", 2),
                    shown(got, "j_per_output_token", 3),
                    shown(got, "batch_mean", 2),
                    shown(got, "kv_usage_max", 0, 100),
                    shown(got, "preemptions", 0),
                    shown(got, "cached_share", 0, 100),
                )
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def saved(first: Found, last: Found, figure: str) -> str:
    """Percent of a figure that `last` saves against `first`."""
    a, b = mean(first, figure), mean(last, figure)
    return "not measured" if not a or b is None else f"{100 * (1 - b / a):.0f} %"


def gain(table: Table, arm: Arm, **factors: Any) -> str:
    """What the largest batch saves against the smallest."""
    found = table.find(arm, **{arm.knob: ...}, **factors)
    if len(found) < 2:
        return "not measured"
    (_, first), (point, last) = found[0], found[-1]
    return (
        f"batch {getattr(point, arm.knob)} against 1 saves {saved(first, last, 'j_per_output_token')} J/token, "
        f"{saved(first, last, 'makespan_s_mean')} time"
    )


def cap_rows(table: Table, arm: Arm, workload: str) -> str:
    """Joules and seconds against the cap, relative to the highest."""
    found = table.find(arm, workload=workload, power_cap_w=..., **{arm.knob: 16})
    found.sort(key=lambda pair: pair[0].power_cap_w or 0)
    if not found:
        return f"* {workload}: {unturned(table, arm, workload)}"
    top = found[-1][1]
    words = [
        f"{p.power_cap_w} W: {_relative(v, top, 'j_per_workflow')} J, {_relative(v, top, 'makespan_s_mean')} s"
        for p, v in found
    ]
    spans = [mean(v, "makespan_s_mean") for _, v in found]
    flat = plateau([float(p.power_cap_w or 0) for p, _ in found], [s for s in spans if s is not None])
    ending = f"flat from {flat:g} W" if flat is not None else "no plateau below the highest cap"
    return f"* {workload}: {'; '.join(words)}. {ending}."


def unturned(table: Table, arm: Arm, workload: str) -> str:
    """Why nothing is known of caps."""
    caps = [p.power_cap_w for p in table.points if p.engine == arm.engine and p.workload == workload and p.power_cap_w]
    if table.turned or not caps:
        return "not measured"
    return f"not testable: {', '.join(f'{cap} W' for cap in caps)} recorded as not run, caps were not turned"


def _relative(found: Found, top: Found, figure: str) -> str:
    a, b = mean(top, figure), mean(found, figure)
    return "-" if not a or b is None else f"{100 * (b / a - 1):+.1f} %"


def output_rows(table: Table, arm: Arm, workload: str) -> str:
    """The line of joules per request over output tokens."""
    found = table.find(arm, workload=workload, output_length=..., **{arm.knob: 16})
    pairs = [(mean(v, "output_tokens_mean"), mean(v, "j_per_request")) for _, v in found]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    fit = line([x for x, _ in known], [y for _, y in known])
    if fit is None or fit.r2 is None:
        return f"* {workload}: not measured"
    per_token = ", ".join(f"{shown(v, 'output_tokens_mean', 0)}: {shown(v, 'j_per_output_token', 3)}" for _, v in found)
    return (
        f"* {workload}: {fit.intercept:.1f} J + {fit.slope:.3f} J per output token, R² {fit.r2:.4f} "
        f"(J per token at mean outputs of {per_token})"
    )


def beside(table: Table, one: Arm, other: Arm) -> str:
    """The two arms at equal batch size: J/token, throughput and what the other costs more."""
    head = ("workload", "batch", f"J/token {one.name}", other.name, "more", "tokens/s in flight", other.name,
            "mean batch", other.name, "cached %", other.name)  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for workload in WORKLOADS:
        right = {getattr(p, other.knob): v for p, v in table.find(other, workload=workload, **{other.knob: ...})}
        for point, left in table.find(one, workload=workload, **{one.knob: ...}):
            n = getattr(point, one.knob)
            if n not in right:
                continue
            cells = [workload, str(n)]
            for figure, digits, scale in (
                ("j_per_output_token", 3, 1), ("tokens_per_s_in_flight", 0, 1), ("batch_mean", 1, 1),
                ("cached_share", 0, 100),
            ):  # fmt: skip
                cells += [shown(left, figure, digits, scale), shown(right[n], figure, digits, scale)]
            cells.insert(4, _relative(right[n], left, "j_per_output_token"))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def capped_beside(table: Table, one: Arm, other: Arm) -> str:
    """Joules per workflow under each cap, each arm against the other."""
    rows = []
    for workload in WORKLOADS:
        left = {p.power_cap_w: v for p, v in table.find(one, workload=workload, power_cap_w=..., **{one.knob: 16})}
        right = {p.power_cap_w: v for p, v in table.find(other, workload=workload, power_cap_w=..., **{other.knob: 16})}
        words = [
            f"{cap} W: {_relative(right[cap], left[cap], 'j_per_workflow')} J, "
            f"{_relative(right[cap], left[cap], 'makespan_s_mean')} s"
            for cap in sorted(left.keys() & right.keys(), key=lambda w: w or 0)
        ]
        rows.append(f"* {workload}: {'; '.join(words) or 'not measured'}")
    return "\n".join(rows)


def capacity_rows(table: Table, arm: Arm) -> str:
    """Parrot's own knob: calls that its scheduler lets onto an engine."""
    rows = ["| tasks_capacity | most calls held | latency cap | J/token | makespan s | mean batch |", "|---" * 6 + "|"]
    for point, got in table.find(arm, workload="agentic", tasks_capacity=..., **{arm.knob: 16}):
        figures = [shown(got, name, 0) for name in ("tasks_peak", "latency_cap")]
        figures += [shown(got, "j_per_output_token", 3), shown(got, "makespan_s_mean", 1), shown(got, "batch_mean", 2)]
        rows.append(f"| {point.tasks_capacity} | {' | '.join(figures)} |")
    return "\n".join(rows)


def counted(table: Table) -> str:
    """How many runs stand in the figures, and why others do not."""
    whole = sum(state == "complete" for state, _ in table.runs)
    reasons = Counter(
        f"{state}: {(why or 'no reason given').rstrip('.')}" for state, why in table.runs if state != "complete"
    )
    rest = "".join(f"; {n} {why}" for why, n in reasons.items())
    return f"{whole} of {len(table.runs)} runs are in the figures{rest}."


def document(table: Table, command: str, arms: list[Arm], repeats: int, implied: bool) -> str:
    """study.md."""
    note = (
        "The engine is the embedded one and joules are its true ones: every figure below is implied by its "
        "assumptions (profile constants from published figures; a step reads the weights once whatever the batch; "
        "clock follows the cap), none is measured."
        if implied
        else "Measured on the engine named."
    )
    intervals = "± half the 95 % interval" if repeats > 1 else "so no interval"
    engines = " and ".join(f"{arm.name} ({arm.engine}, batch size is {arm.knob})" for arm in arms)
    parts = [
        f"`{command}`: {engines}; {repeats} repeat{'s' * (repeats > 1)}, {intervals}; 16 users in a closed loop. "
        f"{note} {counted(table)}",
        *[part for arm in arms for part in _of_arm(table, arm)],
    ]
    if len(arms) == 2:
        one, other = arms
        parts += [
            "## F4: the two at equal batch size",
            beside(table, one, other),
            "### Parrot's tasks_capacity (agentic, max_batch_size 16)",
            capacity_rows(table, other),
            f"## F5: {other.name} against {one.name} under each cap (batch 16)",
            capped_beside(table, one, other),
        ]
    return "\n\n".join(parts) + "\n"


def _of_arm(table: Table, arm: Arm) -> list[str]:
    parts = [f"## {arm.name}", "### F1: batch size"]
    for workload in WORKLOADS:
        factors = {"workload": workload}
        parts += [f"**{workload}**: {gain(table, arm, **factors)}.", batch_rows(table, arm, **factors)]
    for title, factors in (
        ("sequential, one user", {"workload": "sequential", "users": 1}),
        ("interactive, prefix cache off", {"workload": "interactive", "prefix_caching": False}),
    ):
        if len(table.find(arm, **{arm.knob: ...}, **factors)) > 1:
            parts += [f"**{title}**: {gain(table, arm, **factors)}.", batch_rows(table, arm, **factors)]
    if table.find(arm, workload="interactive", prefix_caching=False, **{arm.knob: 16}):
        parts += ["### Prefix cache on and off (batch 16)", cache_rows(table, arm)]
    parts += [
        "### F2: power cap (batch 16, against the highest cap)",
        "\n".join(cap_rows(table, arm, workload) for workload in WORKLOADS),
        "### F3: output length (batch 16)",
        "\n".join(output_rows(table, arm, workload) for workload in WORKLOADS[:3]),
        "### Input length (sequential, batch 16)",
        "\n".join(
            f"* chunk {p.input_length}: {shown(v, 'j_per_workflow', 0)} J per workflow, "
            f"{shown(v, 'makespan_s_mean', 1)} s"
            for p, v in table.find(arm, workload="sequential", input_length=..., **{arm.knob: 16})
        ),
    ]
    return parts
