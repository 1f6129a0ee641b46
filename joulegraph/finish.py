"""From journals to figures: Parquet tables, attribution, report, and the summary that --json prints.

Runs after demo and replay, and again at any time by `joulegraph finish RUN` on whatever a crash left behind:
journals are the source, everything here is derived. May not know: how the run was made.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from energy.attribute import attribute_run
from energy.ledger import BOOK
from energy.truth import score_truth
from joulegraph.figures import sentences, write_figures
from joulegraph.tables import write_tables
from traces.errors import UserError
from traces.records import is_call
from traces.rundir import RunDir

_REFUSED = "rejected"
NO_FAILURE = ("ok", "skipped", _REFUSED, "cancelled")


def complete(run: RunDir, *, policy: str = "fitted", report: bool = True) -> dict[str, Any]:
    """Derive every file of a run from its journals and give back the summary. UserError when nothing was recorded."""
    try:
        return _derive(run, policy, report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"left while figures were derived; the run is kept, joulegraph finish {run.path} derives them"
        ) from None
    except OSError as error:
        raise UserError(
            f"{error.filename or run.path}: cannot be written ({error.strerror or error}); the journals are kept: "
            f"make room or mend permissions, then joulegraph finish {run.path}"
        ) from error


def _derive(run: RunDir, policy: str, report: bool) -> dict[str, Any]:
    counts = count(run)
    if counts["requests"] == 0:
        raise UserError(f"{run.path}: no request was recorded; there is nothing to attribute")
    tables = write_tables(run)
    attribution = attribute_run(run, policy=policy)
    totals = attribution.totals
    info = run.info
    summary = {
        "run": str(run.path),
        "state": info.get("state"),
        "why": info.get("why"),
        **counts,
        **{name: totals.get(name) for name in (*BOOK, "closure_uj", "scale")},
        "level": totals.get("level"),
        "simulated": any(sensor.get("simulated") for sensor in info.get("sensors") or ()),
        "components": totals.get("components"),
        "estimates": totals.get("estimates"),
        "node": totals.get("node"),
        "preemptions": totals.get("preemptions"),
        "preempted": totals.get("preempted"),
        "class_uj": totals.get("class_uj"),
        "notes": totals.get("notes"),
        "left_out": info.get("left_out"),
        "truth_error": score_truth(run, attribution),
        "wall_s": info.get("wall_s"),
        "tables": tables,
    }
    figures = write_figures(run)
    if figures is not None:
        summary["goodput"] = figures.get("all", {}).get("goodput")
        summary["figures"] = sentences(figures)
    run.write_json("summary.json", summary)
    if report:
        from joulegraph.report import write_report

        summary["report"] = str(write_report(run))
    return summary


def count(run: RunDir) -> dict[str, Any]:
    """Workflows by class and requests by outcome, from the dispatch journals, else from what the proxy saw."""
    source = "dispatch" if run.journals("dispatch") else "requests"
    classes: dict[str, str] = {}
    outcomes: Counter[str] = Counter()
    for row in run.rows(source):
        if source == "requests" and not is_call(row):
            continue
        if row.get("workflow_id") is not None:
            classes.setdefault(row["workflow_id"], row.get("class_name") or "workflow")
        if row.get("kind", "llm") == "llm":
            outcomes[row.get("outcome", "error")] += 1
    sent = sum(n for outcome, n in outcomes.items() if outcome != "skipped")
    return {
        "workflows": len(classes),
        "classes": dict(sorted(Counter(classes.values()).items())),
        "requests": sent,
        "errors": sum(n for outcome, n in outcomes.items() if outcome not in NO_FAILURE),
        "rejected": outcomes[_REFUSED],
        "outcomes": dict(sorted(outcomes.items())),
    }


def finish(path: Path, *, policy: str = "fitted") -> dict[str, Any]:
    """Complete an interrupted run: settle its state, then derive everything. A complete run is derived anew."""
    run = RunDir.open(path)
    info = run.info
    if info.get("state") == "running":
        why = "the run ended without closing its files (killed or crashed); completed from its journals"
        run.update_info(state="interrupted", why=why, damage=damage(run))
    return complete(run, policy=policy)


def damage(run: RunDir) -> dict[str, Any]:
    """Torn and damaged lines per journal file; empty when every line is whole."""
    from traces.journal import JournalReader
    from traces.rundir import JOURNALS

    found: dict[str, Any] = {}
    for name in JOURNALS:
        for path in run.journals(name):
            reader = JournalReader(path)
            for _ in reader:
                pass
            if reader.torn or reader.damaged:
                found[path.name] = {"torn": reader.torn, "damaged_lines": reader.damaged}
    return found
