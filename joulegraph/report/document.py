"""The report as one plain value (report.json): summary, checks, classes, ledger, tops, paths, how to repeat it.

Pure. Names carry units; unknown is null. May not know: HTML, plots.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from joulegraph.report.checks import checks
from joulegraph.report.facts import ADDED, Facts, Request, Workflow
from joulegraph.report.summary import class_rows, latencies, totals

VERSION = 1
TOP = 10
LEVELS = {
    "L0": "model only: nothing was measured",
    "L1": "stamps and token usage: when a request was prefilled and decoded is inferred from them",
    "L2": "engine metrics per request: queue, prefill and decode times are the engine's own",
    "L3": "the engine's iteration stream: the batch of every step is known",
}


def document(facts: Facts) -> dict[str, Any]:
    """Everything the report says, ready for JSON."""
    ledger = facts.ledger or {}
    return {
        "version": VERSION,
        "run": facts.name,
        "state": facts.info.get("state"),
        "why": facts.info.get("why"),
        "level": ledger.get("level"),
        "level_means": LEVELS.get(ledger.get("level", "")),
        "policy": ledger.get("policy"),
        "summary": totals(facts),
        "checks": [asdict(c) for c in checks(facts)],
        "classes": [asdict(row) for row in class_rows(facts)],
        "latency_ms": {k: {s: _in_ms(q) for s, q in by.items()} for k, by in latencies(facts).items()},
        "goodput": facts.goodput,
        "truth_error": facts.truth,
        "ledger": _ledger(ledger),
        "measured_j": measured(ledger),
        "class_energy": class_energy(ledger),
        "class_components_j": class_components(facts),
        "top_workflows": [workflow_row(w) for w in top_workflows(facts)],
        "agents": agents(facts)[:TOP],
        "critical_paths": {kind: path_row(w) for kind, w in notable(facts).items()},
        "sensors": list(facts.sensors),
        "sampling": facts.sampling,
        "not_measured": not_measured(facts),
        "reproduce": reproduce(facts.info),
    }


def _in_ms(q: dict[str, float] | None) -> dict[str, float] | None:
    return None if q is None else {k: v if k == "n" else v / 1e6 for k, v in q.items()}


def _ledger(ledger: dict[str, Any]) -> dict[str, Any] | None:
    """ledger.json without its blocks."""
    if not ledger:
        return None
    keep = {k: v for k, v in ledger.items() if k not in ("devices", "workflow_classes", "class_uj", "agent_uj")}
    devices = [{k: v for k, v in d.items() if k != "blocks"} for d in ledger.get("devices", ())]
    if hit := keep.get("preempted"):
        keep["preempted"] = {**hit, "listed": hit["listed"][:TOP]}
    return {**keep, "devices": devices}


def class_energy(ledger: dict[str, Any]) -> list[dict[str, Any]]:
    """Per class what its workflows came to in joules: attributed, per successful workflow, along the critical paths,
    energy-delay product, gCO2e where a grid was given. [] where nothing was attributed."""
    rows = ledger.get("workflow_classes") or {}
    return [
        {
            "name": name,
            "active_j": row["active_uj"] / 1e6,
            "j_per_successful_workflow": row.get("j_per_successful_workflow"),
            "critical_path_j": _j(row.get("critical_path_uj")),
            "edp_js": row.get("edp_js"),
            "gco2e": row.get("gco2e"),
        }
        for name, row in rows.items()
        if row.get("active_uj") is not None
    ]


def measured(ledger: dict[str, Any]) -> dict[str, float]:
    """Measured joules per component that adds up (not HBM)."""
    books = ledger.get("components") or {}
    return {name: books[name]["measured_uj"] / 1e6 for name in ADDED if name in books}


def class_components(facts: Facts) -> dict[str, dict[str, float]]:
    """Active joules per class: GPU without HBM, HBM, CPU, DRAM; keys that were not measured are absent."""
    out: dict[str, dict[str, float]] = {}
    for workflow in facts.workflows:
        into = out.setdefault(workflow.class_name, {})
        for r in workflow.requests:
            for name, uj in r.joules.by_component if r.joules else ():
                into[name] = into.get(name, 0.0) + uj / 1e6
    for parts in out.values():
        if "hbm" in parts and "gpu" in parts:
            parts["gpu"] -= parts["hbm"]
    return dict(sorted(out.items()))


def top_workflows(facts: Facts, most: int = TOP) -> list[Workflow]:
    """The workflows with the most active joules; the longest ones where no joules are known."""
    if any(w.uj() is not None for w in facts.workflows):
        return sorted(facts.workflows, key=lambda w: -(w.uj() or 0))[:most]
    return sorted(facts.workflows, key=lambda w: -(w.makespan_ns or 0))[:most]


def workflow_row(w: Workflow) -> dict[str, Any]:
    """One workflow's figures."""
    by_node = {r.node_id: r for r in w.requests}
    on_path = [by_node[s.request_id].joules for s in w.critical]
    path_uj = [j.active for j in on_path if j is not None]
    return {
        "workflow_id": w.workflow_id,
        "class": w.class_name,
        "fate": w.fate,
        "requests": len(w.requests),
        "output_tokens": w.output_tokens,
        "makespan_ms": _ms(w.makespan_ns),
        "active_j": _j(w.uj()),
        "low_j": _j(w.uj("low")),
        "high_j": _j(w.uj("high")),
        "full_j": _j(w.uj("full")),
        "critical_path_j": _j(sum(path_uj)) if path_uj else None,
        "edp_js": edp_js(w.uj(), w.makespan_ns),
    }


