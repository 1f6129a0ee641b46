"""From the report's value to one HTML file: plots inlined, no script, nothing fetched, fit for paper.

May not know: run directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from joulegraph.live.render import duration, energy
from joulegraph.report import plots
from joulegraph.report.checks import LATENESS_NS
from joulegraph.report.document import class_series, notable
from joulegraph.report.facts import Facts
from joulegraph.report.summary import class_rows, figure, lateness_ns


def render_html(facts: Facts, value: dict[str, Any]) -> str:
    """The page for `value` (document(facts)); plots are drawn from the facts."""
    source = resources.files("joulegraph.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"ms": _ms, "j": _joules, "fig": figure, "pct": _percent, "n": _count, "uj": _from_uj}
    page = environment.from_string(source).render(
        d=value,
        tiles=tiles(value),
        rows=class_rows(facts),
        figures={name: Markup(svg) for name, svg in draw(facts, value).items()},
        bound_ms=LATENESS_NS / 1e6,
        latency_rows=latency_rows(value),
    )
    return page.strip() + "\n"


def draw(facts: Facts, value: dict[str, Any]) -> dict[str, str]:
    """Every plot of the page by name; those without data are absent."""
    out: dict[str, str] = {}
    if facts.timeline is not None:
        out["power"] = plots.power_timeline(facts.timeline)
    books = (facts.ledger or {}).get("components") or {}
    if books:
        out["components"] = plots.components(books)
    by_class = value["class_components_j"]
    if any(by_class.values()):
        out["classes"] = plots.class_energy(list(by_class.items()))
    start = "due" if facts.planned else "sent"
    panels: list[tuple[str, Mapping[str, Sequence[float]]]] = [
        (f"TTFT from {start}", class_series(facts, start, "first")),
        (f"end to end from {start}", class_series(facts, start, "end")),
        ("workflow makespan", _makespans(facts)),
    ]
    if facts.planned:
        late = [v for r in facts.requests if r.kind == "llm" and (v := lateness_ns(r)) is not None]
        if late and max(late) > 1000:  # in virtual time nobody is late
            panels.append(("lateness of the generator", {"all": late}))
    panels = [(title, {k: v for k, v in series.items() if v}) for title, series in panels]
    if any(series for _, series in panels):
        out["latency"] = plots.distributions([p for p in panels if p[1]])
    for kind, workflow in notable(facts).items():
        if len(workflow.requests) > 1:
            out[f"path-{kind}"] = plots.waterfall(workflow, f"path-{kind}")
    return out


def _makespans(facts: Facts) -> dict[str, Sequence[float]]:
    out: dict[str, list[float]] = {}
    for w in facts.workflows:
        if w.makespan_ns is not None:
            out.setdefault(w.class_name, []).append(w.makespan_ns)
    return {name: out[name] for name in sorted(out)}


def tiles(value: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, figure, what it is) of the first glance."""
    s, late, measured = value["summary"], value["latency_ms"], value["measured_j"]
    total = sum(measured.values()) if measured else None
    share = s["active_j"] / total if total and s["active_j"] is not None else None
    books = [value["ledger"]["components"][name] for name in measured]
    spare = sum(b["idle_uj"] + b["tail_uj"] for b in books) / 1e6 / total if total else None
    ttft, e2e = (late[k]["due"] or late[k]["sent"] for k in ("ttft", "e2e"))
    bad = s["requests"] - s["outcomes"].get("ok", 0)
    lateness = late["lateness"]["due"]
    return [
        (
            "workflows",
            _count(s["workflows"]),
            f"{s['workflows_failed']:,} failed, {s['workflows_rejected']:,} rejected",
        ),
        ("requests", _count(s["requests"]), f"{bad:,} not ok"),
        ("TTFT", _ms(ttft and ttft["p50"]), f"p95 {_ms(ttft and ttft['p95'])}"),
        ("end to end", _ms(e2e and e2e["p50"]), f"p95 {_ms(e2e and e2e['p95'])}"),
        (
            "output tokens/s",
            figure(s["output_tokens_per_s_wall"]),
            f"{figure(s['output_tokens_per_s_generation'])} first to last token",
        ),
        ("measured", _joules(total), ", ".join(measured) or "nothing was measured"),
        ("attributed", _joules(s["active_j"]), f"{_percent(share)} of what was measured" if share else "active joules"),
        ("idle and tail", _percent(spare), "of what was measured"),
        ("J per output token", figure(s["j_per_output_token"]), f"{s['output_tokens']:,} tokens"),
        ("lateness p99", _ms(lateness and lateness["p99"]), "sent after due"),
    ]


def latency_rows(value: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """(what, from where, quantiles in ms) for every latency that is known."""
    names = {
        "ttft": "TTFT",
        "e2e": "end to end",
        "tpot": "TPOT",
        "itl": "ITL",
        "makespan": "workflow makespan",
        "lateness": "lateness",
    }
    out = []
    for key, by in value["latency_ms"].items():
        for start, q in by.items():
            if q is not None:
                out.append((names[key], start if key in ("ttft", "e2e") else "", q))
    return out


def _ms(ms: float | None) -> str:
    return duration(None if ms is None else round(ms * 1e6))


def _joules(j: float | None) -> str:
    return energy(j)


def _from_uj(uj: float | None) -> str:
    return energy(None if uj is None else uj / 1e6)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"
