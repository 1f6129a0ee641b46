"""figures.json of a run: latencies, throughput, goodput and joules per each of them, in a window, under bounds.

Why: loadgen.summary knows service, energy knows joules; here they meet. Which bounds and window were asked for stands
in run.json (`figures`), so that `joulegraph finish` derives the same again. May not know: how the run was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.metrics import output_tokens, request_figures, workflow_figures
from loadgen.summary import Slo, parse_slo, steady, summarise, within
from traces.errors import UserError
from traces.records import DispatchRecord, from_row
from traces.rundir import RunDir


def wanted(slo: str | None, warmup_s: float, cooldown_s: float) -> dict[str, Any]:
    """What was asked for, as it stands in run.json. UserError when it makes no sense."""
    if slo is not None:
        parse_slo(slo)
    for flag, value in (("--warmup", warmup_s), ("--cooldown", cooldown_s)):
        if value < 0:
            raise UserError(f"{flag} {value:g}: must not be below 0 seconds")
    return {"slo": slo, "warmup_s": warmup_s, "cooldown_s": cooldown_s}


def write_figures(run: RunDir) -> dict[str, Any] | None:
    """Derive figures.json from the dispatch journals and the attribution; None where nothing was dispatched. Where
    warm-up and cool-down leave nothing it says so (`why`) and holds no figure."""
    records = [from_row(DispatchRecord, row) for row in run.rows("dispatch")] if run.journals("dispatch") else []
    if not records:
        return None
    asked = run.info.get("figures") or {}
    slo = parse_slo(asked["slo"]) if asked.get("slo") else None
    warmup_s, cooldown_s = asked.get("warmup_s", 0.0), asked.get("cooldown_s", 0.0)
    window = steady(records, warmup_s, cooldown_s) if warmup_s or cooldown_s else None
    if window is None and (warmup_s or cooldown_s):
        span_s = (max(r.due_ns for r in records) - min(r.due_ns for r in records)) / 1e9
        left = (
            f"no steady state: a warm-up of {warmup_s:g} s and a cool-down of {cooldown_s:g} s leave nothing of the "
            f"{span_s:.1f} s in which requests were due; give less, or a longer trace"
        )
        run.write_json("figures.json", {"why": left})
        return {"why": left}
    kept, flows = within(records, window)
    figures = summarise(records, slo=slo, window=window)
    figures["joules"] = joules(kept, flows, active_uj(run), slo)
    run.write_json("figures.json", figures)
    return figures


def joules(
    records: Sequence[DispatchRecord],
    flows: Sequence[Sequence[DispatchRecord]],
    uj: Mapping[str, int],
    slo: Slo | None,
) -> dict[str, Any] | None:
    """Active joules of what lies in the window, per unit of service; failed and late work is charged to the good.

    None where nothing was attributed. The denominators: answered requests, output tokens, complete workflows, and
    those within the bounds.
    """
    if not uj:
        return None
    total_j = sum(uj.get(r.wire_id, 0) for r in records) / 1e6
    answered = [(r, f) for r in records if (f := request_figures(r)) is not None]
    complete = [w for w in map(workflow_figures, flows) if w.complete]
    per = {
        "active_j": total_j,
        "per_request": _per(total_j, len(answered)),
        "per_output_token": _per(total_j, sum(output_tokens(r) for r, _ in answered)),
        "per_workflow": _per(total_j, len(complete)),
    }
    if slo is not None:
        per["per_good_request"] = _per(total_j, sum(slo.request_ok(f) for _, f in answered))
        per["per_good_workflow"] = _per(total_j, sum(map(slo.workflow_ok, complete)))
    return per


def _per(total: float, count: int) -> float | None:
    return total / count if count else None


def active_uj(run: RunDir) -> dict[str, int]:
    """Active uJ per wire id over gpu, cpu and dram (hbm is inside gpu); empty without an attribution."""
    path = run.file("attribution.parquet")
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    from joulegraph.report.facts import ADDED

    table = pq.read_table(path, columns=["request_id", "component", "active_uj"])
    sums: dict[str, int] = {}
    rows = zip(*(table.column(i).to_pylist() for i in range(3)), strict=True)
    for wire_id, component, active in rows:
        if component in ADDED:
            sums[wire_id] = sums.get(wire_id, 0) + active
    return sums


def sentences(figures: dict[str, Any]) -> list[str]:
    """What a person wants to read first: goodput and joules under the bounds, and the window if there is one."""
    if "why" in figures:
        return [figures["why"]]
    whole, per = figures["all"], figures["joules"] or {}
    out: list[str] = []
    if figures["window"] is not None:
        length_s = (figures["window"]["end_ns"] - figures["window"]["start_ns"]) / 1e9
        out.append(f"steady state: {length_s:.1f} s, {whole['requests']} requests, {whole['workflows']['n']} workflows")
    good = whole["goodput"]
    if good is not None:
        slo = figures["slo"]
        bounds = ", ".join(f"{k.removesuffix('_ms')} {v:g} ms" for k, v in slo.items() if v is not None)
        out.append(
            f"goodput under {bounds} (from due): {good['requests']} requests ({_share(good['request_share'])}, "
            f"{_rate(good['requests_per_s'])}/s), {good['workflows']} workflows ({_share(good['workflow_share'])}, "
            f"{_rate(good['workflows_per_s'])}/s)" + _joules_of(per)
        )
    return out


def _joules_of(per: dict[str, Any]) -> str:
    request, workflow = per.get("per_good_request"), per.get("per_good_workflow")
    if request is None and workflow is None:
        return ""
    parts = [(request, "good request"), (workflow, "good workflow")]
    return "; " + ", ".join(f"{value:,.2f} J per {what}" for value, what in parts if value is not None)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _rate(value: float | None) -> str:
    return "0" if value is None else f"{value:.2f}"