def edp_js(uj: int | None, makespan_ns: int | None) -> float | None:
    """Energy-delay product, J s."""
    return None if uj is None or makespan_ns is None else uj / 1e6 * makespan_ns / 1e9


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _j(uj: float | None) -> float | None:
    return None if uj is None else uj / 1e6


def agents(facts: Facts) -> list[dict[str, Any]]:
    """Requests, tokens and joules per agent, most joules first; requests without one are "(none)"."""
    members: dict[str, list[Request]] = {}
    for r in facts.requests:
        if r.kind == "llm":
            members.setdefault(r.agent_id or "(none)", []).append(r)
    rows: list[dict[str, Any]] = []
    for name, requests in members.items():
        known = [r.joules for r in requests if r.joules is not None]
        active = sum(j.active for j in known) if known else None
        tokens = sum(r.output_tokens or 0 for r in requests if r.outcome == "ok")
        rows.append(
            {
                "agent": name,
                "requests": len(requests),
                "prompt_tokens": sum(r.prompt_tokens or 0 for r in requests if r.outcome == "ok"),
                "output_tokens": tokens,
                "active_j": _j(active),
                "j_per_request": _j(active / len(requests)) if active is not None else None,
                "j_per_output_token": _j(active / tokens) if active is not None and tokens else None,
                "prefill_share": sum(j.prefill for j in known) / active if active else None,
            }
        )
    return sorted(rows, key=lambda row: (-(row["active_j"] or 0), row["agent"]))


def notable(facts: Facts) -> dict[str, Workflow]:
    """The workflow of median makespan and the worst, among the complete ones with several requests (else among all)."""
    done = [w for w in facts.workflows if w.makespan_ns is not None]
    several = [w for w in done if len(w.requests) > 1] or done
    if not several:
        return {}
    ranked = sorted(several, key=lambda w: (w.makespan_ns or 0, w.workflow_id))
    return {"median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}


def path_row(w: Workflow) -> dict[str, Any]:
    """The critical path of one workflow: where its makespan went, step by step."""
    by_node = {r.node_id: r for r in w.requests}
    steps: list[dict[str, Any]] = [
        {
            "node": s.request_id,
            "agent": by_node[s.request_id].agent_id,
            "kind": by_node[s.request_id].kind,
            "wait_ms": s.wait_ns / 1e6,
            "late_ms": s.late_ns / 1e6,
            "serve_ms": s.serve_ns / 1e6,
            "ttft_ms": _ms(by_node[s.request_id].since("sent", "first")),
            "output_tokens": by_node[s.request_id].output_tokens,
            "active_j": _j(j.active) if (j := by_node[s.request_id].joules) else None,
        }
        for s in w.critical
    ]
    return {
        **workflow_row(w),
        "serving_ms": sum(s["serve_ms"] for s in steps if s["kind"] == "llm"),
        "tools_and_delays_ms": sum(s["wait_ms"] + (s["serve_ms"] if s["kind"] != "llm" else 0.0) for s in steps),
        "late_ms": sum(s["late_ms"] for s in steps),
        "steps": steps,
    }


def not_measured(facts: Facts) -> list[str]:
    """What was estimated, inferred or not there at all, one sentence each."""
    ledger = facts.ledger or {}
    books = ledger.get("components") or {}
    out = [f"{name.upper()} energy was not measured; joules leave it out." for name in ADDED if name not in books]
    if "gpu" in books and "hbm" not in books:
        out.append("HBM energy was not measured apart; it is part of the GPU's figure.")
    for device in ledger.get("devices", ()):
        name = device.get("device") or device.get("source")
        if device.get("integrated_power"):
            out.append(f"{name}: joules are integrated from power readings, not from an energy counter.")
        if not device.get("lag_known", True):
            out.append(f"{name}: the sensor's lag could not be estimated; none was corrected.")
    if ledger.get("level") in ("L1", "L0"):
        out.append("When each request was prefilled and decoded is inferred from stamps and token counts (level L1).")
    limits = sorted({s["limits"] for s in facts.sensors if s.get("limits")})
    out += [f"Sensors: {_sentence(str(text))}" for text in limits]
    out += [_sentence(str(text)) for text in (*facts.notes, *ledger.get("notes", ())) if text]
    return list(dict.fromkeys(out))


def _sentence(text: str) -> str:
    """With a capital and a full stop; a name that it begins with (sim.cpu0.energy) stays as it is."""
    first = text.partition(" ")[0]
    return f"{text[0].upper() if first.isalpha() else text[0]}{text[1:].rstrip('.')}."


_FLAG = {"from_s": "from", "until_s": "until"}
_LEFT_OUT = ("json", "out", "no_report")


def command_line(info: dict[str, Any]) -> str | None:
    """The command that made the run, from run.json; None where it does not say."""
    command, config = info.get("command"), info.get("config")
    if not isinstance(command, str):
        return None
    if " " in command:
        return command
    words = ["joulegraph", command]
    if command == "sweep" and isinstance(config, dict):  # one point of a file that the run does not hold
        factors = config.get("point") or {}
        point = ", ".join(f"{k} {Path(v).name if k in ('trace', 'model') else v}" for k, v in factors.items())
        return f"joulegraph sweep, repeat {config.get('repeat')} of the point {point}"
    for key, value in (config if isinstance(config, dict) else {}).items():
        if value is None or value is False or value == "" or key in _LEFT_OUT or isinstance(value, dict | list):
            continue
        if key == "trace":
            words.insert(2, str(value))
        else:
            words.append("--" + str(_FLAG.get(key, key)).replace("_", "-"))
            words += [] if value is True else [str(value)]
    return shlex.join(words)


def reproduce(info: dict[str, Any]) -> dict[str, Any]:
    """What somebody else needs to do the same."""
    return {
        "command": command_line(info),
        "versions": info.get("versions"),
        "host": info.get("host"),
        "config": info.get("config"),
        "transforms": info.get("transforms"),
        "time": info.get("time", "real"),
        "clock": info.get("clock"),
        "wall_s": info.get("wall_s"),
    }


def class_series(facts: Facts, start: str, end: str) -> dict[str, Sequence[float]]:
    """Values of one latency per class from `start` (due or sent), then over all from sent."""
    out: dict[str, list[float]] = {}
    everything: list[float] = []
    for w in facts.workflows:
        for r in w.requests:
            if (value := r.since(start, end)) is not None:
                out.setdefault(w.class_name, []).append(value)
            if (sent := r.since("sent", end)) is not None:
                everything.append(sent)
    return {**dict(sorted(out.items())), **({"all (sent)": everything} if start == "due" else {})}
